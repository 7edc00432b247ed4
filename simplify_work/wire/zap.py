"""Who may connect: answers ZeroMQ's question for each new encrypted connection (ZAP, https://rfc.zeromq.org/spec/27).

A context has one such thread, whatever the number of its servers; each server is a domain with its own list, which
is read anew for every connection, so that a robot is added or removed without a restart.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from weakref import WeakKeyDictionary

import zmq
from zmq.utils import z85

from simplify_work.wire.keys import CLIENTS, ServerKeys

logger = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_LOG_EVERY_S = 60.0
_LOGGED_KEYS = 100

_doorkeepers: WeakKeyDictionary[zmq.Context, _Doorkeeper] = WeakKeyDictionary()
_lock = threading.Lock()


def admit(context: zmq.Context, keys: ServerKeys) -> bytes:
    """The domain of a new server of `context` that admits the robots that `keys` lists."""
    with _lock:
        doorkeeper = _doorkeepers.get(context)
        if doorkeeper is None:
            doorkeeper = _doorkeepers[context] = _Doorkeeper(context)
    domain = uuid.uuid4().hex.encode()
    doorkeeper.servers[domain] = keys
    return domain


class _Doorkeeper:
    """The thread; it ends with its context."""

    def __init__(self, context: zmq.Context) -> None:
        self.servers: dict[bytes, ServerKeys] = {}
        self._refused: dict[bytes, float] = {}
        # Of a shadow, so that `context.destroy()` does not close it under the thread's hands.
        socket = zmq.Context.shadow(context).socket(zmq.REP)
        socket.linger = 0
        socket.bind(_ENDPOINT)
        threading.Thread(target=self._run, args=(socket,), name="zap", daemon=True).start()

    def _run(self, socket: zmq.Socket) -> None:
        try:
            while True:
                version, number, domain, address, _, mechanism, *credentials = socket.recv_multipart()
                try:
                    name = self._name(domain, address, mechanism, credentials)
                except Exception:
                    logger.exception("a robot's key could not be looked up; it was refused")
                    name = None
                status = (b"200", b"OK", name.encode()) if name else (b"400", b"not listed", b"")
                socket.send_multipart([version, number, *status, b""])
        except zmq.ZMQError:
            logger.debug("the context was ended", exc_info=True)
        finally:
            socket.close()

    def _name(self, domain: bytes, address: bytes, mechanism: bytes, credentials: list[bytes]) -> str | None:
        """Of the robot that has this key, or None."""
        keys = self.servers.get(domain)
        if keys is None or mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32:
            return None
        key = z85.encode(credentials[0])
        name = keys.admitted().get(key)
        if name is None:
            self._log_refused(key, address, keys)
        return name

    def _log_refused(self, key: bytes, address: bytes, keys: ServerKeys) -> None:
        """One line a minute for a key, so that who tries all the time does not fill the disk."""
        now = time.monotonic()
        if now - self._refused.get(key, -_LOG_EVERY_S) < _LOG_EVERY_S:
            return
        if len(self._refused) >= _LOGGED_KEYS:
            self._refused = {k: since for k, since in self._refused.items() if now - since < _LOG_EVERY_S}
            if len(self._refused) >= _LOGGED_KEYS:
                return
        self._refused[key] = now
        logger.warning(
            "refused a robot at %s: its public key %s is not in %s; if it is yours, copy its client.key there as "
            "NAME.key",
            address.decode(errors="replace"),
            key.decode(),
            keys.folder / CLIENTS,
        )
