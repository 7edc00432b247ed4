"""What the video files of a damaged dataset hold: frames, where they begin, whether the file is whole.

Also how a cut one is copied up to its last whole frame, and frames in files of pictures. Nothing here decides which
episode a frame belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.repair.av1 import order_hint

CHUNK_FILE = re.compile(r"chunk-(\d+)/file-(\d+)\.[a-z0-9]+$")
X264_START = bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef")  # x264 signs the first packet of an encoding
SEEK_FRAMES = 12  # decoding on is cheaper than seeking for so many frames


@dataclass(frozen=True)
class VideoFile:
    """A video of a camera.

    Attributes:
        path: The file.
        key: The camera's feature.
        chunk: Of its name; -1 for a temporary file.
        file: Of its name; -1 for a temporary file.
        times_s: Presentation times of the frames that are whole, rising, up to the first that is not.
        announced: Frames according to the file's header.
        coded: Coded frames that are whole, in the order of decoding.
        starts: Frames at which an encoder began anew, as far as the coded frames tell; empty if they do not.
        wrap: An encoder's beginning so many frames after the one before, or a multiple of it, cannot be told; 0 if it
            always can.
        why: Why frames are missing, empty if the file is whole.
    """

    path: Path
    key: str
    chunk: int
    file: int
    times_s: NDArray[np.float64]
    announced: int
    coded: int = 0
    starts: tuple[int, ...] = field(default=(), repr=False)
    wrap: int = 0
    why: str = ""

    @property
    def readable(self) -> bool:
        """Whether a frame of it can be read."""
        return len(self.times_s) > 0

    def first_at(self, time_s: float) -> int:
        """The frame that is shown at `time_s`, or nearest to it."""
        if not self.readable:
            return 0
        return int(np.abs(self.times_s - time_s).argmin())

    def holds(self, first: int, count: int, fps: float, tolerance_s: float = 1e-4) -> bool:
        """Whether `count` whole frames stand from frame `first` on, at even distances of 1 / `fps`."""
        if first < 0 or first + count > len(self.times_s):
            return False
        times = self.times_s[first : first + count]
        return bool(np.abs(times - times[0] - np.arange(count) / fps).max(initial=0) < tolerance_s)


def probe(path: Path, key: str) -> VideoFile:
    """Look at every coded frame of a file; none is decoded.

    Returns:
        What it holds; an unreadable file holds nothing and says why.
    """
    found = CHUNK_FILE.search(path.as_posix())
    chunk, number = (int(found[1]), int(found[2])) if found else (-1, -1)
    size = path.stat().st_size
    if size == 0:
        return VideoFile(path, key, chunk, number, np.empty(0), 0, why="it is empty")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            announced, base, codec = stream.frames, stream.time_base, stream.codec.canonical_name
            shown, decoded, starts, counters, broken = [], [], [], {}, None
            keys = 0
            try:
                for packet in container.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    cut = packet.pos is not None and packet.pos + packet.size > size
                    if packet.is_corrupt or cut or packet.size == 0:
                        broken = f"it is cut after {len(shown)} of {announced} frames"
                        break
                    shown.append(packet.pts)
                    decoded.append(packet.dts)
                    keys += packet.is_keyframe
                    if packet.is_keyframe and codec == "av1":
                        counters[packet.pts] = order_hint(bytes(packet))
                    elif packet.is_keyframe and _begins(codec, bytes(packet)):
                        starts.append(packet.pts)
            except av.FFmpegError as error:
                broken = f"reading fails after {len(shown)} of {announced} frames: {error.strerror}"
    except (av.FFmpegError, IndexError, OSError) as error:
        why = "it has no index (moov), its end was never written" if size > 8 else "it is empty"
        if not isinstance(error, av.InvalidDataError):
            why = str(error)
        return VideoFile(path, key, chunk, number, np.empty(0), 0, why=why)
    if broken is None and len(shown) < announced:
        broken = f"it is cut after {len(shown)} of {announced} frames"
    times = np.sort(np.asarray(shown, dtype=np.int64))
    if broken is not None and decoded:
        # A frame is shown no earlier than it is decoded: before the last decoding time none is missing.
        times = times[times <= decoded[-1]]
    starts = starts if len(starts) < keys else []  # at every key frame they would tell nothing
    position = {time: i for i, time in enumerate(times.tolist())}
    begins = sorted(position[time] for time in starts if time in position)
    wrap = 0
    if counters and all(counters.values()):
        hints = {position[time]: hint for time, hint in counters.items() if time in position}
        begins, wrap = _restarts(hints)
        begins = begins if len(begins) < len(hints) else []
    return VideoFile(
        path,
        key,
        chunk,
        number,
        times * float(base),
        max(announced, len(shown)),
        len(shown),
        tuple(begins),
        wrap,
        broken or "",
    )


def _restarts(counters: dict[int, tuple[int, int]]) -> tuple[list[int], int]:
    """Frames at which AV1's counter is 0 although it should not be yet, and the number after which it always is."""
    starts: list[int] = []
    for frame, (counter, wrap) in sorted(counters.items()):
        if counter == 0 and (not starts or (frame - starts[-1]) % wrap):
            starts.append(frame)
    return starts, next(iter(counters.values()))[1] if counters else 0


