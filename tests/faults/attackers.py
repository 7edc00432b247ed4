"""Who sends the payloads to a port: over a raw connection, over ZeroMQ, over a serial line.

Connections stay open until the `with` block ends, so that whoever is attacked is looked at with the attackers present.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import payloads
import zmq

_ANSWER_S = 0.3


@contextlib.contextmanager
def byte_attack(address: str, proof: Path) -> Iterator[int]:
    """All byte streams, each over its own connection to `tcp://…` or `ipc://…`; gives their number."""
    with contextlib.ExitStack() as stack:
        streams = payloads.byte_streams(proof)
        ends = {name: stack.enter_context(_connect(address)) for name in streams}
        for name, parts in streams.items():
            with contextlib.suppress(OSError):  # it was thrown out: that is what the test hopes for
                for number, part in enumerate(parts):
                    if number:
                        ends[name].recv(1 << 16)
                    ends[name].sendall(part)
        yield len(streams)


@contextlib.contextmanager
def message_attack(
    address: str, proof: Path, kinds: Sequence[int], prefix: Sequence[bytes] = (), configure: Callable = id
) -> Iterator[int]:
    """All messages by a ZeroMQ socket of each kind; gives their number.

    Args:
        address: Where to.
        proof: The file that must not be created.
        kinds: Socket types.
        prefix: Frames before each message.
        configure: Called with each socket before it connects; for keys.
    """
    context = zmq.Context()
    attackers = []  # a socket that nobody holds is closed
    try:
        for kind in kinds:
            for frames in payloads.messages(proof).values():
                attacker = context.socket(kind)
                attackers.append(attacker)
                attacker.linger = 0
                attacker.sndtimeo = 2000
                configure(attacker)
                attacker.connect(address)
                with contextlib.suppress(zmq.Again):  # the two kinds of sockets do not talk to each other
                    attacker.send_multipart([*prefix, *frames])
        yield len(attackers)
    finally:
        context.destroy(linger=0)


def serial_attack(port: Path, proof: Path) -> None:
    """All byte streams to a pseudo-terminal, at the pace at which somebody reads there, or until it is full."""
    end = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        for parts in payloads.byte_streams(proof).values():
            if not _written(end, b"".join(parts)[:8192]):
                break
    finally:
        os.close(end)


def _connect(address: str) -> socket.socket:
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        end = socket.socket(socket.AF_UNIX)
        end.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        end = socket.create_connection((host, int(port)))
    end.settimeout(_ANSWER_S)
    return end


def _written(end: int, data: bytes) -> bool:
    """Write it all; False if nobody has read there for a while."""
    full_since = None
    while data:
        try:
            data, full_since = data[os.write(end, data) :], None
        except BlockingIOError:
            full_since = full_since or time.monotonic()
            if time.monotonic() - full_since > _ANSWER_S:
                return False
            time.sleep(0.005)
    return True
