"""Loose videos, one file an episode, and how they become LeRobot's files of many episodes.

Packets are copied, nothing is encoded again. A joined file takes its place before a table refers to it, and loose
files go away after no table does, so that the dataset can be opened at every instant between.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.utils import DatasetInfo, update_chunk_file_indices

from lerobot_ext.recording import disk, tables
from lerobot_ext.recording.files import Staging, remove
from lerobot_ext.recording.tables import LOOSE_CHUNK

logger = logging.getLogger(__name__)

PROGRESS_BYTES = 200 * 2**20
MAX_DELAY_FRAMES = 16  # of H.264 and HEVC


@dataclass
class Video:
    """A loose file and the episodes in it (more than one if stock LeRobot went on with the recording).

    Attributes:
        path: The file.
        episodes: (episode, first frame in the file, frames), in order.
        size: Bytes.
    """

    path: Path
    episodes: list[tuple[int, int, int]] = field(default_factory=list)
    size: int = 0

    @property
    def num_frames(self) -> int:
        """Frames that the tables expect in the file."""
        return sum(frames for _, _, frames in self.episodes)


def episode_files(root: Path) -> list[Path]:
    """Files of `meta/episodes`, in order."""
    return sorted((root / "meta" / "episodes").glob("*/*.parquet"))


def read_episodes(root: Path) -> list[dict[str, Any]]:
    """Rows of `meta/episodes` without the statistics, in order of the episodes."""
    rows = []
    for path in episode_files(root):
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        rows += pq.ParquetFile(path).read(columns=names).to_pylist()
    return sorted(rows, key=lambda row: row["episode_index"])


def count_frames(path: Path) -> int:
    """Frames in a video, from its index; they are counted if the index does not say.

    Raises:
        OSError, ValueError: It is not a video that can be opened.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.frames:
            return int(stream.frames)
        return sum(packet.dts is not None for packet in container.demux(stream))


def place_of(row: dict[str, Any], key: str) -> tuple[int, int]:
    """Chunk and file of an episode's video; (-1, -1) if its row names none."""
    chunk, file = row.get(f"videos/{key}/chunk_index"), row.get(f"videos/{key}/file_index")
    return (-1, -1) if chunk is None or file is None else (int(chunk), int(file))


def loose_videos(root: Path, info: DatasetInfo, key: str, rows: Iterable[dict[str, Any]]) -> list[Video]:
    """Loose files of one video key that the rows of `meta/episodes` refer to, in order of their episodes."""
    found: dict[Path, Video] = {}
    for row in rows:
        chunk, file = place_of(row, key)
        if chunk < LOOSE_CHUNK:
            continue
        path = root / info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
        video = found.setdefault(path, Video(path, size=path.stat().st_size))
        first = round(row[f"videos/{key}/from_timestamp"] * info.fps)
        video.episodes.append((row["episode_index"], first, row["length"]))
    return list(found.values())


def consolidate(root: Path, info: DatasetInfo, keys: Sequence[str], everything: bool) -> bool:
    """Join loose videos to files of LeRobot's size. What cannot be joined stays loose, which LeRobot reads as well.

    Args:
        root: The dataset, no episode of which is being saved.
        info: Its info.
        keys: Video keys.
        everything: Also the last file, which is not full yet.

    Returns:
        Whether a table has changed.
    """
    rows = read_episodes(root)
    work = []
    for key in keys:
        groups = _groups(loose_videos(root, info, key, rows), info)
        work += [(key, group) for group in (groups if everything else groups[:-1])]
    total = sum(video.size for _, group in work for video in group)
    changed = False
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc="joining videos",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=total < PROGRESS_BYTES,
    ) as bar:
        for key, group in work:
            try:
                _join(root, info, key, group)
                changed = True
            except Exception as error:  # whatever it is, the loose files are valid
                logger.warning(
                    "%s: %d videos stay one file an episode, which LeRobot reads as well: %s",
                    key,
                    len(group),
                    error,
                )
            bar.update(sum(video.size for video in group))
    return changed


def _groups(videos: Sequence[Video], info: DatasetInfo) -> list[list[Video]]:
    """Consecutive videos that make one file: of one kind, and smaller than LeRobot's limit together."""
    limit = info.video_files_size_in_mb * 2**20
    groups: list[list[Video]] = []
    kind_before: tuple | None = None
    for video in videos:
        kind = _kind(video.path)
        if not groups or kind != kind_before or sum(v.size for v in groups[-1]) + video.size >= limit:
            groups.append([])
        groups[-1].append(video)
        kind_before = kind
    return groups


