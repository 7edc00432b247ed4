"""CURVE keys on disk: one pair for the server, one for each robot, and the folder that lists whom a server admits.

The files are those of pyzmq (`zmq.auth`). `FOLDER/server` belongs on the GPU's machine, `FOLDER/NAME` on the robot
NAME; each holds only the secret of its own machine. Who asks with such a key while connecting is `zap`'s business.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.utils import z85

from simplify_work.wire.errors import KeyRefused

SERVER = "server"
CLIENTS = "clients"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LENGTH = 40  # of a key of 32 bytes in Z85
_FILE = """\
#   ZeroMQ CURVE **{kind}** Certificate, made by lerobot-ext keys
#   {advice}

metadata
    name = "{name}"
curve
    public-key = "{public}"
"""


@dataclass(frozen=True)
class ServerKeys:
    """The keys of the machine that serves; Z85 text of 40 bytes each.

    Attributes:
        folder: Where they are.
        public: The server's, which every robot has.
        secret: The server's.
    """

    folder: Path
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> ServerKeys:
        """Read them.

        Args:
            folder: `FOLDER/server`, or `FOLDER` itself.

        Raises:
            KeyRefused: If they are not there, damaged, or can be read by others.
        """
        folder = Path(folder).expanduser()
        if (folder / SERVER).is_dir():
            folder /= SERVER
        return cls(folder, *_pair(folder / "server.key_secret", "`lerobot-ext keys FOLDER --robots=NAME`"))

    def admitted(self) -> dict[bytes, str]:
        """The robots that may connect, as the folder lists them now: public key to name."""
        robots = {}
        for path in sorted((self.folder / CLIENTS).glob("*.key")):
            try:
                robots[_public(path)] = path.stem
            except KeyRefused:
                continue  # a file that is being copied; it is read again when the robot tries again
        return robots


@dataclass(frozen=True)
class ClientKeys:
    """The keys of one robot; Z85 text of 40 bytes each.

    Attributes:
        folder: Where they are.
        server: The server's public key: only who has its secret is talked to.
        public: The robot's, which the server must list.
        secret: The robot's.
    """

    folder: Path
    server: bytes
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> ClientKeys:
        """Read them.

        Args:
            folder: `FOLDER/NAME`.

        Raises:
            KeyRefused: If they are not there, damaged, or can be read by others.
        """
        folder = Path(folder).expanduser()
        make = (
            f"`lerobot-ext keys FOLDER --robots={folder.name or 'NAME'}`, then copy FOLDER/NAME to the robot"
        )
        if not (folder / "client.key_secret").exists():
            inside = sorted(path.parent.name for path in folder.glob("*/client.key_secret"))
            if inside:
                raise KeyRefused(
                    f"{folder} holds the keys of several machines ({', '.join(inside)}); give one robot's: "
                    f"{folder / inside[0]}."
                )
        public, secret = _pair(folder / "client.key_secret", make)
        return cls(folder, _public(folder / "server.key"), public, secret)


def make_keys(folder: str | Path, robots: Iterable[str]) -> list[str]:
    """Make the keys of a server, if it has none yet, and those of robots that have none yet.

    What exists is never overwritten: to give a robot new keys, remove `FOLDER/NAME` and `FOLDER/server/clients/NAME.key`.

    Args:
        folder: Made if it does not exist.
        robots: Their names; letters, digits, `.`, `_` and `-`.

    Returns:
        The robots that were given keys now.

    Raises:
        ValueError: For a name that cannot be a folder's, or is `server`.
        OSError: If the folder cannot be written to.
    """
    folder, robots = Path(folder).expanduser(), list(dict.fromkeys(robots))
    for name in robots:
        if not _NAME.fullmatch(name) or name == SERVER:
            raise ValueError(
                f"robot name '{name}' cannot be used; take letters, digits, '.', '_' and '-', and not '{SERVER}'."
            )
    server = folder / SERVER
    if not (server / "server.key").exists():
        _write_pair(server, "server", SERVER)
    (server / CLIENTS).mkdir(mode=0o700, exist_ok=True)
    server_key = _public(server / "server.key")
    made = []
    for name in robots:
        if (folder / name / "client.key_secret").exists():
            continue
        public = _write_pair(folder / name, "client", name)
        _write(folder / name / "server.key", SERVER, server_key)
        _write(server / CLIENTS / f"{name}.key", name, public)
        made.append(name)
    return made


def _write_pair(folder: Path, stem: str, name: str) -> bytes:
    """New keys as `STEM.key` and `STEM.key_secret`; returns the public one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public, secret = zmq.curve_keypair()
    # The secret comes first, so that a public key without one is never left behind.
    _write(folder / f"{stem}.key_secret", name, public, secret)
    _write(folder / f"{stem}.key", name, public)
    return public


def _write(path: Path, name: str, public: bytes, secret: bytes | None = None) -> None:
    """One file, whole or not at all, a secret never readable by others, not even for a moment."""
    kind, advice = ("Public", "Give it to the other machine; it is no secret.")
    if secret is not None:
        kind, advice = ("Secret", "Do not give it to anybody, and keep its mode 0600.")
    text = _FILE.format(kind=kind, advice=advice, name=name, public=public.decode())
    if secret is not None:
        text += f'    secret-key = "{secret.decode()}"\n'
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644 if secret is None else 0o600)
    with os.fdopen(handle, "w") as file:
        if secret is not None and hasattr(os, "fchmod"):
            os.fchmod(handle, 0o600)
        file.write(text)
    os.replace(unfinished, path)


def _pair(path: Path, make: str) -> tuple[bytes, bytes]:
    """The public and the secret key of a secret file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyRefused(f"{path} cannot be read ({error.strerror}); make keys with {make}.") from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyRefused(
            f"{path} is a secret, but its mode {stat.S_IMODE(mode):04o} lets other users at it; "
            f"`chmod 600 {path}`, and make new keys if somebody may have read it."
        )
    public, secret = _read(path)
    if secret is None or zmq.curve_public(secret) != public:
        raise KeyRefused(
            f"{path} does not hold a secret key with its public one; copy it again, or make new keys."
        )
    return public, secret


def _public(path: Path) -> bytes:
    return _read(path)[0]


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """What a certificate holds: a public key, and a secret one or None.

    Raises:
        KeyRefused: If it cannot be read or holds something else.
    """
    try:
        keys = zmq.auth.load_certificate(path)
        for key in keys:
            if key is not None and (len(key) != _LENGTH or len(z85.decode(key)) != 32):
                raise ValueError(f"a key of {len(key)} characters, expected {_LENGTH}")
        return keys
    except Exception as error:  # pyzmq's parser and decoder each raise their own for a damaged file
        raise KeyRefused(f"{path} is no key file ({error}); copy it again from where it was made.") from error
