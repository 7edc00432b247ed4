"""Frames of a dataset in files: built once, mapped by every process that reads them, removed when room is needed.

A stream of a dataset at one size is one file, `FOLDER/DATASET/STREAM-HASH.frames`; the hash is of all that its frames
depend on, so that a file that does not fit is never found. A file is written under another name and renamed when it is
whole; locks (`flock`) end with the process that holds them, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lerobot_ext.errors import UserError
from lerobot_ext.modality.cache import GB, FrameSink, FrameStore, bytes_per_frame, encode, stored_dtype

logger = logging.getLogger(__name__)

_WHOLE, _PART = ".frames", ".part"
_LOCK = "lock"


@dataclass(frozen=True)
class StreamFile:
    """What the file of one stream holds.

    Attributes:
        key: The stream's key in the dataset.
        frames: How many.
        shape: (C, H, W) of each.
        far_m: As in `FrameStore`.
        depends_on: All else that the frames depend on, as JSON: the dataset's files, the decoder.
    """

    key: str
    frames: int
    shape: tuple[int, int, int]
    far_m: float | None
    depends_on: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the file, without its suffix."""
        what = [self.key, self.frames, self.shape, self.far_m, self.depends_on]
        return f"{self.key}-{self.shape[1]}x{self.shape[2]}-{short_hash(what)}"

    @property
    def size(self) -> int:
        """In bytes."""
        return self.frames * bytes_per_frame(*self.shape)


def short_hash(what: Any) -> str:
    """16 hexadecimal digits that another content does not have."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def default_folder() -> Path:
    """Where files are kept if the YAML does not say: below LeRobot's own cache."""
    from lerobot.utils.constants import HF_LEROBOT_HOME

    return HF_LEROBOT_HOME / "lerobot_ext" / "frames"


def open_stores(
    folder: Path,
    dataset: str,
    streams: list[StreamFile],
    max_gb: float,
    build: Callable[[Mapping[str, FrameSink]], None],
) -> dict[str, FrameStore]:
    """The frames of some streams; those that are not there are built, by one process at a time.

    Args:
        folder: Of all datasets.
        dataset: A name for the dataset's own folder in it.
        streams: What is wanted.
        max_gb: Most gigabytes in `folder`; files that were used longest ago make room.
        build: Puts the frames of the streams that are missing into what it is given by key.

    Raises:
        UserError: If there is no room, on the disk or within `max_gb`; says what to do.
    """
    place = folder / dataset
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"modality.cache_dir {folder}: {error.strerror}; give a folder to write to."
        ) from error
    with _locked(place / _LOCK, f"another process builds the cache {place}; waiting for it."):
        found = {stream.key: store for stream in streams if (store := _open(place, stream))}
        missing = [stream for stream in streams if stream.key not in found]
        if missing:
            found |= _build(folder, place, missing, max_gb, build)
    needed = sum(stream.size for stream in streams)
    logger.info(
        "cache: %d frames of %d streams, %.2f GB in %s (%s); remove it when you like.",
        streams[0].frames if streams else 0,
        len(streams),
        needed / GB,
        place,
        f"{len(missing)} built now" if missing else "found",
    )
    return found


class FileStore(FrameStore):
    """Frames mapped from a file; it can be sent to a worker process, which maps it, too.

    Reading goes through the operating system's cache of files: as fast as memory while there is memory.
    """

    def __init__(self, path: Path, stream: StreamFile) -> None:
        """Map the file of `stream`; while this exists, nobody removes the file to make room."""
        self._made_from = (path, stream)
        self._file = path.open("rb")
        fcntl.flock(self._file, fcntl.LOCK_SH)
        if not os.fstat(self._file.fileno()).st_nlink:
            raise FileNotFoundError(f"{path} was removed to make room for another cache.")
        dtype = np.uint8 if stream.far_m is None else np.int16
        # Copy on write: torch takes it without a warning, and a change would not reach the file.
        mapped = np.memmap(self._file, dtype, "c", shape=(stream.frames, *stream.shape))
        super().__init__(torch.from_numpy(mapped), stream.far_m)

    def __reduce__(self) -> tuple[type, tuple]:
        """Pickle what it was made from."""
        return FileStore, self._made_from


