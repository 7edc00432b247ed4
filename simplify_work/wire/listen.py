"""Taking an address for a server: refused if that would be unsafe, and in one sentence if it is taken."""

from __future__ import annotations

import zmq

from simplify_work.wire import sockets
from simplify_work.wire.address import Address
from simplify_work.wire.errors import AddressError


def bind(address: Address) -> zmq.Socket:
    """A bound ROUTER socket.

    Raises:
        AddressError: If other machines could reach the address, or it is taken or not this machine's.
    """
    if not address.is_loopback:
        raise AddressError(
            f"{address.host} can be reached from other machines, and without keys anybody there could command the "
            "robot: serve on 127.0.0.1, and let the robot in through `ssh -L`."
        )
    try:
        return sockets.router(zmq.Context.instance(), address)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressError(
                f"{address.endpoint} is taken by another program (another server?); stop it, or give another --port."
            ) from error
        raise AddressError(f"{address.endpoint} cannot be bound: {error}.") from error


def endpoint(socket: zmq.Socket) -> str:
    """Where clients connect to; with the port that was chosen if none was given."""
    return socket.last_endpoint.rstrip(b"\0").decode()
