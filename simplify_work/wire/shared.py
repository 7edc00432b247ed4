"""Arrays in shared memory, for a client and a server on one machine: they are copied twice and pass no socket.

The client writes to a segment under a random name in /dev/shm; the server opens it and takes the name away, so that
the memory vanishes with the two processes, however they end. Linux only; elsewhere arrays travel as frames.

Nothing that is read is torn: neither half of one picture and half of the next, nor pictures of one instant beside the
state of another. Two things see to that. *Slots*: a message has a slot of its own, and the writer comes back to it
after SLOTS - 1 others, so that reader and writer do not meet unless a client gave up so many requests; nobody waits
for anybody. *Stamps*, for when they do meet: each message has a number that no other has, its header (which passes
the socket) says it, and it stands before each of the message's arrays. A writer first takes away all stamps of the
slot, then writes each array and its stamp after it; a reader copies and then looks for the stamp that the header
says. So what is accepted was still all there when the copy ended, and all arrays of a message are of that message,
also those that found no room and came as its frames (with checksums). Anything else is refused, never mended: a newer
message is on its way. This is a sequence lock, except that the reader knows beforehand which number it wants: it need
not try again, and a writer that never pauses cannot keep it out. It costs nothing, where checksums would cost as much
as the copies.

A sequence lock is only as good as the order in which one processor's writes reach another. That they were written
before the header arrives is the socket's doing (the kernel's locks). That a taken stamp is seen before what is written
over the array, and that the copy is read before the second look at the stamp, x86 gives by itself: it shows stores in
order and loads in order. ARM promises neither, so both sides pass a fence there (`_Fence`); it is reasoned from ARM's
memory model, the tests ran on x86.

The server maps only what its own user made: a process that shortened its segment could end the server by it (SIGBUS),
but that user could end it anyway.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import secrets
import stat
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from simplify_work.wire.errors import WireFormatError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
NAME = re.compile(r"lrx_[0-9a-f]{32}")
SLOTS = 4  # two requests may be under way, and a third be put together, while a fourth was given up
MAX_BYTES = 1024 * 1024 * 1024

_ALIGNMENT = 64
_STAMP_BYTES = 64  # an integer of 8 bytes, and room for the alignment
_WRITING = 0
_REUSED_BYTES = 64 * 1024
_MAX_REUSED = 32  # four observations of eight pictures
# What the same expression gives for an array that only a list holds; every view of it would count, too.
_PROBE = [np.empty(0)]
_UNHELD = sys.getrefcount(_PROBE[0])


def size_of(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes that a slot needs for one message with these arrays."""
    return sum(_STAMP_BYTES + _aligned(array.nbytes) for array in arrays.values())


