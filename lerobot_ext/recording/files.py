"""Files that are either as they were or as they should be, at whatever instant the process or the power fails.

A file is written under a temporary name beside its place, brought to the disk, and then renamed; `Staging` does that
for several files, writing all of them before the first one is renamed. What the files mean is none of this module's
business.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMP_SUFFIX = ".lerobot_ext.tmp"

_numbers = itertools.count()


def temp_beside(path: Path) -> Path:
    """A new name in `path`'s folder that no pattern of LeRobot's (`*.parquet`, `*.mp4`) matches; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}{TEMP_SUFFIX}")


def temp_files(folder: Path) -> list[Path]:
    """What a process that died left of `temp_beside` in `folder` and below."""
    return sorted(folder.rglob(f".*{TEMP_SUFFIX}")) if folder.is_dir() else []


def json_bytes(obj: Any) -> bytes:
    """`obj` as LeRobot writes JSON: indented by four, UTF-8."""
    return json.dumps(obj, indent=4, ensure_ascii=False).encode()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, durably, when the block ends without an error.

    Raises:
        OSError: It could not be written; `path` is as it was, and nothing is left beside it.
    """
    staging = Staging()
    try:
        yield staging.new(path)
        staging.commit()
    finally:
        staging.abort()


def replace_bytes(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, all or nothing, durably."""
    with replacing(path) as temp:
        temp.write_bytes(data)


def replace_json(path: Path, obj: Any) -> None:
    """Make `obj` the content of `path` as LeRobot writes JSON, all or nothing, durably."""
    replace_bytes(path, json_bytes(obj))


def append_line(path: Path, text: str) -> None:
    """Append one line to `path`, durably. A reader must pass over a last line without its end.

    Such a line, left by a process that died here, is ended first, so that it spoils no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(text.rstrip("\n").encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path]) -> None:
    """Bring several files to the disk at once: a file system writes its journal once for all that wait for it."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(sync, paths))


def remove(path: Path) -> int:
    """Remove a file or a folder with all that is in it, if it is there.

    Returns:
        Bytes that were in it.
    """
    if path.is_dir() and not path.is_symlink():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return size
    try:
        size = path.stat().st_size
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return size


class Staging:
    """Files that are all written before the first of them takes its place; the places are taken in order.

    A full disk is met before anything has changed. A process that dies while the places are taken leaves the first
    ones taken and the rest as they were, with temporary files that `temp_files` finds.
    """

    def __init__(self) -> None:
        self._moves: list[tuple[Path, Path]] = []
        self.committing = False

    def new(self, path: Path) -> Path:
        """A temporary name to write what `path` shall be."""
        temp = temp_beside(path)
        self._moves.append((temp, path))
        return temp

    def write(self, path: Path, data: bytes) -> None:
        """Stage `data` for `path`."""
        self.new(path).write_bytes(data)

    def move(self, source: Path, path: Path) -> None:
        """Stage the existing file `source`, which goes away, for `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev != path.parent.stat().st_dev:
            shutil.copyfile(source, self.new(path))
            os.unlink(source)
            return
        self._moves.append((source, path))

    def forget(self, temp: Path) -> None:
        """Take back a name that `new` gave, and remove what was written there."""
        self._moves = [move for move in self._moves if move[0] != temp]
        remove(temp)

    def sync(self) -> None:
        """Bring what is staged to the disk, so that `commit` has nothing left to do but renaming.

        Raises:
            OSError: With the system's words for it, when the disk is full for example.
        """
        sync_all(temp for temp, _ in self._moves)

    def commit(self) -> None:
        """Put everything in its place.

        Raises:
            OSError: If `committing` is False, nothing has changed; else some files are in their places.
        """
        self.sync()
        self.committing = True
        for temp, path in self._moves:
            os.replace(temp, path)
        folders = dict.fromkeys(path.parent for _, path in self._moves)
        # A folder that is new is an entry of its parent's.
        sync_all(dict.fromkeys([*folders, *(folder.parent for folder in folders)]))
        self._moves.clear()
        self.committing = False

    def abort(self) -> None:
        """Remove what is staged and not in its place."""
        for temp, _ in self._moves:
            with suppress(OSError):
                os.unlink(temp)
        self._moves.clear()
