"""Door `openpi_ws`: openpi's `WebsocketClientPolicy` gets chunks from our server, metadata included.

The protocol, read in Physical-Intelligence/openpi (packages/openpi-client, websocket_client_policy.py and
src/openpi/serving/websocket_policy_server.py): on connecting, the server sends a MessagePack map with metadata; each
binary message is an observation and is answered with a map that has `actions`; a text is an error, after which the
connection is closed. `GET /healthz` says OK. A connection is a session; `reset()` of that client sends nothing.
"""

from __future__ import annotations

import http
import logging
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any
from urllib.parse import unquote

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

import lerobot_ext
from simplify_work.server.doors import Brain, taken
from simplify_work.server.doors.guests import Guest, Refusals, UnknownCheckpointError, choose, listed
from simplify_work.server.doors.msgpack_numpy import pack, unpack
from simplify_work.server.doors.openpi_observation import names_of, translate
from simplify_work.server.protocol import Served
from simplify_work.wire.errors import RemoteError, WireFormatError

logger = logging.getLogger(__name__)

# The library logs a traceback for every connection that is not a WebSocket; garbage must not fill the disk.
_library_logger = logging.getLogger(f"{__name__}.websockets")
_library_logger.setLevel(logging.CRITICAL)

MAX_MESSAGE = 64 * 2**20
MAX_CONNECTIONS = 16
INFER_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 2.0
_REASON_BYTES = 120  # of a WebSocket's close frame, which holds 123
_ACCEPT_AGAIN_S = 0.2
_SEND_TIMEOUT_S = 5  # without a byte taken; an answer fits into the buffers of whoever reads the one before

_failed_accepts = Refusals(logger)


