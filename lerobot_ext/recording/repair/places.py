"""Where each episode's frames are in a camera's video files, when nobody wrote it down.

Episodes follow one another in the files, so that lengths tell it; wherever they do not fit, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lerobot_ext.recording.repair.read import Found
from lerobot_ext.recording.repair.videos import VideoFile, whole_pictures
from lerobot_ext.recording.tables import LOOSE_CHUNK


@dataclass(frozen=True)
class Place:
    """Where the frames of one episode and camera are.

    Attributes:
        video: The file that holds them; None if they are pictures.
        first: The first of them in it.
        pictures: Folder of pictures that have to be encoded; None if there is a video.
        recorded: Whether meta/episodes says the same.
    """

    video: VideoFile | None
    first: int = 0
    pictures: Path | None = None
    recorded: bool = False


@dataclass
class Places:
    """The places of one camera's episodes, and why others have none."""

    found: dict[int, Place]
    missing: dict[int, str]


def locate(found: Found, key: str, lengths: dict[int, int]) -> Places:
    """Find the frames of every episode in the files of one camera.

    Args:
        found: What was read.
        key: The camera's feature.
        lengths: Frames of each episode whose numbers are there; others cannot be located.
    """
    places = Places({}, {})
    claims = _recorded(found, key, lengths, places)
    unplaced = [episode for episode in sorted(lengths) if episode not in claims]
    for gap in _gaps(unplaced, claims):
        _walk(gap, lengths, list(_segments(found.videos[key], gap, claims)), found, places)
    last = max(lengths, default=-1)
    for episode in list(places.missing):
        place = _elsewhere(found, key, episode, lengths[episode], last)
        if place is not None:
            places.found[episode] = place
            del places.missing[episode]
    return places


def _recorded(
    found: Found, key: str, lengths: dict[int, int], places: Places
) -> dict[int, tuple[int, int, int]]:
    """Use what meta/episodes says; returns (file's position, first frame, frames) of every episode there."""
    files = {(file.chunk, file.file): i for i, file in enumerate(found.videos[key])}
    claims = {}
    for episode, row in sorted(found.rows.items()):
        where = _where(row, key)
        if where is None:
            continue
        chunk, number, start_s, end_s = where
        count = lengths.get(episode, round((end_s - start_s) * found.fps))
        if (chunk, number) not in files:
            claims[episode] = (-1, 0, 0)
            if episode in lengths:
                places.missing[episode] = (
                    f"the video chunk-{chunk:03d}/file-{number:03d}.mp4 of {key} is missing"
                )
            continue
        position = files[chunk, number]
        video = found.videos[key][position]
        first = video.first_at(start_s)
        shown = round((end_s - start_s) * found.fps)
        claims[episode] = (position, round(start_s * found.fps) if not video.readable else first, shown)
        if episode not in lengths:
            continue
        at = video.times_s[first] if video.readable else -1.0
        if abs(at - start_s) < 1e-4 and video.holds(first, count, found.fps) and shown >= count:
            places.found[episode] = Place(video, first, recorded=True)
        else:
            have = min(shown, max(0, len(video.times_s) - first))
            places.missing[episode] = _lacking(found, video, have, count)
    return claims


def _where(row: dict[str, Any], key: str) -> tuple[int, int, float, float] | None:
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    values = [row.get(f"videos/{key}/{name}") for name in names]
    if any(value is None for value in values):
        return None
    return int(values[0]), int(values[1]), float(values[2]), float(values[3])


def _lacking(found: Found, video: VideoFile, have: int, count: int) -> str:
    name = _name(found, video)
    if video.why:
        return f"'{name}': {video.why}"
    return f"'{name}' has {have} of its {count} frames"


def _name(found: Found, video: VideoFile) -> str:
    return video.path.relative_to(found.root).as_posix()


def _gaps(unplaced: list[int], claims: dict[int, Any]) -> list[list[int]]:
    """Split at episodes whose place was written down."""
    gaps: list[list[int]] = []
    for episode in unplaced:
        if gaps and not any(gaps[-1][-1] < claimed < episode for claimed in claims):
            gaps[-1].append(episode)
        else:
            gaps.append([episode])
    return gaps


def _segments(
    videos: Sequence[VideoFile], gap: list[int], claims: dict[int, tuple[int, int, int]]
) -> Iterator[tuple[VideoFile, int, int]]:
    """Frames that nobody claims between the neighbours of a gap: (file, first, one behind the last)."""
    before = [claim for episode, claim in claims.items() if episode < gap[0] and claim[0] >= 0]
    after = [claim for episode, claim in claims.items() if episode > gap[-1] and claim[0] >= 0]
    start = max(((position, first + count) for position, first, count in before), default=(0, 0))
    end = min(((position, first) for position, first, _ in after), default=(len(videos), 0))
    for position, video in enumerate(videos):
        if video.chunk >= LOOSE_CHUNK or position < start[0] or position > end[0]:
            continue
        first = start[1] if position == start[0] else 0
        stop = end[1] if position == end[0] else video.announced
        if stop > first or not video.readable:
            yield video, first, stop


