"""A door for the clients of ACT's ZeroMQ servers: a REQ socket, pickles, one action a step, ensembled over the episode.

A client sends the pickled text 'RESET' or {'qpos': …, 'images': {name: …}} and gets {'status': 'OK'},
{'status': 'OK', 'action': …} or {'status': 'ERROR', 'message': …}. What they hold is in `act_messages`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import zmq

from lerobot_ext.errors import UserError
from lerobot_ext.rollout.ensemble import ACT_COEFF, TemporalEnsemble
from simplify_work.server.channel import Channel
from simplify_work.server.doors import Brain, BrainSession, act_messages, taken
from simplify_work.server.doors.guests import Refusals, check_single
from simplify_work.wire import listen
from simplify_work.wire.address import tcp_address
from simplify_work.wire.errors import (
    FeatureMismatch,
    RemoteError,
    ServerBusy,
    ServerStopped,
    SessionLost,
    WireFormatError,
)

logger = logging.getLogger(__name__)

INFER_TIMEOUT_S = 30.0

_WAIT_S = 60.0  # the reader is woken by what it waits for; this is no poll
_MAX_AT_ONCE = 32  # requests that are being answered
_MAX_CLIENTS = 256  # remembered, whether their sessions still are or not
_GONE_S = 30.0  # a client this silent gives its place up to another one, if places are short
_HIGH_WATER_MARK = 4  # a REQ client has one request under way
_CORRELATE_BYTES = 4
_LINGER_MS = 500
_STOP_TIMEOUT_S = 10.0
_STOPPED = "the server is being stopped."


@dataclass
class _Client:
    """One connection.

    Attributes:
        session: Of its robot.
        ensemble: Of the episode's chunks.
        last_seen_s: `monotonic` time of its last request.
    """

    session: BrainSession
    ensemble: TemporalEnsemble
    last_seen_s: float = field(default_factory=time.monotonic)


class ActZmqDoor:
    """Answers ACT clients with the actions of one checkpoint.

    A connection is a robot with an episode of its own; one that is made anew begins a new episode.

    Attributes:
        name: Of the door.
        endpoint: Where it answers, once started.

    Args:
        brains: The first one is served.
        host: To listen on.
        port: 0 means any free one.

    Raises:
        UserError: If an ACT client cannot give what the checkpoint wants.
    """

    name = "act_zmq"

    def __init__(self, brains: Sequence[Brain], host: str, port: int) -> None:
        self._brain = brains[0]
        self._host, self._port = host, port
        self.endpoint = tcp_address(host, port).endpoint
        served = self._brain.served
        try:
            check_single(served)
        except FeatureMismatch as error:
            raise UserError(str(error)) from error
        self._translator = act_messages.Translator(served)
        self._coeff = ACT_COEFF if served.temporal_ensemble_coeff is None else served.temporal_ensemble_coeff
        self._channel: Channel | None = None
        self._clients: dict[bytes, _Client] = {}
        self._answering: set[bytes] = set()
        self._lock = threading.Lock()
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._refusals = Refusals(logger)
        self._thread = threading.Thread(target=self._serve, name="door-act-zmq", daemon=True)
        self._pool = ThreadPoolExecutor(_MAX_AT_ONCE, thread_name_prefix="door-act-zmq")

    def start(self) -> None:
        """Take the port and begin to answer.

        Raises:
            UserError: If the port cannot be had.
        """
        address = tcp_address(self._host, self._port)
        # ROUTER, not REP: several robots are answered at once, and one that goes away takes no reply of another's along.
        socket = zmq.Context.instance().socket(zmq.ROUTER)
        socket.linger = 0
        # Up to here a request that is too long is told so; a peer that announces more is dropped unread.
        socket.maxmsgsize = 2 * act_messages.MAX_REQUEST_BYTES
        socket.sndhwm = socket.rcvhwm = _HIGH_WATER_MARK
        socket.ipv6 = address.is_ipv6
        try:
            socket.bind(address.endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise taken(self.name, self._host, self._port, error) from error
        self.endpoint = listen.endpoint(socket)
        self._channel = Channel(socket)
        self._thread.start()

    def stop(self) -> None:
        """Close the port and end all sessions."""
        self._stopping.set()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.session.close()
        self._pool.shutdown()  # who waits for an answer gets one, while the socket is open
        self._ended.set()
        if self._thread.is_alive():
            self._channel.wake()
            self._thread.join(_STOP_TIMEOUT_S)

    # --- the socket's thread ---

    def _serve(self) -> None:
        try:
            while not self._ended.is_set():
                if (message := self._channel.receive(_WAIT_S)) is not None:
                    identity, *frames = message
                    self._receive(identity.bytes, frames)
        except Exception:
            logger.exception("the door %s failed; none of its clients is served any more", self.name)
        finally:
            self._channel.close(_LINGER_MS)

    def _receive(self, identity: bytes, frames: list[zmq.Frame]) -> None:
        """Hand one request to a thread that may wait for the policy."""
        sizes = [len(frame) for frame in frames]
        end = sizes.index(0) + 1 if 0 in sizes else 0
        route = [identity, *(frames[:end] or [b""])]
        # Before its request a REQ socket puts an empty part, and before that a number if it has REQ_CORRELATE. More comes
        # through a proxy, whose clients would share an episode.
        if not end or len(frames) != end + 1 or sizes[: end - 1] not in ([], [_CORRELATE_BYTES]):
            self._reply(route, act_messages.error("this is no request of one part by a REQ socket."))
        elif identity in self._answering:
            self._reply(route, act_messages.error("the last request of this client is not answered yet."))
        elif len(self._answering) >= _MAX_AT_ONCE:
            self._reply(route, act_messages.error(f"{_MAX_AT_ONCE} requests are being answered; try again."))
        else:
            self._answering.add(identity)
            try:
                self._pool.submit(self._answer, route, frames[end])
            except RuntimeError:  # shut down
                self._answering.discard(identity)
                self._reply(route, act_messages.error(_STOPPED))

    def _reply(self, route: list[bytes | zmq.Frame], reply: bytes) -> None:
        self._channel.send([*route, reply])

    # --- the pool's threads ---

    def _answer(self, route: list[bytes | zmq.Frame], frame: zmq.Frame) -> None:
        """Answer one request; a REQ client that gets no answer hangs, so whatever happens is one."""
        identity = route[0]
        try:
            reply = self._answered(identity, frame)
        except RemoteError as error:
            self._refusals.note(f"a request at the door {self.name}: {error}")
            reply = act_messages.error(str(error))
        except Exception as error:
            logger.exception("a request at the door %s could not be handled", self.name)
            reply = act_messages.error(f"the server failed ({type(error).__name__}); its log says where.")
        # Before the reply, after which the client may send its next request at once.
        self._answering.discard(identity)
        self._reply(route, reply)

    def _answered(self, identity: bytes, frame: zmq.Frame) -> bytes:
        try:
            request = act_messages.read_request(frame.buffer)
        except WireFormatError as error:
            raise WireFormatError(
                f"the request cannot be read: {error} Expected: {self._translator.wanted}."
            ) from error
        observation = None if request is None else self._translator.observation(request)
        try:
            return self._act(self._client(identity), observation)
        except SessionLost:
            with self._lock:
                self._clients.pop(identity, None)
            logger.info("a client at the door %s was silent for so long that a new episode begins", self.name)
            return self._act(self._client(identity), observation)

    def _act(self, client: _Client, observation: dict | None) -> bytes:
        """Ask the policy, and take its chunk into the episode's."""
        if observation is None:
            client.session.reset()
            client.ensemble.reset()
            return act_messages.done()
        chunk = client.session.infer(observation, timeout_s=INFER_TIMEOUT_S).actions
        return act_messages.action(client.ensemble.add(chunk))

    def _client(self, identity: bytes) -> _Client:
        """The client of a connection; a new one has a new session."""
        with self._lock:
            if self._stopping.is_set():
                raise ServerStopped(_STOPPED)
            client = self._clients.get(identity)
            if client is None:
                if len(self._clients) >= _MAX_CLIENTS:
                    self._drop_silent()
                client = self._clients[identity] = _Client(
                    self._session(identity), TemporalEnsemble(self._coeff)
                )
            client.last_seen_s = time.monotonic()
            return client

    def _session(self, identity: bytes) -> BrainSession:
        name = f"{self.name} client {identity.hex()[:8]}"
        try:
            return self._brain.open_session(name)
        except ServerBusy:
            if not self._drop_silent():
                raise
            return self._brain.open_session(name)

    def _drop_silent(self) -> bool:
        """End the session of the client that was silent for longest: nobody says so when a REQ client goes away."""
        silent = self._clients.keys() - self._answering
        identity = min(silent, key=lambda key: self._clients[key].last_seen_s, default=None)
        if identity is None or time.monotonic() - self._clients[identity].last_seen_s < _GONE_S:
            return False
        self._clients.pop(identity).session.close()
        return True
