"""A bound socket that one thread reads and every thread may answer on, without a hop through another thread.

ZeroMQ's sockets belong to one thread at a time; a lock is the full fence that lets them change hands. The reader
waits on the socket's file descriptor, which it may do without holding the lock.
"""

from __future__ import annotations

import logging
import selectors
import socket as system_sockets
import threading

import zmq

from simplify_work.wire import sockets

logger = logging.getLogger(__name__)


class Channel:
    """A ROUTER socket with a lock.

    Args:
        socket: Bound; the channel closes it.
    """

    def __init__(self, socket: zmq.Socket) -> None:
        self._socket = socket
        self._lock = threading.Lock()
        self._bell, self._ear = system_sockets.socketpair()
        for end in (self._bell, self._ear):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(socket.getsockopt(zmq.FD), selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)

    def receive(self, timeout_s: float) -> list[zmq.Frame] | None:
        """The next message, its sender's identity first; None if none came in time. For one thread only."""
        if (frames := self._next()) is not None:
            return frames
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._ear:
                self._ear.recv(4096)
        return self._next()

    def send(self, frames: list) -> None:
        """Hand a message to ZeroMQ; a client that is gone or does not read loses it, and nobody waits."""
        with self._lock:
            if self._socket.closed:
                return
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                logger.debug("a reply was dropped: its client does not read")
            # Sending may have consumed the file descriptor's news of a message that came meanwhile.
            missed = self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN
        if missed:
            self.wake()

    def wake(self) -> None:
        """Let `receive` look again at once."""
        try:
            self._bell.send(b"!")
        except OSError:  # rung often enough, or closed
            logger.debug("the bell was not rung", exc_info=True)

    def close(self, linger_ms: int) -> None:
        """Free the socket once what was sent is on its way, or after `linger_ms`."""
        with self._lock:
            self._socket.close(linger=linger_ms)
        self._selector.close()
        self._bell.close()
        self._ear.close()

    def _next(self) -> list[zmq.Frame] | None:
        with self._lock:
            if not self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                return None
            return sockets.receive(self._socket, zmq.NOBLOCK)
