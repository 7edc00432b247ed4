"""A port on which the lab shows pictures to whoever subscribes; what is in a message is decided elsewhere."""

from __future__ import annotations

import contextlib

import numpy as np
import zmq

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.refusals import Refusals

MAX_REQUEST_BYTES = 1 << 16  # libzmq drops whoever announces more, before allocating it
MAX_TOPICS = 64


class Publisher:
    """A PUB socket that knows whether anybody listens and never waits for those who are slow."""

    def __init__(self, context: zmq.Context, name: str, address: str, refusals: Refusals) -> None:
        """Bind to `address`.

        Raises:
            UserError: If it is taken.
        """
        self._socket = context.socket(zmq.XPUB)
        self._socket.sndhwm = 2
        self._socket.maxmsgsize = MAX_REQUEST_BYTES
        self._topics: set[bytes] = set()
        self._name, self._refusals = name, refusals
        refusals.watch(name, self._socket)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise UserError(
                f"the lab's wrist camera cannot use {address} ({error.strerror}); "
                "another lab may run there: choose another port with --wrist_port."
            ) from error

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes."""
        while self._socket.get(zmq.EVENTS) & zmq.POLLIN:
            event, *others = self._socket.recv_multipart()
            if event[:1] == b"\x01" and not others and len(self._topics) < MAX_TOPICS:
                self._topics.add(event[1:])
            elif event[:1] == b"\x00" and not others:
                self._topics.discard(event[1:])
            else:
                self._refusals.note(self._name, "a message that is no subscription")
        return bool(self._topics)

    def send(self, *parts: bytes | np.ndarray) -> None:
        """Send one message; subscribers that are too slow miss it."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=True)
