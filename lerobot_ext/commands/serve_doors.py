"""The doors of `lerobot-ext serve`: what --door says, and what can be told to be wrong before a checkpoint is loaded."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from lerobot_ext.errors import UserError

logger = logging.getLogger(__name__)

OWN_PORT = 5555  # of our own clients; ACT's clients know the same one
_EXAMPLE = "--door=act_zmq:5555"


@dataclass(frozen=True)
class Where:
    """One --door.

    Attributes:
        name: A key of `simplify_work.server.doors.DOORS`.
        host: To listen on.
        port: 0 for any free one.
    """

    name: str
    host: str
    port: int


def parse_door(text: str, host: str) -> Where:
    """What NAME:PORT or NAME:HOST:PORT means.

    Args:
        text: After `--door=`.
        host: Where none is named.

    Raises:
        UserError: If it is not understood, or there is no such door.
    """
    from simplify_work.server.doors import DOORS

    name, _, rest = text.partition(":")
    named, _, port = rest.rpartition(":")
    if name not in DOORS:
        raise UserError(f"--door={text}: there is no door '{name}'; there are: {', '.join(sorted(DOORS))}.")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(
            f"--door={text} is not understood, expected NAME:PORT or NAME:HOST:PORT with a port of 0 to 65535, for "
            f"example {_EXAMPLE}."
        )
    return Where(name, (named or host).removeprefix("[").removesuffix("]"), int(port))


def own_port(doors: Sequence[Where]) -> int:
    """Where our own clients are served if nobody says: the first port from `OWN_PORT` on that no door is to have."""
    asked = {door.port for door in doors}
    return next(port for port in range(OWN_PORT, 65536) if port not in asked)


def check_doors(doors: Sequence[Where]) -> list[type]:
    """The classes of the doors; says what would keep one of them shut, and what an open one means.

    Raises:
        UserError: If two want one port, a port is taken, or a package is missing.
    """
    from simplify_work.server.doors import load, taken
    from simplify_work.wire.address import is_loopback

    asked = [(door.host, door.port) for door in doors if door.port]
    for host, port in asked:
        if asked.count((host, port)) > 1:
            raise UserError(f"two doors are to listen on {host}:{port}; give each a port of its own.")
    classes = [load(door.name) for door in doors]
    for door in doors:
        try:
            _try_port(door)
        except OSError as error:
            raise taken(door.name, door.host, door.port, error) from error
        if not is_loopback(door.host):
            logger.warning(
                "door %s listens on %s, beyond this machine: its protocol has no encryption and no authentication. "
                "Everybody who can reach the port can use the policy, command it in another's name, and read or change what "
                "robots send and get. Where you do not trust every machine in the network, use 127.0.0.1 and let robots in "
                "through `ssh -L`.",
                door.name,
                door.host,
            )
    return classes


def _try_port(door: Where) -> None:
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((door.host, door.port))
