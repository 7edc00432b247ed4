"""ZeroMQ sockets as both sides want them: bounded, never lingering, encrypted if there are keys, received uncopied.

Only options, whole messages and the fate of a handshake live here; what the messages mean is in `messages`, who
sends them in `local` and `server`.
"""

from __future__ import annotations

import socket as plain
import struct

import zmq
from zmq.utils.monitor import parse_monitor_message

from simplify_work.wire import zap
from simplify_work.wire.address import Address
from simplify_work.wire.codec import MAX_ARRAY_BYTES
from simplify_work.wire.errors import KeyRefused
from simplify_work.wire.keys import ClientKeys, ServerKeys
from simplify_work.wire.messages import MAX_ARRAYS

# A dead link is noticed, and a DEALER reconnects, after this time without a sign of life.
_HEARTBEAT_MS = 1000
_HEARTBEAT_TIMEOUT_MS = 3000
_HIGH_WATER_MARK = 256  # frames a peer may have waiting

_HANDSHAKE_EVENTS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_MECHANISM_MISMATCH = 0x11000002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, which pyzmq has no name for

# A peer's greeting, https://rfc.zeromq.org/spec/23: signature, version, mechanism, as-server, filler.
_GREETING = struct.Struct(">10s2s20s32s")
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING_TIMEOUT_S = 2.5  # enough for a link that takes half a second each way


def dealer(
    context: zmq.Context, address: Address, identity: bytes, keys: ClientKeys | None = None
) -> zmq.Socket:
    """A client's socket, connecting in the background; `identity` names the session across reconnects.

    A server that refuses the handshake is not tried again by this socket: watch it with a `HandshakeWatch`.
    """
    socket = _configured(context.socket(zmq.DEALER), address)
    socket.routing_id = identity
    if keys is not None:
        socket.curve_serverkey = keys.server
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
    socket.get_monitor_socket(_HANDSHAKE_EVENTS)  # before the first attempt, so that no event is missed
    socket.connect(address.endpoint)
    return socket


def router(context: zmq.Context, address: Address, keys: ServerKeys | None = None) -> zmq.Socket:
    """A server's bound socket.

    With keys, `frame.get("User-Id")` of a received frame is the robot's name.

    Raises:
        zmq.ZMQError: If the address cannot be bound.
    """
    socket = _configured(context.socket(zmq.ROUTER), address)
    # A client that reopened its socket keeps its session, although the old connection is not yet gone.
    socket.router_handover = True
    if keys is not None:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
        socket.zap_domain = zap.admit(context, keys)
    try:
        socket.bind(address.endpoint)
    except zmq.ZMQError:
        socket.close(linger=0)
        raise
    return socket


class HandshakeWatch:
    """Tells at once that the keys are at fault, where a client would otherwise wait for its timeout.

    Args:
        socket: From `dealer`.
        address: That it connects to.
        keys: That it uses.
    """

    def __init__(self, socket: zmq.Socket, address: Address, keys: ClientKeys | None = None) -> None:
        self._socket, self._address, self._keys = socket, address, keys

    @property
    def events(self) -> zmq.Socket:
        """Can be read from when `check` has something to look at; for a Poller beside the watched socket."""
        return self._socket.get_monitor_socket()

    def check(self) -> None:
        """Look at what happened since the last time; may ask the server for its greeting, for 2.5 s at most.

        Raises:
            KeyRefused: If the server refused this side's keys, or has others than this side expects.
        """
        where, keys = self._address.endpoint, self._keys
        while self.events.poll(0):
            event = parse_monitor_message(self.events.recv_multipart())
            if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise KeyRefused(
                    f"{where} does not admit this robot's key; copy {self._own_key()} to the server as "
                    "FOLDER/server/clients/NAME.key (it needs no restart)."
                )
            if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                if event["value"] == _MECHANISM_MISMATCH:
                    raise KeyRefused(self._one_sided())
            elif keys is not None and greeting_mechanism(self._address) == "CURVE":
                # A tunnel whose server is away looks the same, but nobody greets behind it.
                raise KeyRefused(
                    f"the server at {where} does not have the key that {keys.folder / 'server.key'} expects; "
                    "copy the server's own server.key there, if this is the server that you mean."
                )

    def close(self) -> None:
        """Stop watching; the watched socket itself goes on."""
        events = self.events
        self._socket.disable_monitor()
        events.close(linger=0)

    def _own_key(self) -> str:
        return str(self._keys.folder / "client.key") if self._keys else "its client.key"

    def _one_sided(self) -> str:
        where = self._address.endpoint
        if self._keys is None:
            return (
                f"{where} admits only robots with keys; make some with `lerobot-ext keys` and give their folder "
                "(policy.keys=FOLDER/NAME)."
            )
        return (
            f"{where} does not use keys, but this robot was told to ({self._keys.folder}); start the server with "
            "--keys=FOLDER/server, or leave out the robot's keys."
        )


class Strangers:
    """Counts the connections to a bound socket that ended before they had said in ZeroMQ's words who they are.

    What such a connection sent never becomes a message; refused keys are `zap`'s business and not counted.

    Args:
        socket: From `router`; the same thread must call `arrived`.
    """

    def __init__(self, socket: zmq.Socket) -> None:
        self._events = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    def arrived(self) -> int:
        """How many there were since the last call; never waits."""
        count = 0
        while self._events.get(zmq.EVENTS) & zmq.POLLIN:
            self._events.recv_multipart()
            count += 1
        return count


def greeting_mechanism(address: Address, timeout_s: float = _GREETING_TIMEOUT_S) -> str | None:
    """How the ZeroMQ server at an address wants to be talked to: `CURVE`, `NULL`; None if no such server is there.

    A server that wants something other than `CURVE`, which we offer, may close before it has said so: None then, too.
    """
    ours = _GREETING.pack(_SIGNATURE, b"\x03\x01", b"CURVE", b"")
    found = b""
    try:
        with _connected(address, timeout_s) as connection:
            connection.sendall(ours)
            while len(found) < _GREETING.size and (more := connection.recv(_GREETING.size - len(found))):
                found += more
    except OSError:
        return None
    if len(found) < _GREETING.size:
        return None
    signature, _, mechanism, _ = _GREETING.unpack(found)
    if signature[0] != 0xFF or signature[-1] != 0x7F:
        return None
    return mechanism.rstrip(b"\0").decode("ascii", "replace")


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


def _connected(address: Address, timeout_s: float) -> plain.socket:
    if address.path is None:
        return plain.create_connection((address.host, address.port), timeout_s)
    connection = plain.socket(plain.AF_UNIX, plain.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(address.path)
    except OSError:
        connection.close()
        raise
    return connection


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
