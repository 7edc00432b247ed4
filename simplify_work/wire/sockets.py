"""ZeroMQ sockets as both sides want them: bounded, never lingering, frames received without a copy.

Only options and whole messages live here; what the messages mean is in `messages`, who sends them in `local` and
`server`.
"""

from __future__ import annotations

import zmq

from simplify_work.wire.address import Address
from simplify_work.wire.codec import MAX_ARRAY_BYTES
from simplify_work.wire.messages import MAX_ARRAYS

# A dead link is noticed, and a DEALER reconnects, after this time without a sign of life.
_HEARTBEAT_MS = 1000
_HEARTBEAT_TIMEOUT_MS = 3000
_HIGH_WATER_MARK = 256  # frames a peer may have waiting


def dealer(context: zmq.Context, address: Address, identity: bytes) -> zmq.Socket:
    """A client's socket, connecting in the background; `identity` names the session across reconnects."""
    socket = _configured(context.socket(zmq.DEALER), address)
    socket.routing_id = identity
    socket.connect(address.endpoint)
    return socket


def router(context: zmq.Context, address: Address) -> zmq.Socket:
    """A server's bound socket.

    Raises:
        zmq.ZMQError: If the address cannot be bound.
    """
    socket = _configured(context.socket(zmq.ROUTER), address)
    # A client that reopened its socket keeps its session, although the old connection is not yet gone.
    socket.router_handover = True
    try:
        socket.bind(address.endpoint)
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    return socket


def receive(socket: zmq.Socket, flags: int = 0) -> list[zmq.Frame]:
    """All frames of the next message, at most two more than a valid one has (the rest is read and dropped).

    Raises:
        zmq.Again: If none is there and `flags` say not to wait.
    """
    frames = [socket.recv(flags, copy=False)]
    while frames[-1].more:
        frame = socket.recv(flags, copy=False)
        if len(frames) < MAX_ARRAYS + 3:
            frames.append(frame)
        else:
            frames[-1] = frame
    return frames


def _configured(socket: zmq.Socket, address: Address) -> zmq.Socket:
    socket.linger = 0
    socket.maxmsgsize = (
        MAX_ARRAY_BYTES  # libzmq drops a peer that announces a longer frame, before allocating it
    )
    socket.sndhwm = socket.rcvhwm = _HIGH_WATER_MARK
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
    socket.ipv6 = address.is_ipv6
    return socket
