"""Shared memory cannot tear: not an array, not an observation, however reader and writer meet.

Every byte of an observation is its number, so that a mixture shows. A writer in a process of its own writes without a
pause; and, for the moments that chance may never bring, one side is stopped at each of its steps while the other goes
on. The same checks run on a reader that does not look at stamps, and must find what is wrong with it.
"""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from simplify_work.wire import shared
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import WireFormatError
from simplify_work.wire.messages import Infer
from simplify_work.wire.shared import SLOTS, SharedArrays, SharedView, size_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's")

ROOT = Path(__file__).resolve().parents[2]
CAMERAS = ("top", "left", "right")
NUMBERS = 251  # observations with the same bytes are so far apart, many times round the ring
ALL_FIT, ONE_DOES_NOT = "all fit", "one camera does not fit"
SIZES = {ALL_FIT: (120, 160, 3), ONE_DOES_NOT: (60, 80, 3)}
TURNS = 60

_PREFIX = struct.Struct(">QI")
_PACKET = 1 << 16
_WAITING = 64


def observation(number: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Three cameras and a state of 14; every byte is the number."""
    byte = number % NUMBERS
    found = {f"observation.images.{name}": np.full(shape, byte, np.uint8) for name in CAMERAS}
    return found | {"observation.state": np.full(56, byte, np.uint8).view(np.float32)}


def segment(kind: str) -> SharedArrays:
    """Room for an observation; or, where the last camera shall go as a frame, not quite."""
    arrays = observation(0, SIZES[kind])
    if kind == ONE_DOES_NOT:
        del arrays["observation.images.right"]
    return SharedArrays(size_of(arrays))


def fault(arrays: dict[str, np.ndarray], number: int) -> str | None:
    """What is wrong with an observation that was accepted as that of the number; None: nothing."""
    numbers = set()
    for array in arrays.values():
        flat = array.reshape(-1).view(np.uint8)
        if flat.min() != flat.max():
            return "torn array"
        numbers.add(int(flat[0]))
    if len(numbers) > 1:
        return "torn observation"
    return None if numbers == {number % NUMBERS} else "another observation"


class Unstamped(SharedView):
    """A reader as one might write it: it copies, and looks at no stamp."""

    def read(self, offset: int, nbytes: int, stamp: int) -> np.ndarray:
        return self._bytes[offset : offset + nbytes].copy()


# --- a writer that never pauses, in a process of its own ---


def write_for_ever(kind: str, fd: int) -> None:
    """The writer: place, announce, go on; an announcement that finds no room is lost."""
    channel = socket.socket(fileno=fd)
    client = segment(kind)
    channel.sendall(client.name.encode())
    channel.recv(1)
    for number in itertools.count():
        frames = pack(Infer(request=number), observation(number, SIZES[kind]), shared=client)
        try:
            channel.sendmsg([_PREFIX.pack(number, len(frames[0])), *frames], (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError:  # the reader is gone
            return


class Writer:
    """Its process, and the newest of what it announced."""

    def __init__(self, kind: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET
        )  # what waits long is only good to be refused
        self._channel.settimeout(60)
        with theirs:
            command = [sys.executable, __file__, kind, str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        self.segment = self._channel.recv(100).decode()

    def start(self) -> None:
        """Let it write."""
        self._channel.send(b"!")

    def newest(self) -> tuple[int, list[bytes]]:
        """Number and frames of the last observation that it announced."""
        packet = self._channel.recv(_PACKET)
        for _ in range(_WAITING):  # no more wait at any time; the writer may be as fast as this loop
            try:
                packet = self._channel.recv(_PACKET, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        number, length = _PREFIX.unpack_from(packet)
        header = packet[_PREFIX.size : _PREFIX.size + length]
        rest = packet[_PREFIX.size + length :]
        return number, [header, *([rest] if rest else [])]

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self._process.wait(60)


@pytest.fixture
def writer(request) -> Iterator[Writer]:
    made = Writer(request.param)
    yield made
    made.close()


def watch(writer: Writer, view: SharedView, turns: int, enough: Callable[[Counter], bool]) -> Counter:
    """Read what the writer announced, from the newest to what it must have written over, and count what came of it."""
    found: Counter = Counter()
    writer.start()
    announced: deque[tuple[int, list[bytes]]] = deque(maxlen=2 * SLOTS)
    for _ in range(turns):
        announced.appendleft(writer.newest())  # waits for the writer to go on, however slow this machine is
        for number, frames in announced:
            try:
                _, arrays = unpack(frames, view)
            except WireFormatError as error:
                assert "wrote over" in str(error)
                found["refused"] += 1
            else:
                found[fault(arrays, number) or "whole"] += 1
        if enough(found):
            break
    return found


@pytest.mark.parametrize("writer", [ALL_FIT, ONE_DOES_NOT], indirect=True)
def test_what_is_accepted_is_one_observation(writer):
    found = watch(writer, SharedView(writer.segment), TURNS, lambda found: False)
    assert set(found) == {"whole", "refused"}, found


@pytest.mark.parametrize("writer", [ALL_FIT], indirect=True)
def test_the_same_watch_finds_a_reader_without_stamps(writer):
    def torn(found: Counter) -> int:
        return found["torn observation"] + found["torn array"]

    found = watch(writer, Unstamped(writer.segment), 20 * TURNS, lambda found: torn(found) >= 3)
    assert torn(found) >= 3, found
    assert not found["refused"]


# --- one side stopped at each of its steps ---


class Stopping:
    """A segment's bytes, seen by one side; at its step `stop` it waits while `meanwhile` runs.

    The steps: before each access, and half way through a large one, which is a copy (a small one is a stamp).
    """

    def __init__(self, memory: np.ndarray, stop: int, meanwhile: Callable[[], None]) -> None:
        self._memory, self._stop, self._meanwhile = memory, stop, meanwhile
        self.nbytes = memory.nbytes
        self.steps = 0

    def _turn(self) -> bool:
        self.steps += 1
        return self.steps == self._stop + 1

    def __getitem__(self, where: slice) -> np.ndarray:
        found = self._memory[where]
        if self._turn():
            self._meanwhile()
        if where.stop is None or where.stop - where.start <= 8:
            return found
        half = len(found) // 2
        first = found[:half].copy()
        if self._turn():
            self._meanwhile()
        return np.concatenate([first, found[half:]])

    def __setitem__(self, where: slice, what: np.ndarray) -> None:
        half = (where.start + where.stop) // 2
        if self._turn():
            self._meanwhile()
        self._memory[where.start : half] = what[: half - where.start]
        if self._turn():
            self._meanwhile()
        self._memory[half : where.stop] = what[half - where.start :]


SMALL = (8, 8, 3)
# Fewer and other arrays: their stamps lie where the observation's pictures are.
OTHER = {"a": np.full(200, 77, np.uint8), "b": np.full(400, 78, np.uint8)}


@pytest.fixture
def client():
    made = SharedArrays(size_of(observation(0, SMALL)))
    yield made
    made.close()


def packed(client: SharedArrays, number: int) -> list:
    return pack(Infer(request=number), observation(number, SMALL), shared=client)


def outcome(frames: list, view: SharedView, number: int) -> str:
    try:
        _, arrays = unpack(frames, view)
    except WireFormatError as error:
        assert "wrote over" in str(error)
        return "refused"
    return fault(arrays, number) or "whole"


def stopped_reader(client: SharedArrays, view: SharedView) -> Counter:
    """Outcomes of a reader that is stopped at each step, while the writer goes 0 to 2 times round the ring."""
    found: Counter = Counter()
    memory, numbers = view._bytes, itertools.count()
    for placed, other in itertools.product(range(2 * SLOTS + 1), (False, True)):
        for stop in itertools.count():
            number = next(numbers)
            frames = packed(client, number)

            def meanwhile(placed=placed, other=other) -> None:
                for _ in range(placed):
                    if other:
                        pack(Infer(request=0), OTHER, shared=client)
                    else:
                        packed(client, next(numbers))

            view._bytes = Stopping(memory, stop, meanwhile)
            result = outcome(frames, view, number)
            if placed < SLOTS:
                assert result == "whole", (placed, stop)
            found[result] += 1
            if stop >= view._bytes.steps:  # there is no such step
                break
    view._bytes = memory
    return found


def test_a_reader_stopped_at_any_step_takes_nothing_torn(client):
    view = SharedView(client.name)
    found = stopped_reader(client, view)
    assert set(found) == {"whole", "refused"}, found


def test_stopping_it_finds_every_fault_of_a_reader_without_stamps(client):
    found = stopped_reader(client, Unstamped(client.name))
    assert found["torn array"]
    assert found["torn observation"]
    assert not found["refused"]


def test_a_writer_stopped_at_any_step_gives_nothing_torn(client):
    """All messages that are still announced are read while the writer stands still in the middle of one."""
    view = SharedView(client.name)
    memory, numbers = client._bytes, itertools.count()
    found: Counter = Counter()
    for other in (False, True):
        for stop in itertools.count():
            earlier = deque(((n := next(numbers)), packed(client, n)) for _ in range(SLOTS))

            def meanwhile(earlier=earlier) -> None:
                oldest, *rest = [outcome(frames, view, number) for number, frames in earlier]
                assert rest == ["whole"] * (SLOTS - 1)
                found[oldest] += 1

            client._bytes = Stopping(memory, stop, meanwhile)
            if other:
                pack(Infer(request=0), OTHER, shared=client)
            else:
                number = next(numbers)
                assert outcome(packed(client, number), view, number) == "whole"
            steps, client._bytes = client._bytes.steps, memory
            if stop >= steps:
                break
    # Whole only before the first stamp was taken away.
    assert found["whole"] == 2
    assert set(found) == {"whole", "refused"}, found


def test_a_thread_that_goes_round_the_ring_does_not_write_where_another_still_writes(client):
    view = SharedView(client.name)
    memory, found = client._bytes, Counter()
    for stop in itertools.count():
        lapping = threading.Thread(target=lambda: [packed(client, 100 + k) for k in range(SLOTS)])

        def meanwhile(lapping=lapping) -> None:
            client._bytes = memory
            lapping.start()
            lapping.join(0.05)  # as far as it gets: it may have to wait for this one

        stopping = client._bytes = Stopping(memory, stop, meanwhile)
        frames = packed(client, stop)
        client._bytes = memory
        if stop >= stopping.steps:
            break
        found[outcome(frames, view, stop)] += 1
        lapping.join()
        found[outcome(frames, view, stop)] += 1
    assert found["refused"]
    assert set(found) <= {"whole", "refused"}, found


def test_nothing_has_a_name_any_more(client):
    SharedView(client.name)
    assert not (shared.FOLDER / client.name).exists()


if __name__ == "__main__":
    write_for_ever(sys.argv[1], int(sys.argv[2]))
