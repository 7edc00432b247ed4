"""Where a server is: `tcp://host:port`, `host:port`, or `ipc://path`; parsing and the question "is it this machine?"."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from simplify_work.wire.errors import AddressError

DEFAULT_PORT = 5555
DEFAULT_ADDRESS = f"tcp://127.0.0.1:{DEFAULT_PORT}"

# sockaddr_un.sun_path on Linux, less the terminating zero.
MAX_IPC_PATH = 107


@dataclass(frozen=True)
class Address:
    """A parsed address; exactly one of `host` and `path` is set.

    Attributes:
        endpoint: As ZeroMQ takes it.
        host: Name or IP address, IPv6 without brackets.
        port: 1 to 65535, or 0 where a free one shall be chosen at binding.
        path: Of an `ipc://` address.
    """

    endpoint: str
    host: str | None = None
    port: int = 0
    path: str | None = None

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        return self.path is not None or is_loopback(self.host or "")

    @property
    def is_ipv6(self) -> bool:
        """True if the host is an IPv6 address."""
        return ":" in (self.host or "")


def parse_address(text: str) -> Address:
    """Understand an address as users write it.

    Raises:
        AddressError: If it is none.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "tcp", text.strip()
    if scheme == "ipc" and rest:
        if len(rest.encode()) > MAX_IPC_PATH:
            raise AddressError(
                f"address '{text}': the path is longer than {MAX_IPC_PATH} bytes; use a shorter one."
            )
        return Address(f"ipc://{rest}", path=rest)
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if (
        scheme != "tcp"
        or not colon
        or not host
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
    ):
        raise AddressError(
            f"address '{text}' is not understood; write tcp://HOST:PORT, HOST:PORT or ipc://PATH, "
            f"for example {DEFAULT_ADDRESS}."
        )
    return tcp_address(host, int(port))


def tcp_address(host: str, port: int) -> Address:
    """The address of a TCP port; port 0 means any free one."""
    shown = f"[{host}]" if ":" in host else host
    return Address(f"tcp://{shown}:{port or '*'}", host=host, port=port)


def is_loopback(host: str) -> bool:
    """True for `localhost` and loopback IP addresses; a name that would need a look-up is not trusted to be one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
