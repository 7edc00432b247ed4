"""One process at a time records to a folder or tidies it up.

The lock is the system's, on the folder itself: it needs no file, and ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path


class InUseError(OSError):
    """Another process records to the folder; `errno` is EBUSY."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            errno.EBUSY,
            f"another process is recording to {root}; wait for its end (or end it), or record to another folder.",
        )

    def __str__(self) -> str:
        return str(self.strerror)


_held: dict[tuple[int, int], list[int]] = {}  # folder -> its descriptor, and by how many of us it is held


def take(root: Path) -> None:
    """Lock the folder for this process, which may do so several times.

    Raises:
        InUseError: Another process has it.
    """
    descriptor = os.open(root, os.O_RDONLY)
    key = _key(descriptor)
    if key in _held:
        os.close(descriptor)
        _held[key][1] += 1
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUseError(root) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _held[key] = [descriptor, 1]


def release(root: Path) -> None:
    """Undo one `take`."""
    with suppress(FileNotFoundError):
        found = os.stat(root)
        key = found.st_dev, found.st_ino
        if key in _held:
            _held[key][1] -= 1
            if not _held[key][1]:
                os.close(_held.pop(key)[0])


def check_free(root: Path) -> None:
    """Raise `InUseError` if another process has the folder."""
    take(root)
    release(root)


def _key(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _forget_in_child() -> None:
    """A forked encoder must not keep the folder locked after the recording's death."""
    for descriptor, _ in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
