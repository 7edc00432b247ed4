"""One socket through which several threads ask at once, each with its own deadline.

ZeroMQ sockets belong to one thread at a time. So of the threads that wait for a reply one leads: it alone sends,
polls and receives, for the others, too; when its own reply is there, the next one leads. A lone caller is its own
leader and pays for none of it but a lock that nobody else wants. What the messages mean is the business of `client`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket as system
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from simplify_work.wire import sockets
from simplify_work.wire.address import Address
from simplify_work.wire.codec import unpack
from simplify_work.wire.errors import (
    RemoteError,
    ServerStopped,
    ServerUnreachable,
    WireFormatError,
    from_wire,
)
from simplify_work.wire.keys import ClientKeys
from simplify_work.wire.messages import AnyMessage, Bye, Error

logger = logging.getLogger(__name__)

# How soon a leader notices that the connection is gone; polling so rarely costs nothing.
_LOOK_S = 0.2
# libzmq tries a lost connection again after the first of these (plus as much again at random), doubled each time up
# to the second: soon enough that a server that is back is found at once.
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 1000

_GOODBYE_LINGER_MS = 200
_CLOSE_WAIT_S = 1.0


class NotSent(TimeoutError):  # noqa: N818
    """There was no connection up to the deadline."""


class Reply:
    """What came back for one request.

    Attributes:
        message: Of the server.
        arrays: By name, views of the received frames.
        received_s: `perf_counter` when it was read from the socket.
    """

    __slots__ = ("arrays", "message", "received_s")

    def __init__(self, message: AnyMessage, arrays: dict[str, np.ndarray], received_s: float) -> None:
        self.message = message
        self.arrays = arrays
        self.received_s = received_s


class _Call:
    """A request under way; `ready` is there only if another thread leads, and set once it is over or shall lead."""

    __slots__ = ("error", "frames", "on_reply", "ready", "reply", "request", "sent")

    def __init__(
        self, request: int, frames: Sequence[Any], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        self.request = request
        self.frames = frames
        self.on_reply = on_reply
        self.ready: threading.Event | None = None
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self.sent = False

    @property
    def over(self) -> bool:
        return self.reply is not None or self.error is not None

    def end(self, reply: Reply | None, error: Exception | None) -> None:
        self.reply, self.error = reply, error
        if self.ready is not None:
            self.ready.set()


class Channel:
    """Requests and replies over one DEALER socket, matched by their numbers.

    Args:
        address: Of the server.
        identity: Names this client to the server, also after the connection was lost.
        keys: To encrypt with.

    Attributes:
        epoch: Changes whenever the server may have forgotten this client.
    """

    def __init__(self, address: Address, identity: bytes, keys: ClientKeys | None = None) -> None:
        self.epoch = 0
        self._address = address
        self._identity = identity
        self._keys = keys
        self._name = address.endpoint
        # Guards everything below but the socket and the poller, which are the leader's.
        self._lock = threading.RLock()
        self._leader: _Call | None = None
        self._calls: dict[int, _Call] = {}
        self._unsent: deque[_Call] = deque()
        self._goodbye: Sequence[Any] | None = None
        self._closed = threading.Event()
        self._socket: zmq.Socket | None = None
        self._watch: sockets.HandshakeWatch | None = None
        self._poller = zmq.Poller()
        self._events = zmq.POLLIN
        # Wakes the leader. Sockets and not an eventfd, which only Linux has.
        self._bell, self._rope = system.socketpair()
        self._rope.setblocking(False)
        self._poller.register(self._bell, zmq.POLLIN)

    def exchange(self, frames: Sequence[Any], request: int, deadline: float) -> Reply:
        """Send a request, and wait for the reply of its number.

        Args:
            frames: Of the message.
            request: Its number; no other call under way may have it.
            deadline: By `time.monotonic`.

        Raises:
            NotSent: If there was no connection up to the deadline.
            TimeoutError: If there was no answer up to the deadline.
            KeyRefused: If the keys are at fault.
            ServerUnreachable: If the connection was lost meanwhile.
            ServerStopped: If the server said goodbye.
            RemoteError: As described by the server, or if what it sent is not valid.
        """
        call = _Call(request, frames)
        with self._lock:
            self._calls[request] = call
            self._unsent.append(call)
            if leads := self._leader is None:
                self._leader = call
            else:
                call.ready = threading.Event()
                self._ring()
        try:
            if not leads:
                call.ready.wait(max(0.0, deadline - time.monotonic()))
            if self._leader is call:
                self._lead(call, deadline)
        except BaseException:
            if self._leader is call:  # half a message may have been sent, or half a one read
                self._drop(ServerUnreachable(f"another call gave up the connection to {self._name}."))
            raise
        finally:
            self._leave(call)
        if call.error is not None:
            raise call.error
        if call.reply is None:
            raise TimeoutError if call.sent else NotSent
        return call.reply

    def post(self, frames: Sequence[Any], request: int, on_reply: Callable[[Reply], None]) -> None:
        """Put a small request before the next `exchange`; `on_reply` is called if it is answered while somebody waits."""
        with self._lock:
            call = self._calls[request] = _Call(request, frames, on_reply)
            self._unsent.append(call)

    def drop_if_idle(self) -> None:
        """Throw away the socket with all that is queued in it, unless another thread waits for a reply."""
        with self._lock:
            if self._leader is None:
                self._drop(None)

    def close(self, goodbye: Sequence[Any]) -> None:
        """Send a last message and close the socket; a later `exchange` opens a new one."""
        with self._lock:
            self._goodbye, waits = goodbye, self._leader is not None
            self._closed.clear()
            if waits:
                self._ring()
            else:
                self._say_goodbye()
        if waits:
            self._closed.wait(_CLOSE_WAIT_S)

    def __del__(self) -> None:
        """Free both ends of the bell."""
        for end in (getattr(self, "_bell", None), getattr(self, "_rope", None)):
            if end is not None:
                end.close()

    def _ring(self) -> None:
        """Wake the leader."""
        with contextlib.suppress(BlockingIOError):  # it rings already
            self._rope.send(b"\0")

    def _leave(self, call: _Call) -> None:
        """Forget a call; if it led, let another one lead."""
        with self._lock:
            self._calls.pop(call.request, None)
            if call in self._unsent:
                self._unsent.remove(call)
            if self._leader is not call:
                return
            self._leader = next((other for other in self._calls.values() if other.ready is not None), None)
            if self._leader is not None:
                self._leader.ready.set()

    # --- the leader's part ---

    def _lead(self, call: _Call, deadline: float) -> None:
        """Send, poll and receive for everybody until `call` is over or its deadline has come."""
        while True:
            if self._socket is None:
                self._open()
            self._receive()  # first of all late replies, and a goodbye said while nobody was waiting
            if self._socket is None and not call.over:
                continue
            if self._goodbye is not None:
                self._say_goodbye()
            if call.over:
                return
            connected = self._send()
            remaining = deadline - time.monotonic()
            if call.over or remaining <= 0:
                return
            if not connected:
                self._watch.check()
            if self._events != (events := zmq.POLLIN if connected else zmq.POLLIN | zmq.POLLOUT):
                self._poller.modify(self._socket, events)
                self._events = events
            for ready, _ in self._poller.poll(math.ceil(1000 * min(remaining, _LOOK_S))):
                if ready is not self._socket:
                    self._bell.recv(4096)

    def _open(self) -> None:
        """Begin to connect, in the background."""
        # The same context with other defaults for its sockets. What was asked of a server that went away must not
        # be waiting for it when it comes back, so nothing is queued while there is no connection.
        context = zmq.Context(zmq.Context.instance())
        context.immediate = True
        context.reconnect_ivl = _RECONNECT_MS
        context.reconnect_ivl_max = _RECONNECT_MAX_MS
        self._socket = sockets.dealer(context, self._address, self._identity, self._keys)
        self._watch = sockets.HandshakeWatch(self._socket, self._address, self._keys)
        self._poller.register(self._socket, self._events)

    def _shut(self, linger_ms: int = 0) -> None:
        if self._socket is not None:
            self._poller.unregister(self._socket)
            self._watch.close()
            self._socket.close(linger=linger_ms)
            self._socket = self._watch = None

    def _send(self) -> bool:
        """Send what waits to be sent; False if there is no connection."""
        while True:
            with self._lock:
                if not self._unsent:
                    break
                call = self._unsent.popleft()
            try:
                self._socket.send_multipart(call.frames, zmq.NOBLOCK, copy=False)
                call.sent, call.frames = True, ()
            except zmq.Again:
                with self._lock:
                    if call.request in self._calls:
                        self._unsent.appendleft(call)
                break
        if self._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
            return True
        self._lose()
        return False

    def _receive(self) -> None:
        """Take in all that has arrived."""
        while self._socket is not None and self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            frames = sockets.receive(self._socket, zmq.NOBLOCK)
            received_s = time.perf_counter()
            try:
                self._take(Reply(*unpack(frames), received_s))
            except WireFormatError as error:
                self._drop(error)

    def _take(self, reply: Reply) -> None:
        """Give a message to whom it is for; one for nobody is a late reply, and dropped."""
        message = reply.message
        if isinstance(message, Bye):
            logger.info("%s said goodbye: %s", self._name, message.reason)
            self._drop(ServerStopped(f"the server at {self._name} said goodbye: {message.reason}"))
            return
        error = from_wire(message.error, message.text) if isinstance(message, Error) else None
        request = getattr(message, "request", None)
        if error is not None and request is None:  # the server could not read what it got
            self._fail(error)
            return
        with self._lock:
            call = self._calls.pop(request, None)
        if call is None:
            return
        if call.on_reply is None:
            call.end(reply, error)
        elif error is None:
            call.on_reply(reply)

    def _lose(self) -> None:
        """There is no connection: whatever was asked through the last one will not be answered."""
        self._fail(
            ServerUnreachable(
                f"the connection to {self._name} was lost; it is tried again by itself. If it does not come back, "
                "look whether the server still runs, and at the network."
            )
        )

    def _fail(self, error: RemoteError) -> None:
        """End all calls that were sent."""
        with self._lock:
            failed = [call for call in self._calls.values() if call.sent]
            for call in failed:
                del self._calls[call.request]
            if failed:
                self.epoch += 1
        for call in failed:
            call.end(None, error)

    def _drop(self, error: RemoteError | None) -> None:
        """Close the socket with all that waits in it, and end the calls that were sent through it."""
        self.epoch += 1
        self._shut()
        if error is not None:
            self._fail(error)

    def _say_goodbye(self) -> None:
        """Do what `close` asked for."""
        with self._lock:
            goodbye, self._goodbye = self._goodbye, None
        if self._socket is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.send_multipart(goodbye, zmq.NOBLOCK)
            self._shut(_GOODBYE_LINGER_MS)
        with self._lock:
            self._unsent.clear()
            for call in self._calls.values():
                call.sent = True
        self._drop(ServerStopped(f"the connection to {self._name} was closed by this program."))
        self._closed.set()
