"""Frames of LeRobot's videos through PyAV: files stay open, and nothing is decoded that was not asked for.

Gives the same frames with the same values as `lerobot.datasets.video_utils.decode_video_frames_pyav`, which opens the
file anew for each item, starts a keyframe early, and converts every frame on its way. Which frames are wanted, and what
becomes of them, is decided in `reader`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

RGB_FORMAT, DEPTH_FORMAT = "rgb24", "gray12le"

_OPEN_FILES = 64
_MOST_THREADS = 8
_NEAR_S = 1.0  # what is farther from the frame before is sought anew, not decoded up to
_MARGINS_S = (0.0, 1e-6, 1.0, 10.0)
"""How long before a frame to seek. Where pictures refer to a later keyframe (open groups), the keyframe at or before a
frame in the file is the one after it in time; LeRobot's own margin of less than a frame then finds the right one."""


def read_frames(
    path: Path, times: Sequence[float], tolerance_s: float, pixel_format: str
) -> np.ndarray | None:
    """Decode the frames at these times.

    Args:
        path: A video file on this machine.
        times: Seconds from the start of the file, in any order.
        tolerance_s: A frame must be nearer than this, in LeRobot's arithmetic (float32).
        pixel_format: `RGB_FORMAT` or `DEPTH_FORMAT`.

    Returns:
        (n, H, W, 3) uint8 or (n, H, W) uint16; None if there is a time for which the file has no frame near enough,
        of which LeRobot's decoder tells more.
    """
    return _here().video(path).frames(times, tolerance_s, pixel_format)


def together(tasks: Sequence[Any]) -> list[Any]:
    """Results of some calls without arguments; at the same time, except in a data loader's worker.

    There the other cores belong to the other workers.
    """
    if len(tasks) < 2 or torch.utils.data.get_worker_info() is not None:
        return [task() for task in tasks]
    return list(_here().pool.map(lambda task: task(), tasks))


class _Process:
    """What this process has open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="decode")
        self._videos: OrderedDict[tuple, _Video] = OrderedDict()
        self._lock = threading.Lock()

    def video(self, path: Path) -> _Video:
        """The file, opened if it is not; the one that was used longest ago is closed for it."""
        stat = path.stat()
        key = (str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if key not in self._videos:
                self._videos[key] = _Video(path)
            self._videos.move_to_end(key)
            while len(self._videos) > _OPEN_FILES:
                self._videos.popitem(last=False)
            return self._videos[key]


class _Video:
    """One open file; one thread at a time reads it."""

    def __init__(self, path: Path) -> None:
        import av

        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        alone = torch.utils.data.get_worker_info() is None
        self._stream.codec_context.thread_count = min(_MOST_THREADS, os.cpu_count() or 1) if alone else 1
        self._tick = float(self._stream.time_base)
        self._half_period = 0.5 / float(self._stream.average_rate or 30)
        self._margin = 0  # index of the one that has been enough so far
        self._lock = threading.Lock()

    def frames(self, times: Sequence[float], tolerance_s: float, pixel_format: str) -> np.ndarray | None:
        """See `read_frames`."""
        found: dict[float, np.ndarray] = {}
        with self._lock:
            for run in _runs(sorted(set(times))):
                left, before = run, self._margin
                for self._margin in range(before, len(_MARGINS_S)):
                    found |= self._decode(left, tolerance_s, pixel_format)
                    left = [time for time in run if time not in found]
                    if not left:
                        break
                else:
                    self._margin = before
                    return None
        return np.stack([found[time] for time in times])

    def _decode(self, times: list[float], tolerance_s: float, pixel_format: str) -> dict[float, np.ndarray]:
        """Those of the frames that can be decoded from the keyframe before the first one on."""
        start = round((times[0] - _MARGINS_S[self._margin]) / self._tick)
        start -= 0 < _MARGINS_S[self._margin] < self._tick  # LeRobot's margin: one tick
        self._container.seek(start, stream=self._stream, backward=True)
        found: dict[float, np.ndarray] = {}

        def take(frames: Iterable[Any]) -> None:
            for frame in frames:
                time = self._nearest(frame.pts, times)
                if (
                    time is not None
                    and abs(np.float32(frame.pts * self._tick) - np.float32(time)) < tolerance_s
                ):
                    found[time] = frame.to_ndarray(format=pixel_format)

        waiting = set(times)
        for packet in self._container.demux(self._stream):
            take(packet.decode())
            if packet.pts is None:  # the end of the file; the decoder has given everything
                return found
            waiting.discard(self._nearest(packet.pts, times))
            # A picture's references come before it in the file, so nothing more needs to be read.
            passed = packet.is_keyframe and packet.pts * self._tick > times[-1] + 2 * _NEAR_S
            if not waiting or passed:
                break
        take(self._stream.codec_context.decode(None))
        return found

    def _nearest(self, pts: int | None, times: list[float]) -> float | None:
        if pts is None:
            return None
        shown = pts * self._tick
        time = min(times, key=lambda time: abs(time - shown))
        return time if abs(time - shown) < self._half_period else None


def _runs(times: list[float]) -> Iterator[list[float]]:
    """Sorted times in groups of neighbours."""
    start = 0
    for place in range(1, len(times) + 1):
        if place == len(times) or times[place] - times[place - 1] > _NEAR_S:
            yield times[start:place]
            start = place


_process: _Process | None = None
_of_parents: list[_Process] = []


def _here() -> _Process:
    """What this process has open. A forked one never touches its parent's: their threads are not in it."""
    global _process
    if _process is None or _process.pid != os.getpid():
        if _process is not None:
            _of_parents.append(_process)  # to close it would wait for those threads
        _process = _Process()
    return _process