class _Listener(socket.socket):
    """A listening socket that keeps two things from lasting for ever.

    The library's server accepts nobody any more after the first `accept` that failed; and a client that reads nothing
    would hold it up in `send`, and with that its end.
    """

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            OSError: Once the socket was closed.
        """
        self.settimeout(_ACCEPT_AGAIN_S)  # so that it is noticed
        while True:
            try:
                connection, address = super().accept()
                timeout = struct.pack("@ll", *divmod(int(_SEND_TIMEOUT_S * 10**6), 10**6))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
                return connection, address
            except TimeoutError:
                pass  # who wanted to connect is gone
            except OSError as error:
                if self.fileno() < 0:
                    raise
                _failed_accepts.note(f"a connection: {error}")
                time.sleep(_ACCEPT_AGAIN_S)  # until others are closed, most likely


class OpenPiWsDoor:
    """A WebSocket server as openpi's.

    The first checkpoint is served at `ws://host:port`; others at `ws://host:port/<its path or the end of it>`.

    Attributes:
        name: `openpi_ws`.
        endpoint: Where it answers.

    Args:
        brains: The checkpoints.
        host: To listen on.
        port: 0 chooses a free one.
        max_message: Bytes of one observation.
        max_connections: Further clients are refused.
    """

    name = "openpi_ws"

    def __init__(
        self,
        brains: Sequence[Brain],
        host: str,
        port: int,
        max_message: int = MAX_MESSAGE,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._brains = tuple(brains)
        self._host, self._port = host, port
        self._max_message = max_message
        self._places = threading.BoundedSemaphore(max_connections)
        self._refusals = Refusals(logger)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.endpoint = self._endpoint(port)

    def start(self) -> None:
        """Take the port and begin to answer.

        Raises:
            UserError: If the port cannot be had.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            bound = socket.create_server((self._host, self._port), family=family)
        except OSError as error:
            raise taken(self.name, self._host, self._port, error) from error
        self._server = serve(
            self._talk,
            sock=_Listener(fileno=bound.detach()),
            compression=None,
            max_size=self._max_message,
            max_queue=1,
            close_timeout=_CLOSE_TIMEOUT_S,
            process_request=self._admit,
            server_header=None,
            origins=[None],  # no web page in a browser on this machine
            logger=_library_logger,
        )
        self.endpoint = self._endpoint(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="door-openpi_ws", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections."""
        if self._server is None:
            return
        self._server.shutdown(reason="the server was stopped")
        self._thread.join()
        self._server = None

    def _endpoint(self, port: int) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"ws://{host}:{port}"

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is no WebSocket, and refuse a path that names no checkpoint."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        try:
            self._brain(request)
        except UnknownCheckpointError as error:
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"{error}\n")
        return None

    def _brain(self, request: Request) -> Brain:
        path = unquote(request.path.partition("?")[0]).strip("/")
        return choose(self._brains, path) if path else self._brains[0]

    def _talk(self, connection: ServerConnection) -> None:
        """One client, from its metadata to its end (in a thread of its own)."""
        client = "openpi client {}:{}".format(*connection.remote_address[:2])
        if not self._places.acquire(blocking=False):
            _close(connection, CloseCode.TRY_AGAIN_LATER, "the server has all the clients that it admits")
            return
        try:
            with closing(Guest(self._brain(connection.request), client)) as guest:
                self._answer(connection, guest)
        except RemoteError as error:
            self._refusals.note(f"{client}: {error}")
            _close(connection, CloseCode.TRY_AGAIN_LATER, str(error))
        except Exception:
            logger.exception("a session for %s could not be had", client)
            _close(connection, CloseCode.INTERNAL_ERROR, "the server failed; its log says where")
        finally:
            self._places.release()

    def _answer(self, connection: ServerConnection, guest: Guest) -> None:
        """Say what is served, then answer until the connection ends."""
        try:
            connection.send(pack(metadata(guest.brain, self._brains)))
            _Conversation(connection, guest).run()
        except ConnectionClosed as error:
            logger.info("%s is gone (%s)", guest.client, error)
        except Exception as error:
            self._report(connection, guest.client, error)

    def _report(self, connection: ServerConnection, client: str, error: Exception) -> None:
        """Tell the client what was wrong, as a text, and close, as openpi's server does."""
        if isinstance(error, RemoteError):
            text = str(error)
            self._refusals.note(f"{client}: {text}")
        else:
            text = f"the server failed ({type(error).__name__}); its log says where."
            logger.error("a message of %s could not be handled", client, exc_info=error)
        try:
            connection.send(text)
        except ConnectionClosed:
            return
        _close(connection, CloseCode.INTERNAL_ERROR, "The error is in the message before.")


class _Conversation:
    """Observations and answers, one after the other."""

    def __init__(self, connection: ServerConnection, guest: Guest) -> None:
        self._connection = connection
        self._guest = guest
        self._served = guest.brain.served

    def run(self) -> None:
        """Answer until the connection ends, which raises, as does a message that cannot be answered."""
        before_s: float | None = None
        while True:
            message = self._connection.recv()
            began = time.monotonic()
            answer = self._answer(message)
            if before_s is not None:
                answer["server_timing"]["prev_total_ms"] = before_s * 1000
            self._connection.send(pack(answer))
            before_s = time.monotonic() - began

    def _answer(self, message: bytes | str) -> dict[str, Any]:
        if isinstance(message, str):
            raise WireFormatError("a text came, expected a MessagePack map with an observation.")
        content = unpack(message)
        if not isinstance(content, dict):
            raise WireFormatError(
                f"the message is {type(content).__name__}, expected a map with an observation."
            )
        observation, task = translate(content, self._served)
        began = time.monotonic()
        inference = self._guest.infer(observation, task, INFER_TIMEOUT_S)
        return {
            "actions": np.ascontiguousarray(inference.actions, dtype=np.float32),
            "policy_timing": {"infer_ms": inference.infer_s * 1000},
            "server_timing": {"infer_ms": (time.monotonic() - began) * 1000},
        }


def metadata(brain: Brain, brains: Sequence[Brain]) -> dict[str, Any]:
    """What a client learns on connecting: the policy, what it wants and under which keys, what it gives."""
    served: Served = brain.served
    return {
        "server": f"lerobot_ext {lerobot_ext.__version__}",
        "checkpoint": brain.path,
        "checkpoints": listed(brains),
        "policy_type": served.policy_type,
        "inputs": {
            spec.name: {
                "kind": spec.kind,
                "shape": list(spec.sent.shape),
                "dtypes": list(spec.dtypes),
                "keys": list(names_of(spec, served)),
            }
            for spec in served.inputs
        },
        "action_dim": served.action_dim,
        "action_names": list(served.action_names) if served.action_names else None,
        "chunk_size": served.chunk_size,
        "n_action_steps": served.n_action_steps,
        "n_obs_steps": served.n_obs_steps,
    }


def _close(connection: ServerConnection, code: CloseCode, reason: str) -> None:
    """Close with a reason that fits into the frame."""
    connection.close(code, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))