def _begins(codec: str, packet: bytes) -> bool:
    """Whether a key frame is an encoder's very first, seen from what x264 and x265 write there only."""
    if codec == "h264":
        return X264_START in packet[:512]
    if codec == "hevc":  # IDR; x265's later key frames are CRA (types 19, 20 and 21 in H.265's table 7-1)
        at = 0
        while at + 5 <= len(
            packet
        ):  # parameter sets and the like may stand before the picture (types from 32 on)
            kind = packet[at + 4] >> 1 & 0x3F
            if kind < 32:
                return kind in (19, 20)
            at += 4 + int.from_bytes(packet[at : at + 4])
    return False


def copy_whole_frames(video: VideoFile, out: Path) -> None:
    """Copy the coded frames of a cut file that are whole, with their times; nothing is encoded again.

    Among them are a few behind `times_s`, without which those before could not be decoded.

    Raises:
        OSError: Reading or writing failed.
    """
    with av.open(str(video.path)) as source, av.open(str(out), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream, opaque=True)
        copied.time_base = stream.time_base
        left = video.coded
        for packet in source.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            packet.stream = copied
            target.mux(packet)
            left -= 1
            if left == 0:
                break


def frames(video: Path, times_s: NDArray[np.float64], pixels: str) -> Iterator[NDArray]:
    """Decode the frames at some times.

    Args:
        video: The file.
        times_s: Their presentation times, rising.
        pixels: Format of the result: "rgb24" for (h, w, 3) uint8, "gray12le" for (h, w) uint16.

    Yields:
        One picture for each time.

    Raises:
        ValueError: There is no frame at a time.
    """
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        base = float(stream.time_base)
        step = 1 / float(stream.average_rate or 30)
        pending = None
        decoder = container.decode(stream)
        at = -np.inf
        for time_s in times_s:
            if time_s - at > SEEK_FRAMES * step:
                # One tick before it, as LeRobot does: pictures shown before an open key frame need an earlier one.
                container.seek(round(time_s / base) - 1, backward=True, any_frame=False, stream=stream)
                decoder, pending = container.decode(stream), None
            while pending is None or pending.pts * base < time_s - step / 4:
                pending = next(decoder, None)
                if pending is None:
                    break
            if pending is None or abs(pending.pts * base - time_s) > step / 4:
                raise ValueError(f"'{video}' has no frame at {time_s:.4f} s.")
            at = time_s
            yield pending.to_ndarray(format=pixels)


def picture_folders(root: Path) -> dict[tuple[str, int], Path]:
    """Folders of pictures that wait to be encoded: (camera's feature, episode) -> folder."""
    found = {}
    for folder in sorted(root.glob("images/*/episode-*")):
        number = folder.name.removeprefix("episode-")
        if folder.is_dir() and number.isdigit():
            found[folder.parent.name, int(number)] = folder
    return found


def whole_pictures(folder: Path, count: int) -> bool:
    """Whether a folder holds `count` pictures with the right names, and the last one is complete.

    Pictures are written one after the other by a few threads, so that only the last few can be cut; all are opened
    when they are encoded.
    """
    names = {path.stem: path for path in folder.iterdir() if path.suffix in (".png", ".tiff")}
    if set(names) != {f"frame-{i:06d}" for i in range(count)}:
        return False
    from PIL import Image

    for path in names.values():
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError):
            return False
    return True
