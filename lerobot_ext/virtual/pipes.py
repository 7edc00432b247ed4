"""The inside of `network`: how bytes are paced, delayed and held on their way through a link, all in one event loop.

A way is one direction of the link, a connection is a client's socket and the one to the target, a pipe is one direction
of one connection. Threads, the listening port and the command are in `network`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 1460
"""Payload of a TCP segment on Ethernet; `loss` is per segment."""

RETRANSMISSION_S = 0.2
"""How long a lost segment holds up the ones behind it: Linux's least retransmission time."""

_LARGEST_PIECE = 1 << 18
_PIECE_S = 0.002  # a piece is what the link carries in this time: the grain of the pacing
_AHEAD_S = 0.01  # read so far ahead of the link that a late wake-up of the thread does not leave it idle
_MAX_IN_FLIGHT = (
    1 << 26
)  # bytes under way in one direction of a connection; limits memory on a fast and long link
_SOCKET_BUFFER = 1 << 18  # what the kernel holds before the link; a sender notices the link's pace after this
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass(frozen=True)
class Conditions:
    """How the link is, the same in both directions.

    Attributes:
        bandwidth_mbit: Megabits a second, shared by all connections, each direction its own; None is unlimited.
        delay_ms: From one end to the other. Bytes follow each other on the way: it does not reduce the throughput.
        jitter_ms: Up to so much is added to the delay, evenly distributed; the order is kept.
        loss: Probability that a segment of SEGMENT_BYTES is lost, from 0 to 1. TCP loses no bytes, so a loss is what a
            program would see of it: this and the following bytes arrive RETRANSMISSION_S later. Segments lost together
            are repeated together, and the sender does not slow down, as TCP's congestion control would.
    """

    bandwidth_mbit: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: If one is left.
        """
        if self.bandwidth_mbit is not None and not 0 < self.bandwidth_mbit < math.inf:
            raise ValueError(
                f"bandwidth_mbit is {self.bandwidth_mbit}; it must be above 0, or None for no limit."
            )
        for name in ("delay_ms", "jitter_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss is {self.loss}; it is a probability, from 0 to 1.")

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth; infinite without a limit."""
        return math.inf if self.bandwidth_mbit is None else self.bandwidth_mbit * 1e6 / 8


class Way:
    """One direction of the link: its conditions, and until when the bytes given to it keep it busy."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, conditions: Conditions, random_numbers: random.Random
    ) -> None:
        self.loop = loop
        self.delivered = 0
        self.open = True
        self.limit: int | None = None  # `delivered` at which `at_limit` is called
        self.at_limit: Callable[[], None] = lambda: None
        self._random = random_numbers
        self._free_at = 0.0
        self.change(conditions)

    def change(self, conditions: Conditions) -> None:
        """Apply to what is sent from now on."""
        self.conditions = conditions
        self._rate = conditions.bytes_per_s
        self.piece = int(min(max(self._rate * _PIECE_S, SEGMENT_BYTES), _LARGEST_PIECE))
        self._free_at = min(self._free_at, self.loop.time() + _AHEAD_S)

    def send(self, n_bytes: int, *, waiting: bool) -> float:
        """Take bytes; returns when they arrive at the other end.

        Args:
            n_bytes: How many.
            waiting: They were there before they were read, so that the link was not idle meanwhile.
        """
        conditions = self.conditions
        now = self.loop.time()
        start = max(self._free_at, now - _AHEAD_S if waiting else now)
        self._free_at = start + n_bytes / self._rate
        late = self._random.random() * conditions.jitter_ms * 1e-3 if conditions.jitter_ms else 0.0
        if conditions.loss:
            kept = (1 - conditions.loss) ** math.ceil(n_bytes / SEGMENT_BYTES)
            late += RETRANSMISSION_S if self._random.random() >= kept else 0.0
        return max(self._free_at, now) + conditions.delay_ms * 1e-3 + late

    def wait_s(self) -> float:
        """How long a reader waits before it takes the next piece."""
        return self._free_at - self.loop.time() - _AHEAD_S


class Connection:
    """A client's socket, the one to the target, and a pipe for each direction."""

    def __init__(
        self, client: socket.socket, target: tuple[str, int], up: Way, down: Way, all_of_them: set[Connection]
    ) -> None:
        self._client = client
        self._client.setblocking(False)
        self._all = all_of_them
        self._all.add(self)
        self._server = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        self._server.setblocking(False)
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        self.up = Pipe(up, self._client, self._server, self)
        self.down = Pipe(down, self._server, self._client, self)
        self._connecting = up.loop.create_task(self._connect(target))

    async def _connect(self, target: tuple[str, int]) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(self._server, target)
        except OSError as error:
            logger.debug("nobody listens at %s:%d (%s)", *target, error)
            self.abort()
            return
        self.up.begin()
        self.down.begin()

    def go_on(self) -> None:
        """After a cut."""
        self.up.go_on()
        self.down.go_on()

    def pipe_ended(self) -> None:
        """Close both sockets once both directions have come to their end."""
        if self.up.ended and self.down.ended:
            self._leave()
            self._client.close()
            self._server.close()

    def abort(self) -> None:
        """Reset both ends."""
        self._leave()
        reset(self._client)
        reset(self._server)

    def _leave(self) -> None:
        self._connecting.cancel()
        self.up.stop()
        self.down.stop()
        self._all.discard(self)