def _kind(path: Path) -> tuple:
    """What must be the same in videos whose packets follow each other in one stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        return (
            context.name,
            stream.width,
            stream.height,
            context.pix_fmt,
            stream.time_base,
            bytes(context.extradata or b""),
        )


def _join(root: Path, info: DatasetInfo, key: str, group: Sequence[Video]) -> None:
    size = sum(video.size for video in group)
    if len(group) > 1:
        disk.check_space(root, size, disk.RESERVE_BYTES // 4, "joining videos")
    chunk, file = _next_place(root, info, key)
    target = root / info.video_path.format(video_key=key, chunk_index=chunk, file_index=file)
    staging = Staging()
    try:
        joined = staging.new(target)
        if len(group) == 1:
            _same_file(group[0].path, joined)
        else:
            join_videos([video.path for video in group], joined, info.fps)
        expected = sum(video.num_frames for video in group)
        found = count_frames(joined)
        if found != expected:
            raise ValueError(f"{found} frames after joining, expected {expected}.")
        _refer(root, info, key, group, (chunk, file), staging)
        staging.commit()
    finally:
        staging.abort()
    for video in group:
        remove(video.path)
        with suppress(OSError):  # other loose videos are in it
            os.rmdir(video.path.parent)


def _next_place(root: Path, info: DatasetInfo, key: str) -> tuple[int, int]:
    places = [place for row in read_episodes(root) if (place := place_of(row, key))[0] < LOOSE_CHUNK]
    chunk, file = max(places, default=(-1, -1))
    return (0, 0) if chunk < 0 else update_chunk_file_indices(chunk, file, info.chunks_size)


def _same_file(path: Path, other: Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, other)


def _refer(
    root: Path, info: DatasetInfo, key: str, group: Sequence[Video], place: tuple[int, int], staging: Staging
) -> None:
    """Stage the tables that refer to the joined file."""
    values: dict[str, dict[int, Any]] = {
        name: {} for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    }
    begin = 0
    for video in group:
        for episode, first, frames in video.episodes:
            start = begin + first
            values["chunk_index"][episode], values["file_index"][episode] = place
            values["from_timestamp"][episode] = start / info.fps
            values["to_timestamp"][episode] = (start + frames) / info.fps
        begin += video.num_frames
    for path in episode_files(root):
        table: pa.Table = pq.ParquetFile(path).read()
        if not values["chunk_index"].keys() & set(table.column("episode_index").to_pylist()):
            continue
        for name, column in values.items():
            table = tables.set_values(table, f"videos/{key}/{name}", column)
        tables.write_table(table, staging.new(path))


def join_videos(paths: Sequence[Path], joined: Path, fps: int) -> None:
    """Write the frames of several videos to one file, without encoding them again.

    Frame k of the whole is shown at k / fps. Decoding times are set anew, one frame apart and as early as in the video
    that is decoded earliest; LeRobot's concatenation keeps each video's own and fails where they overlap (B-frames).
    Not later than in any of the videos, so that LeRobot can concatenate what is written here with others.

    Args:
        paths: Videos of one kind, each with its frames at 0, 1 / fps, 2 / fps, ...
        joined: File to write, MP4 whatever it is called.
        fps: Frames a second.

    Raises:
        ValueError: The frames of a video are at other times.
        OSError: A file cannot be read or written.
    """
    orders, delays = zip(*(_presentation_order(path, fps) for path in paths), strict=True)
    delay = max(delays)
    before = 0
    with av.open(str(joined), "w", format="mp4", options={"movflags": "faststart"}) as output:
        out = None
        for path, order in zip(paths, orders, strict=True):
            with av.open(str(path)) as source:
                stream = source.streams.video[0]
                if out is None:
                    out = output.add_stream_from_template(stream, opaque=True)
                    out.time_base = stream.time_base
                ticks = int(1 / (fps * stream.time_base))
                position = before
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts += before * ticks
                    packet.dts = (position - delay) * ticks
                    packet.stream = out
                    output.mux(packet)
                    position += 1
            before += len(order)


def _presentation_order(path: Path, fps: int) -> tuple[list[int], int]:
    """For each packet, in decoding order, the number of its frame in the order of showing; and the delay between.

    The delay, in frames, is how much earlier than 0 decoding begins.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = Fraction(1, fps) / stream.time_base
        packets = [(packet.pts, packet.dts) for packet in container.demux(stream) if packet.dts is not None]
    shown = [pts / frame for pts, _ in packets]
    if frame.denominator != 1 or sorted(shown) != list(range(len(shown))):
        raise ValueError(f"{path}: its frames are not {fps} a second from 0 on.")
    order = [int(number) for number in shown]
    needed = max(position - number for position, number in enumerate(order))
    stated = int(-packets[0][1] / frame)
    # x265 states nonsense for videos that are shorter than its delay.
    return order, max(needed, stated) if stated <= MAX_DELAY_FRAMES else needed
