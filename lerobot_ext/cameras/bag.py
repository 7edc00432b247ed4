"""librealsense's recordings: a file that stands for the camera, and whether a file is whole.

A bag is a ROS bag of version 2.0 (http://wiki.ros.org/Bags/Format/2.0). Its index is written when it is closed; a
program that was killed leaves one without, which librealsense cannot play.
"""

from __future__ import annotations

import logging
import shutil
import struct
from pathlib import Path
from typing import Any

from lerobot_ext.cameras.librealsense import load

logger = logging.getLogger(__name__)

SUFFIX = ".bag"
MAGIC = b"#ROSBAG V2.0\n"
# librealsense ends the whole program when it cannot write any more; a D435 at 30 fps sends up to 90 MB a second.
RESERVE_BYTES = 500_000_000


def is_bag(name: str) -> bool:
    """Whether `serial_number_or_name` means a file."""
    return name.lower().endswith(SUFFIX)


def path_of(name: str) -> Path:
    """The file, with `~` and relative paths resolved."""
    return Path(name).expanduser().absolute()


def check_whole(path: Path) -> None:
    """See that a bag can be played.

    Raises:
        ConnectionError: It is not there, is no bag, or was never closed.
    """
    if not path.is_file():
        raise ConnectionError(f"there is no file {path}; give the path of a recording ({SUFFIX})")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise ConnectionError(f"{path} cannot be read: {error.strerror}") from error
    if not head.startswith(MAGIC):
        raise ConnectionError(
            f"{path} is no recording of librealsense: it begins with {head[:13]!r}, expected {MAGIC!r}; record one with "
            "record_bag or realsense-viewer"
        )
    if index_position(head) == 0:
        raise ConnectionError(
            f"{path} has no index: the program that wrote it was killed before it closed the file, so librealsense "
            "cannot play it; record again, and disconnect the camera at the end"
        )


def index_position(head: bytes) -> int:
    """Where the index of a bag begins, from the file's first bytes; 0 if it has none."""
    try:
        (length,) = struct.unpack_from("<I", head, len(MAGIC))
        at, end = len(MAGIC) + 4, len(MAGIC) + 4 + length
        while at < end:
            (size,) = struct.unpack_from("<I", head, at)
            name, _, value = head[at + 4 : at + 4 + size].partition(b"=")
            if name == b"index_pos":
                return struct.unpack("<Q", value)[0]
            at += 4 + size
    except struct.error:
        pass
    return 0


def free_bytes(path: Path) -> int:
    """Room on the disk where `path` is, or will be once its folders are made."""
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(there).free


def free_path(path: Path) -> Path:
    """`path`, or where it exists already `name-2.bag`, `name-3.bag`, …: a camera that came back begins a new file."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


class BagSource:
    """A `lerobot_ext.cameras.librealsense.Source` that plays a file in real time.

    Args:
        path: The file.
        repeat: Begin anew at its end; else that is the end of the camera.

    Raises:
        ConnectionError: It is not a whole bag.
    """

    live = False

    def __init__(self, path: Path, *, repeat: bool):
        check_whole(path)
        self._path, self._repeat = path, repeat
        self._playback: Any = None
        rs = load()
        try:
            self.device = rs.context().load_device(str(path))
        except RuntimeError as error:
            raise ConnectionError(f"{path} cannot be played: {error}") from error

    def attach(self, pipeline: Any, config: Any) -> None:
        """See Source."""
        self.device = None  # the pipeline opens the file for itself
        config.enable_device_from_file(str(self._path), self._repeat)

    def started(self, profile: Any) -> None:
        """See Source."""
        self._playback = profile.get_device().as_playback()

    def ended(self) -> str:
        """See Source. Only to be believed once a frame has come: a file that has not begun looks the same."""
        rs = load()
        if self._repeat or self._playback is None:
            return ""
        if self._playback.current_status() != rs.playback_status.stopped:
            return ""
        seconds = self._playback.get_duration().total_seconds()
        return (
            f"the recording {self._path} is at its end ({seconds:.1f} s); connect again to play it from the beginning, "
            "or give bag_repeat: true"
        )

    def missing(self) -> str:
        """See Source."""
        return "" if self._path.is_file() else f"{self._path} is no longer there"

    def close(self) -> None:
        """See Source."""
        self.device = self._playback = None
