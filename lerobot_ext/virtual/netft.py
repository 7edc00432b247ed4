"""An ATI Net F/T on a UDP port of this computer: RDT requests in, records out.

Written from the sensor's manual (UDP Interface Using RDT), without the driver's code, so that a mistake in one of them
shows. Its web page is not here: whoever uses it gives the driver the counts.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

import numpy as np

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.wrench import WrenchSource

RATE_HZ = 500
COUNTS_PER_FORCE = COUNTS_PER_TORQUE = 1_000_000
COUNTS = np.array([COUNTS_PER_FORCE] * 3 + [COUNTS_PER_TORQUE] * 3, float)
REQUESTS_AT_ONCE = 16  # in a tick
STOP, START, BUFFERED, ONE, BIAS = 0, 2, 3, 1, 0x42
WRAP = 1 << 32


@dataclass
class DatagramFaults:
    """What is wrong with the sensor or its network, changeable while it runs.

    Attributes:
        silent: Sends nothing.
        lost, repeated: Share of records that do not arrive, or arrive a second time after the next one.
        strange: Share of records before which a datagram comes that is none.
        status: The status word of all records.
        seed: Of the choice.
    """

    silent: bool = False
    lost: float = 0.0
    repeated: float = 0.0
    strange: float = 0.0
    status: int = 0
    seed: int = 0


class NetFTServer:
    """The sensor, from construction to `close`; one client at a time, as the real one. It waits for nobody.

    Attributes:
        port: Its UDP port.
        faults: What is wrong with it.
        client: Where it streams to; None while it does not.
    """

    def __init__(self, port: int, seed: int = 0, host: str = "127.0.0.1") -> None:
        """Bind `port` (0: any that is free).

        Raises:
            UserError: It is taken.
        """
        self.source = WrenchSource(seed)
        self.faults = DatagramFaults()
        self.client: tuple | None = None
        self._left = 0  # records still to send; 0: no end
        self._rdt = 0
        self._ft = 0
        self._fraction = 0.0
        self._again: bytes | None = None
        self._rng = np.random.default_rng(self.faults.seed)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"the lab's Net F/T cannot use UDP port {port} ({error.strerror}); choose another --netft_port."
            ) from error
        self.port = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def tick(self, dt: float, force: np.ndarray) -> None:
        """`dt` seconds have passed under `force` (N, (3,)): hear requests, send the records of that time."""
        self._hear()
        self._fraction += dt * RATE_HZ
        count = int(self._fraction)
        self._fraction -= count
        if self.client is None or self.faults.silent:
            self._ft = (self._ft + count) % WRAP
            return
        for _ in range(count):
            self._ft = (self._ft + 1) % WRAP
            self._record(force)
            if self.client is None:
                return

    def _hear(self) -> None:
        for _ in range(REQUESTS_AT_ONCE):
            try:
                data, client = self._socket.recvfrom(64)
            except BlockingIOError:
                return
            except OSError:  # an answer to what a client that is gone was sent
                self.client = None
                continue
            if len(data) != 8:
                continue
            magic, command, records = struct.unpack(">HHI", data)
            if magic != 0x1234:
                continue
            if command == STOP:
                self.client = None
            elif command in (START, BUFFERED, ONE):
                self.client, self._left, self._rdt = client, records, 0
            elif command == BIAS:
                self.source.offset = np.zeros(6)

    def _record(self, force: np.ndarray) -> None:
        counts = np.rint(self.source.measure(force) * COUNTS).astype(np.int64)
        self._rdt = (self._rdt + 1) % WRAP
        record = struct.pack(">3I6i", self._rdt, self._ft, self.faults.status, *counts.tolist())
        again, self._again = self._again, None
        chance = self._rng.random
        if self.faults.strange and chance() < self.faults.strange:
            self._send(b"hello")
        if not (self.faults.lost and chance() < self.faults.lost):
            self._send(record)
        if again is not None:
            self._send(again)
        elif self.faults.repeated and chance() < self.faults.repeated:
            self._again = record
        if self._left:
            self._left -= 1
            if not self._left:
                self.client = None

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self._socket.sendto(data, self.client)
