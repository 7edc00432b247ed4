"""Who is at an address, asked step by step and by hand: is there a machine, a program, a ZeroMQ socket, which one?

A PolicyClient can only say that nobody answered. Here the steps below it are taken one at a time, so that a firewall,
a closed port and a foreign program are told apart. Whether the program is a policy server is then the client's
question. Nothing that is received is interpreted beyond ZeroMQ's greeting.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from simplify_work.wire.address import Address
from simplify_work.wire.errors import AddressError, ServerUnreachable, WireFormatError

# ZMTP 3.1 (https://rfc.zeromq.org/spec/37): a signature of 10 bytes, the version, the mechanism's name padded to 20,
# whether the sender is a CURVE server, and zeros up to 64.
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_OPENING = _SIGNATURE + b"\x03\x01"
_NULL_REST = b"NULL".ljust(20, b"\0") + bytes(32)
_GREETING_BYTES = 64
_COMMAND = 0x04
_MAX_SHOWN = 24

_KNOWN = (
    (b"SSH-", "an SSH server"),
    (b"HTTP/", "a web server"),
    (b"\x15\x03", "a program that wants TLS"),
    (b"220 ", "a mail or file server"),
    (b"\x00\x00", "an HTTP/2 or gRPC server"),
)


@dataclass(frozen=True)
class Greeting:
    """What a ZeroMQ socket says of itself.

    Attributes:
        mechanism: `NULL` without keys, `CURVE` with.
        socket_type: `ROUTER`, `PUB`, …; None where the mechanism hides it.
    """

    mechanism: str
    socket_type: str | None


def connect(address: Address, timeout_s: float) -> tuple[socket.socket, float]:
    """A connection to an address, and the seconds that it took.

    Raises:
        AddressError: If there is no such machine name, or the address has no port.
        ServerUnreachable: Saying whether nobody listens, nothing answers, or no way leads there.
    """
    started = time.perf_counter()
    if address.path is not None:
        return _connect_ipc(address, timeout_s), time.perf_counter() - started
    if not address.port:
        raise AddressError(
            f"{address.endpoint} names no port; write HOST:PORT as `lerobot-ext serve` prints it."
        )
    place = f"port {address.port} of {address.host}"
    try:
        connection = socket.create_connection((address.host, address.port), timeout_s)
    except socket.gaierror as error:
        raise AddressError(
            f"no machine is called '{address.host}' ({error.strerror}); check the name, or give its IP address."
        ) from error
    except ConnectionRefusedError as error:
        raise ServerUnreachable(
            f"{address.host} is there, but nothing listens on port {address.port}; start `lerobot-ext serve` there, or "
            "give the port that it printed (a server on 127.0.0.1 is seen by its own machine only)."
        ) from error
    except TimeoutError as error:
        raise ServerUnreachable(
            f"nothing came back from {place} within {timeout_s:g} s: the machine is off, has another address, or a "
            f"firewall swallows the packets; try `ping {address.host}`, and open TCP port {address.port} there."
        ) from error
    except OSError as error:
        raise ServerUnreachable(
            f"no way leads to {place} ({error.strerror or error}); check this machine's network and the address."
        ) from error
    return connection, time.perf_counter() - started


def greet(connection: socket.socket, timeout_s: float) -> Greeting:
    """Exchange ZeroMQ's greetings on a new connection, which is of no use afterwards.

    Raises:
        WireFormatError: If the program there is none of ZeroMQ's, saying what it seems to be.
    """
    deadline = time.monotonic() + timeout_s
    try:
        connection.sendall(_OPENING)
        greeting = _receive(connection, _GREETING_BYTES, deadline)
        # A port that is forwarded (by ssh, say) accepts, and closes when its far end is not there.
        if not greeting:
            raise WireFormatError(
                "the program there said nothing: it is no lerobot_ext server, is one that hangs, or is a forwarded port "
                "with nothing behind it; look which program has the port (`ss -ltnp` there)."
            )
        if len(greeting) < _GREETING_BYTES or greeting[0] != 0xFF or not greeting[9] & 1:
            raise WireFormatError(
                f"the program there is {_guess(greeting)}, no lerobot_ext server; check the port, and stop that program "
                "or serve on another port."
            )
        mechanism = greeting[12:32].rstrip(b"\0").decode("ascii", "replace")
        if mechanism != "NULL":
            return Greeting(mechanism, None)
        connection.sendall(_NULL_REST)
        return Greeting(mechanism, _socket_type(connection, deadline))
    except OSError as error:
        raise WireFormatError(
            f"the program there broke the connection off ({error.strerror or error}); it is no lerobot_ext server."
        ) from error


def _connect_ipc(address: Address, timeout_s: float) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise AddressError(f"{address.endpoint}: this system has no such sockets; use tcp://HOST:PORT.")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(address.path)
    except OSError as error:
        connection.close()
        raise ServerUnreachable(
            f"nobody listens at {address.path} ({error.strerror or error}); start `lerobot-ext serve --address="
            f"{address.endpoint}` on this machine."
        ) from error
    return connection


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    """`count` bytes, or fewer if no more come before the deadline or the other side closes."""
    received = b""
    while len(received) < count:
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            part = connection.recv(count - len(received))
        except (TimeoutError, ConnectionResetError):
            break
        if not part:
            break
        received += part
        if count == _GREETING_BYTES and received[0] != _SIGNATURE[0]:
            break  # whatever it is, it is not ZeroMQ, and may never say more
    return received


def _socket_type(connection: socket.socket, deadline: float) -> str | None:
    """The `Socket-Type` of the READY command that follows a greeting without keys."""
    head = _receive(connection, 2, deadline)
    if len(head) < 2 or head[0] != _COMMAND:
        return None
    body = _receive(connection, head[1], deadline)
    key = b"\x0bSocket-Type"
    at = body.find(key)
    if not body.startswith(b"\x05READY") or at < 0:
        return None
    at += len(key)
    length = int.from_bytes(body[at : at + 4], "big")
    return body[at + 4 : at + 4 + length].decode("ascii", "replace")


def _guess(received: bytes) -> str:
    for start, name in _KNOWN:
        if received.startswith(start):
            return name
    shown = received[:_MAX_SHOWN]
    return f"an unknown one (it says {shown!r}{'…' if len(received) > _MAX_SHOWN else ''})"