class _Writer:
    """Writes the frames of one stream to a file, in any order."""

    def __init__(self, file: BinaryIO, stream: StreamFile) -> None:
        self._file, self._stream = file, stream
        self._frame_bytes = bytes_per_frame(*stream.shape)

    def put(self, start: int, frames: Tensor) -> None:
        """As `FrameSink.put`."""
        kept = encode(frames, self._stream.far_m).contiguous()
        assert kept.shape[1:] == self._stream.shape and kept.dtype == stored_dtype(self._stream.far_m)
        self._file.seek(start * self._frame_bytes)
        self._file.write(kept.numpy())


def _build(
    folder: Path,
    place: Path,
    missing: list[StreamFile],
    max_gb: float,
    build: Callable[[Mapping[str, FrameSink]], None],
) -> dict[str, FrameStore]:
    """Write the files of these streams and open them; the caller holds the lock of `place`."""
    for left in place.glob(f"*{_PART}"):
        left.unlink()  # whoever wrote it was killed: we hold the lock
    needed = sum(stream.size for stream in missing)
    parts = {stream.key: place / f"{stream.name}{_PART}" for stream in missing}
    try:
        with ExitStack() as stack:
            # Reserved within the lock, so that two builds do not count on the same room.
            with _locked(folder / _LOCK, ""):
                _make_room(folder, needed, max_gb)
                files = {key: stack.enter_context(part.open("wb")) for key, part in parts.items()}
                for stream in missing:
                    fcntl.flock(files[stream.key], fcntl.LOCK_SH)
                    os.posix_fallocate(files[stream.key].fileno(), 0, stream.size)
            build({stream.key: _Writer(files[stream.key], stream) for stream in missing})
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            for stream in missing:
                parts[stream.key].rename(_path(place, stream))
            return {stream.key: FileStore(_path(place, stream), stream) for stream in missing}
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_disk(folder, needed, error.strerror) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _open(place: Path, stream: StreamFile) -> FileStore | None:
    """The stream's file, marked as used now; None if there is none that is whole."""
    path = _path(place, stream)
    try:
        if path.stat().st_size != stream.size:
            return None
        os.utime(path)
        return FileStore(path, stream)
    except FileNotFoundError:
        return None


def _path(place: Path, stream: StreamFile) -> Path:
    return place / f"{stream.name}{_WHOLE}"


def _make_room(folder: Path, needed: int, max_gb: float) -> None:
    """Remove files that nobody uses, those used longest ago first, until there is room for `needed` bytes.

    Raises:
        UserError: If that is not enough.
    """
    sizes = {path: path.stat() for suffix in (_WHOLE, _PART) for path in folder.glob(f"*/*{suffix}")}
    total = sum(stat.st_size for stat in sizes.values())
    if needed > max_gb * GB:
        raise UserError(
            f"the cache needs {needed / GB:.2f} GB, modality.cache_max_gb allows {max_gb:g} in {folder}; raise it, "
            "make images smaller with modality.resize, or set modality.cache: none."
        )
    for path in sorted(sizes, key=lambda path: sizes[path].st_mtime):
        if total + needed <= max_gb * GB and shutil.disk_usage(folder).free >= needed:
            return
        if _remove(path):
            total -= sizes[path].st_size
    if total + needed > max_gb * GB:
        raise UserError(
            f"the cache needs {needed / GB:.2f} GB, modality.cache_max_gb allows {max_gb:g} in {folder}, of which "
            f"{total / GB:.2f} are in use by running processes; raise it, or give another modality.cache_dir."
        )
    if shutil.disk_usage(folder).free < needed:
        raise _no_disk(folder, needed, f"{shutil.disk_usage(folder).free / GB:.2f} GB free")


def _remove(path: Path) -> bool:
    """Remove a file of the cache unless a process uses it, or writes it."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    logger.info("cache: removed %s, which was used longest ago, to make room.", path)
    return True


def _no_disk(folder: Path, needed: int, found: str | None) -> UserError:
    return UserError(
        f"the cache needs {needed / GB:.2f} GB in {folder}: {found}; free some, give another modality.cache_dir, make "
        "images smaller with modality.resize, or set modality.cache: none."
    )


@contextmanager
def _locked(path: Path, waiting: str) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                logger.warning(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
