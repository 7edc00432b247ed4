"""A fresh folder for the socket of an `ipc://` address, which only its maker's user may enter.

The maker locks it as long as it lives, so that a later program can tell a folder in use from one that was left by a
kill, and remove the latter. What is said over the socket lives elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simplify_work.wire.address import MAX_IPC_PATH

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

PREFIX = "lrx_ipc_"
SOCKET = "socket"

_NAME = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")
_SHORT = "/tmp"  # where the user's own folder for temporary files has a name that is too long for a socket


class PrivateFolder:
    """A folder of mode 0700 with a random name, which exists until `close` or the next maker's start.

    Attributes:
        path: The folder.
        address: `ipc://…` of the socket that may be bound in it.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self.path, self._lock = _made()
        self.address = f"ipc://{self.path / SOCKET}"

    def close(self) -> None:
        """Remove it with its socket; again does nothing."""
        if self._lock is not None:
            remove(self.path)
            os.close(self._lock)
            self._lock = None


def remove(folder: Path) -> None:
    """Remove a private folder and its socket; one with another name is not touched."""
    if not _NAME.fullmatch(folder.name):
        return
    with contextlib.suppress(OSError):
        (folder / SOCKET).unlink(missing_ok=True)
        folder.rmdir()


def remove_abandoned() -> None:
    """Remove the private folders whose makers were killed."""
    if fcntl is None:
        return
    for path in _private_folders():
        try:
            file = _opened(path)
        except OSError:  # somebody else's, or gone
            continue
        try:
            if os.fstat(file).st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its maker holds this lock while it lives
                remove(path)
                logger.info("removed %s, which a dead program left", path)
        except OSError:
            continue
        finally:
            os.close(file)


def _made() -> tuple[Path, int]:
    """A new folder, locked by this process, and its file."""
    base = tempfile.gettempdir()
    if len(os.fsencode(Path(base) / f"{PREFIX}{8 * 'x'}" / SOCKET)) > MAX_IPC_PATH:
        base = _SHORT
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        file = _opened(path)
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.is_dir():
            return path, file
        os.close(file)  # taken for abandoned before it was locked


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _private_folders() -> Iterator[Path]:
    for base in {tempfile.gettempdir(), _SHORT}:
        with contextlib.suppress(OSError):
            yield from (path for path in Path(base).glob(f"{PREFIX}*") if _NAME.fullmatch(path.name))
