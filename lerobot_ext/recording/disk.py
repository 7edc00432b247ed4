"""Whether a recording fits on its disk: what is free, what an episode needs, and errors that say both.

Only folders and numbers here; the writer asks before an episode and during it, commands may ask before that.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

RESERVE_BYTES = 256 * 2**20
"""What stays free: enough to end an episode and its tables, and to keep the system alive."""

ASSUMED_EPISODE_S = 60.0
CHECK_EVERY_S = 1.0

# Bytes a pixel, generous: colour at LeRobot's default quality, depth without loss, and the pictures that are kept
# until an episode is encoded when it is not encoded while it is recorded (PNG, and TIFF that is not compressed).
COLOUR_VIDEO, DEPTH_VIDEO, COLOUR_PICTURE, DEPTH_PICTURE = 0.1, 1.0, 3.0, 4.0


class DiskSpaceError(OSError):
    """Too little room on the disk; `errno` is ENOSPC."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return str(self.strerror)


class NotWritableError(OSError):
    """The folder cannot be written; `errno` is the system's."""

    def __str__(self) -> str:
        return str(self.strerror)


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def free_bytes(root: Path) -> int:
    """Bytes that this user may still write on the disk of `root`, which need not exist yet."""
    found = os.statvfs(existing(root))
    return found.f_bavail * found.f_frsize


def check_writable(root: Path) -> None:
    """Try whether files can be made in `root` and in the folders of a dataset below it.

    Raises:
        NotWritableError: They cannot.
    """
    for folder in dict.fromkeys(existing(Path(root) / name) for name in ("", "meta", "data", "videos")):
        probe = folder / f".lerobot_ext.{os.getpid()}.probe"
        try:
            probe.write_bytes(b"\0")
        except OSError as error:
            raise NotWritableError(
                error.errno,
                f"{folder} cannot be written ({error.strerror}); give yourself the right to "
                f"(`chmod -R u+w {folder}`), mount the disk writable, or choose another dataset.root.",
            ) from error
        finally:
            with suppress(OSError):
                probe.unlink()


def bytes_per_frame(features: Mapping[str, Mapping[str, Any]], streaming: bool = True) -> float:
    """Estimate of what one frame takes on the disk.

    Args:
        features: As in the dataset's info.
        streaming: Whether pictures are encoded while they come; else each is also kept as a file for a while.
    """
    total = 0.0
    for feature in features.values():
        numbers = float(np.prod(feature["shape"])) if feature.get("shape") else 1.0
        if feature["dtype"] not in ("video", "image"):
            total += 8.0 * numbers
            continue
        depth = bool((feature.get("info") or {}).get("is_depth_map"))
        channels = 1 if depth else 3
        pixels = numbers / channels
        if feature["dtype"] == "video":
            total += pixels * (DEPTH_VIDEO if depth else COLOUR_VIDEO)
        if feature["dtype"] == "image" or not streaming:
            total += pixels * (DEPTH_PICTURE if depth else COLOUR_PICTURE)
        if feature["dtype"] == "image":
            total += pixels * (DEPTH_PICTURE if depth else COLOUR_PICTURE)
    return total


def needed_bytes(
    features: Mapping[str, Mapping[str, Any]],
    fps: int,
    seconds: float = ASSUMED_EPISODE_S,
    streaming: bool = True,
) -> int:
    """Estimate of what an episode takes on the disk while it is recorded and saved, from its streams."""
    return int(bytes_per_frame(features, streaming) * fps * seconds)


def check_space(root: Path, needed: int, reserve: int | None = None, what: str = "an episode") -> None:
    """Refuse to begin what may not fit.

    Args:
        root: Folder of the dataset; need not exist.
        needed: Bytes.
        reserve: Bytes that stay free beside them; `RESERVE_BYTES` if None.
        what: What is begun, for the message.

    Raises:
        DiskSpaceError: Less is free.
    """
    reserve = RESERVE_BYTES if reserve is None else reserve
    free = free_bytes(root)
    if free < needed + reserve:
        raise DiskSpaceError(
            f"{megabytes(free)} are free on the disk of {root}, but {what} needs about {megabytes(needed)} and "
            f"{megabytes(reserve)} are kept in reserve; free some space, or record to another disk "
            "(--dataset.root). What was saved before is safe."
        )


def megabytes(size: float) -> str:
    """`size` in bytes, in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


class SpaceWatch:
    """Asks about the disk before an episode and every second during it.

    The first episode is estimated from its streams; then the longest episode so far and the largest frame count.
    """

    def __init__(self, root: Path, features: Mapping[str, Mapping[str, Any]], fps: int, streaming: bool):
        self._root, self._features, self._fps, self._streaming = root, features, fps, streaming
        self._measured: tuple[float, int] | None = None  # bytes a frame, frames of the longest episode
        self._checked_s = 0.0

    def expected(self) -> int:
        """Bytes that the next episode will take, as far as one can say."""
        if self._measured is None:
            return needed_bytes(self._features, self._fps, streaming=self._streaming)
        return int(1.2 * self._measured[0] * self._measured[1])

    def saved(self, size: int, frames: int) -> None:
        """An episode of `frames` frames took `size` bytes, pictures that were removed again included."""
        if not self._streaming:
            plain = bytes_per_frame(self._features, True) * frames
            size += int(bytes_per_frame(self._features, False) * frames - plain)
        if frames:
            before = self._measured or (0.0, 0)
            self._measured = (max(before[0], size / frames), max(before[1], frames))

    def before_episode(self) -> None:
        """Raise `DiskSpaceError` unless an episode fits."""
        check_space(self._root, self.expected())
        self._checked_s = time.monotonic()

    def running_out(self, frames: int) -> str | None:
        """Why the episode has to end after its `frames` frames; None while there is room. Looks once a second."""
        now = time.monotonic()
        if now - self._checked_s < CHECK_EVERY_S:
            return None
        self._checked_s = now
        needed = RESERVE_BYTES // 2
        if not self._streaming:  # the videos are still to be made, beside the pictures
            needed += int(bytes_per_frame(self._features, True) * frames)
        free = free_bytes(self._root)
        if free >= needed:
            return None
        return f"{megabytes(free)} are left on the disk of {self._root}, and {megabytes(needed)} are kept to end well"