class Pipe:
    """One direction of one connection: pieces read from the source, delivered to the sink when they are due."""

    def __init__(self, way: Way, source: socket.socket, sink: socket.socket, connection: Connection) -> None:
        self.ended = False
        self._way = way
        self._loop = way.loop
        self._source = source
        self._sink = sink
        self._connection = connection
        self._under_way: deque[tuple[float, memoryview]] = deque()  # empty bytes: the source has closed
        self._in_flight = 0
        self._last_due = 0.0
        self._waited = False
        self._stopped = False
        self._begun = False
        self._eof = False
        self._read_timer: asyncio.TimerHandle | None = None
        self._delivery_timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The connection stands."""
        self._begun = True
        self.go_on()

    def go_on(self) -> None:
        """Read and deliver, as far as the link is open."""
        if self._begun and not self._stopped and self._way.open:
            if not self._eof:
                self._loop.add_reader(self._source, self._read)
            self._deliver()

    def stop(self) -> None:
        """For good."""
        self._stopped = True
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        for timer in (self._read_timer, self._delivery_timer):
            if timer is not None:
                timer.cancel()

    def inject(self, data: bytes) -> None:
        """Deliver these bytes next."""
        self._under_way.appendleft((0.0, memoryview(data)))
        self._in_flight += len(data)
        self.go_on()

    def _read(self) -> None:
        way = self._way
        if not way.open or way.wait_s() > 0 or self._in_flight >= _MAX_IN_FLIGHT:
            self._pause()
            return
        try:
            data = self._source.recv(way.piece)
        except BlockingIOError:
            return
        except OSError:
            self._connection.abort()
            return
        due = way.send(len(data), waiting=self._waited)
        self._waited = len(data) == way.piece
        self._last_due = due = max(due, self._last_due)
        self._under_way.append((due, memoryview(data)))
        self._in_flight += len(data)
        if not data:
            self._eof = True
            self._loop.remove_reader(self._source)
        elif way.wait_s() > 0:
            self._pause()
        if len(self._under_way) == 1:
            self._deliver()

    def _pause(self) -> None:
        """Do not read until the link, or the memory, has room; `go_on` or a delivery ends the other waits."""
        self._loop.remove_reader(self._source)
        wait_s = self._way.wait_s()
        if self._way.open and self._in_flight < _MAX_IN_FLIGHT:
            self._read_timer = self._loop.call_later(max(wait_s, 0.0), self.go_on)

    def _deliver(self) -> None:
        """Hand over what is due, and come back for the rest."""
        way = self._way
        self._loop.remove_writer(self._sink)
        if self._delivery_timer is not None:
            self._delivery_timer.cancel()
            self._delivery_timer = None
        was_full = self._in_flight >= _MAX_IN_FLIGHT
        while self._under_way and way.open and not self._stopped:
            due, data = self._under_way[0]
            if due > self._loop.time():
                self._delivery_timer = self._loop.call_at(due, self._deliver)
                break
            try:
                if not self._hand_over(data):
                    self._loop.add_writer(self._sink, self._deliver)
                    break
            except OSError:
                self._connection.abort()
                return
        if was_full and self._in_flight < _MAX_IN_FLIGHT:
            self.go_on()

    def _hand_over(self, data: memoryview) -> bool:
        """Give the first piece to the kernel; False if it did not take it all."""
        way = self._way
        if not data:
            self._under_way.popleft()
            self._sink.shutdown(socket.SHUT_WR)
            self.ended = True
            self._connection.pipe_ended()
            return True
        wanted = data if way.limit is None else data[: way.limit - way.delivered]
        try:
            sent = self._sink.send(wanted)
        except BlockingIOError:
            return False
        way.delivered += sent
        self._in_flight -= sent
        if sent == len(data):
            self._under_way.popleft()
        else:
            self._under_way[0] = (0.0, data[sent:])
        if way.limit is not None and way.delivered >= way.limit:
            way.at_limit()
            return True
        return sent == len(wanted)


def reset(end: socket.socket) -> None:
    """Close a socket so that its peer gets RST."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