def _walk(
    gap: list[int],
    lengths: dict[int, int],
    segments: Sequence[tuple[VideoFile, int, int]],
    found: Found,
    places: Places,
) -> None:
    """Hand out the frames of `segments` to the episodes of `gap`, as long as they fit exactly."""
    left = list(gap)
    why = "its frames are in no video"
    for number, (video, first, stop) in enumerate(segments):
        if not left:
            return
        counts = _counts(video, first, stop, [lengths[episode] for episode in left])
        if counts is None:
            why = _misfit(found, video, stop - first, [lengths[episode] for episode in left])
            behind = _last_ones(left, lengths, segments[number + 1 :], found)
            for episode in left[: len(left) - behind]:
                places.missing[episode] = why
            left = left[len(left) - behind :]
            continue
        for count in counts:
            episode = left.pop(0)
            if count == lengths[episode] and video.holds(first, count, found.fps):
                places.found[episode] = Place(video, first)
            else:
                have = min(count, max(0, len(video.times_s) - first))
                places.missing[episode] = _lacking(found, video, have, lengths[episode])
            first += count
    for episode in left:
        places.missing[episode] = why


def _counts(video: VideoFile, first: int, stop: int, lengths: list[int]) -> list[int] | None:
    """Frames of each episode in a segment, None if nothing tells: `lengths` are those that can be there."""
    if not video.readable:
        return None
    ends = [end for end in accumulate(lengths) if end <= stop - first]
    fits = bool(ends) and (ends[-1] == stop - first or len(ends) == len(lengths))
    begins = [first, *(first + end for end in ends[:-1])]
    if fits and (not video.starts or _agree(video, begins, first + ends[-1])):
        return lengths[: len(ends)]
    return _counts_by_starts(video, first, stop, lengths)


def _misfit(found: Found, video: VideoFile, count: int, lengths: list[int]) -> str:
    if not video.readable:
        return f"'{_name(found, video)}' cannot be read: {video.why}"
    return (
        f"'{_name(found, video)}' has {count} frames, which is no whole number of episodes ({len(lengths)} with "
        f"{sum(lengths)} frames are looked for): an episode lacks frames, and nothing tells which"
    )


def _last_ones(
    left: list[int], lengths: dict[int, int], segments: Sequence[tuple[VideoFile, int, int]], found: Found
) -> int:
    """How many of the last episodes fill the files behind one that cannot be used; 0 if they do not fit exactly."""
    if not segments or any(video.why for video, _, _ in segments):
        return 0
    total = sum(stop - first for _, first, stop in segments)
    ends = [0, *accumulate(lengths[episode] for episode in reversed(left))]
    if total not in ends:
        return 0
    # Of an episode that was not counted as saved the video may be missing: then others could fit as well.
    saved = left[-1] < int(found.info.get("total_episodes") or 0)
    return ends.index(total) if saved or total == ends[-1] else 0


def _agree(video: VideoFile, begins: list[int], stop: int) -> bool:
    """Whether an encoder began at these frames and at no other up to `stop`, as far as its coded frames tell."""
    if any(start not in begins for start in video.starts if begins[0] <= start < stop):
        return False
    for frame in begins:
        last = max((start for start in video.starts if start <= frame), default=None)
        if last is None or (frame != last and (not video.wrap or (frame - last) % video.wrap)):
            return False
    return True


def _counts_by_starts(video: VideoFile, first: int, stop: int, lengths: list[int]) -> list[int] | None:
    """Frames of each episode, from where an encoder began anew; None if that is no explanation."""
    starts = [start for start in video.starts if first <= start < stop]
    if video.why or not starts or starts[0] != first:
        return None
    counts: list[int] = []
    for start, end in zip(starts, [*starts[1:], stop], strict=True):
        while start < end:
            if len(counts) == len(lengths):
                return None
            length = lengths[len(counts)]
            hidden = video.wrap > 0 and length % video.wrap == 0  # the next beginning would not show
            if end - start > length and not hidden:
                return None
            counts.append(min(length, end - start))
            start += counts[-1]
    return counts


def _elsewhere(found: Found, key: str, episode: int, count: int, last: int) -> Place | None:
    """The episode's frames where they were before they came into the dataset's video."""
    for video in found.videos[key]:
        if video.chunk >= LOOSE_CHUNK and video.file == episode and _is_exactly(video, count, found.fps):
            return Place(video)
    for video in found.temporary:
        # `<camera>_<episode>.mp4`; one that was encoded during the recording has no number, and is the last episode's.
        stem = video.path.stem
        mine = stem == f"{video.key}_{episode:03d}" or (stem.endswith("_streaming") and episode == last)
        if video.key == key and mine and _is_exactly(video, count, found.fps):
            return Place(video)
    folder = found.pictures.get((key, episode))
    if folder is not None and whole_pictures(folder, count):
        return Place(None, pictures=folder)
    return None


def _is_exactly(video: VideoFile, count: int, fps: float) -> bool:
    return not video.why and len(video.times_s) == count and video.holds(0, count, fps)
