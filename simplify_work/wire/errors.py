"""What can go wrong between a robot and a policy server, as types; each message is one sentence with the remedy.

A server sends the `kind` and the text of an error, never a class name; `from_wire` looks the kind up in a table.
Nothing here knows of sockets or of policies.
"""

# The names say what happened and are part of the API; "Error" is their base class.
# ruff: noqa: N818

from __future__ import annotations

from typing import ClassVar


class RemoteError(Exception):
    """Anything that stops a remote policy from answering.

    Attributes:
        kind: How the error is called on the wire.
    """

    kind: ClassVar[str] = "remote"


class AddressError(RemoteError, ValueError):
    """The address of a server cannot be understood."""

    kind = "address"


class ServerUnreachable(RemoteError, ConnectionError):
    """Nobody answered at the address while connecting."""

    kind = "unreachable"


class KeyRefused(RemoteError, ConnectionError):
    """A key is missing, or is not the one that the other side admits."""

    kind = "key"


class ServerTimeout(RemoteError, TimeoutError):
    """A connected server did not answer before the deadline of the call."""

    kind = "timeout"


class ServerStopped(RemoteError, ConnectionError):
    """The server said goodbye."""

    kind = "stopped"


class ServerBusy(RemoteError):
    """The server holds as many sessions as it admits."""

    kind = "busy"


class SessionLost(RemoteError):
    """The server does not know this client (it was restarted, or the client was idle); a new Hello mends it."""

    kind = "session"


class Superseded(RemoteError):
    """A newer observation of the same robot took this one's place before it was inferred."""

    kind = "superseded"


class PolicyChanged(RemoteError):
    """The server came back with another policy than the one this client began with."""

    kind = "policy_changed"


class FeatureMismatch(RemoteError, ValueError):
    """The policy wants something that the robot does not give."""

    kind = "features"


class RemoteInferenceError(RemoteError):
    """The policy failed on the server, or its actions cannot be used."""

    kind = "inference"


class WireFormatError(RemoteError, ValueError):
    """Bytes that are not a valid message; nothing of them was used."""

    kind = "wire_format"


class VersionMismatch(WireFormatError):
    """The peer speaks another version of the protocol."""

    kind = "version"


_BY_KIND: dict[str, type[RemoteError]] = {
    cls.kind: cls
    for cls in (
        AddressError,
        ServerUnreachable,
        KeyRefused,
        ServerTimeout,
        ServerStopped,
        ServerBusy,
        SessionLost,
        Superseded,
        PolicyChanged,
        FeatureMismatch,
        RemoteInferenceError,
        WireFormatError,
        VersionMismatch,
    )
}


def from_wire(kind: str, text: str) -> RemoteError:
    """The error that a peer described; a plain RemoteError for a kind that is not in our table."""
    return _BY_KIND.get(kind, RemoteError)(text)