class SharedArrays:
    """A client's segment: a ring of slots, one for each message.

    Args:
        slot_bytes: From `size_of`.

    Raises:
        OSError: If there is no shared memory, or not enough of it.
    """

    def __init__(self, slot_bytes: int) -> None:
        if fcntl is None or not FOLDER.is_dir():
            raise OSError(f"this system has no shared memory in {FOLDER}")
        self.slot_bytes = max(_aligned(slot_bytes), _ALIGNMENT)
        self._lock = threading.Lock()
        self._fence = _Fence()
        self._slot = 0
        self._stamp = secrets.randbits(62)
        self._stamped: list[list[int]] = [[] for _ in range(SLOTS)]  # where, by slot
        remove_abandoned()
        self.name, self._file = _made(self.slot_bytes * SLOTS)
        try:
            self._map = mmap.mmap(self._file, self.slot_bytes * SLOTS)
        except BaseException:
            self.close()
            raise
        self._bytes = np.frombuffer(self._map, np.uint8)

    def place(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, int], int]:
        """Copy arrays to the next slot.

        Args:
            arrays: Contiguous.

        Returns:
            Name to offset in the segment, for the arrays that found room, and their stamp.
        """
        # Locked to the end: of more threads than there are slots two would write to one.
        with self._lock:
            slot, self._slot = self._slot, (self._slot + 1) % SLOTS
            self._stamp += 1
            stamp = self._stamp
            at, end = slot * self.slot_bytes, (slot + 1) * self.slot_bytes
            offsets, placed = {}, []
            for name, array in arrays.items():
                offset = at + _STAMP_BYTES
                if offset + array.nbytes <= end:
                    placed.append((at, offset, array))
                    offsets[name] = offset
                    at = offset + _aligned(array.nbytes)
            # All stamps before any byte: the last message's arrays may have been others, elsewhere in the slot.
            for at in self._stamped[slot]:
                _write_stamp(self._bytes, at, _WRITING)
            self._stamped[slot] = [at for at, _, _ in placed]
            self._fence.pass_()
            for at, offset, array in placed:
                self._bytes[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
                _write_stamp(self._bytes, at, stamp)
        return offsets, stamp

    def unlink(self) -> None:
        """Take the name away, if the server has not done so; the memory itself stays usable."""
        (FOLDER / self.name).unlink(missing_ok=True)

    def close(self) -> None:
        """Give it back. Nothing may be placed any more."""
        self.unlink()
        self._bytes = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class SharedView:
    """A server's access to a client's segment, whose name it takes away.

    Args:
        name: As the client's Hello gives it.

    Raises:
        WireFormatError: If there is no such segment of this user.
    """

    def __init__(self, name: str) -> None:
        if fcntl is None or not NAME.fullmatch(name):
            raise WireFormatError(f"'{name[:64]}' is no name of shared memory of this protocol.")
        path = FOLDER / name
        try:
            # Not to be held up by a pipe of that name.
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                about = os.fstat(file)
                if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
                    raise OSError("it is not a segment of this user")
                if not 0 < about.st_size <= MAX_BYTES:
                    raise OSError(f"it has {about.st_size} bytes, expected 1 to {MAX_BYTES}")
                path.unlink()
                self._bytes = np.frombuffer(mmap.mmap(file, about.st_size, prot=mmap.PROT_READ), np.uint8)
            finally:
                os.close(file)
        except OSError as error:
            raise WireFormatError(
                f"shared memory {path} cannot be used ({error}); do client and server run in one container, as one "
                "user?"
            ) from error
        self._copies: list[np.ndarray] = []
        self._fence = _Fence()

    def read(self, offset: int, nbytes: int, stamp: int) -> np.ndarray:
        """A copy of an array's bytes, (nbytes,) uint8; for one thread at a time.

        Raises:
            WireFormatError: If the segment does not reach that far, or the client wrote there meanwhile.
        """
        if not _STAMP_BYTES <= offset <= self._bytes.nbytes - nbytes:
            raise WireFormatError(
                f"shared memory has {self._bytes.nbytes} bytes, but {nbytes} at {offset} were announced."
            )
        whole = self._stamp_before(offset) == stamp != _WRITING  # this look spares copies in vain
        out = self._copy(nbytes)
        out[:] = self._bytes[offset : offset + nbytes]
        self._fence.pass_()
        if not whole or self._stamp_before(offset) != stamp:
            raise WireFormatError(
                f"the client wrote over its shared memory at {offset} before it was read; it no longer waits for "
                "that request."
            )
        return out

    def _stamp_before(self, offset: int) -> int:
        return int.from_bytes(self._bytes[offset - _STAMP_BYTES :][:8].tobytes(), "little")

    def close(self) -> None:
        """Give it back; nothing can be read any more."""
        self._bytes, self._copies = np.empty(0, np.uint8), []

    def _copy(self, nbytes: int) -> np.ndarray:
        """Room for one array: that of an earlier one which nobody holds any more.

        New memory costs the kernel more than the copy itself (1 ms for three 480x640 pictures, against 0.1 ms).
        """
        if nbytes < _REUSED_BYTES:
            return np.empty(nbytes, np.uint8)
        copies = self._copies
        for index in range(len(copies)):
            if copies[index].nbytes == nbytes and sys.getrefcount(copies[index]) == _UNHELD:
                copies.append(copies.pop(index))
                return copies[-1][:]
        copy = np.empty(nbytes, np.uint8)
        self._copies = [*self._copies[-_MAX_REUSED + 1 :], copy]
        return copy[:]


class _Fence:
    """Everything before `pass_` is done, as other processors see it, before anything after it; for one thread at a time.

    Python has no memory fence, but it has locks: giving one back ends with a release, taking it again begins with an
    acquire that reads what the release wrote, and neither may be passed in the direction that matters here. (One
    taken and given back would be none: what is before and what is after could both slip in between.)
    """

    def __init__(self) -> None:
        self._held = threading.Lock()
        self._held.acquire()

    def pass_(self) -> None:
        """Go through; 0.1 us."""
        self._held.release()
        self._held.acquire()


def remove_abandoned() -> None:
    """Remove segments whose makers died before a server took their names away."""
    for path in FOLDER.glob("lrx_*"):
        if not NAME.fullmatch(path.name):
            continue
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its maker holds this lock while it lives
            path.unlink(missing_ok=True)
            logger.info("removed shared memory %s that a dead program left", path)
        except OSError:
            continue
        finally:
            os.close(file)


def _made(nbytes: int) -> tuple[str, int]:
    """A new segment, locked by this process: its name and file."""
    while True:
        name = f"lrx_{uuid.uuid4().hex}"
        path = FOLDER / name
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink == 0:  # taken for abandoned before it was locked
                os.close(file)
                continue
            # Takes the memory now: a write to memory that is not there would be a SIGBUS.
            os.posix_fallocate(file, 0, nbytes)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(file)
            raise
        return name, file


def _write_stamp(memory: np.ndarray, at: int, stamp: int) -> None:
    memory[at : at + 8].view("<u8")[0] = stamp


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
