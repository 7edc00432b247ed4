"""Taking an address for a server: refused if that would be unsafe, and in one sentence if it is taken."""

from __future__ import annotations

import logging

import zmq

from simplify_work.wire import sockets
from simplify_work.wire.address import Address
from simplify_work.wire.errors import AddressError
from simplify_work.wire.keys import ServerKeys

logger = logging.getLogger(__name__)


def bind(address: Address, keys: ServerKeys | None = None, insecure: bool = False) -> zmq.Socket:
    """A bound ROUTER socket.

    Args:
        address: Where.
        keys: Encrypt, and admit only the robots that they list.
        insecure: Let anybody in where other machines can reach the address and there are no keys.

    Raises:
        AddressError: If other machines could reach the address without keys, or it is taken or not this machine's.
    """
    if keys is None and not address.is_loopback:
        if not insecure:
            raise AddressError(
                f"{address.host} can be reached from other machines, and without keys anybody there could command "
                "the robot: make keys with `lerobot-ext keys FOLDER --robots=NAME` and serve with "
                "--keys=FOLDER/server, or serve on 127.0.0.1 and let the robot in through `ssh -L`. In a network "
                "that only you use, --insecure serves without keys."
            )
        logger.warning(
            "serving on %s without keys: everybody who can reach it can use the policy and read what robots send",
            address.endpoint,
        )
    try:
        return sockets.router(zmq.Context.instance(), address, keys)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressError(
                f"{address.endpoint} is taken by another program (another server?); stop it, or give another --port."
            ) from error
        raise AddressError(f"{address.endpoint} cannot be bound: {error}.") from error


def endpoint(socket: zmq.Socket) -> str:
    """Where clients connect to; with the port that was chosen if none was given."""
    return socket.last_endpoint.rstrip(b"\0").decode()
