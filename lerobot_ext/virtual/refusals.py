"""What the lab could not read on its ports: counted, and the first ones logged, so that garbage cannot fill the disk.

Which port takes what is in `lab`; nothing that is refused is looked at any further.
"""

from __future__ import annotations

import logging
from collections import Counter

import zmq
from zmq.utils.monitor import recv_monitor_message

logger = logging.getLogger(__name__)

_LOGGED = 10  # of each port
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Refusals:
    """The lab's count of them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._doors: list[tuple[str, zmq.Socket]] = []

    @property
    def count(self) -> int:
        """How many there were at all ports."""
        return self._counts.total()

    def note(self, port: str, what: str) -> None:
        """Something arrived at `port` that is not for it."""
        self._counts[port] += 1
        if self._counts[port] <= _LOGGED:
            last = " (further ones are only counted)" if self._counts[port] == _LOGGED else ""
            logger.warning("refused at '%s': %s%s", port, what, last)

    def watch(self, port: str, socket: zmq.Socket) -> None:
        """Notice connections to a ZeroMQ socket of somebody who does not speak ZeroMQ."""
        self._doors.append((port, socket.get_monitor_socket(_FAILED)))

    @property
    def monitors(self) -> list[zmq.Socket]:
        """Where something arrives when there is something to `look` at."""
        return [monitor for _, monitor in self._doors]

    def look(self) -> None:
        """Note the connections that failed since the last look; never waits."""
        for port, monitor in self._doors:
            while monitor.get(zmq.EVENTS) & zmq.POLLIN:
                recv_monitor_message(monitor)
                self.note(port, "a connection that broke off before it had said in ZeroMQ's words who it is")
