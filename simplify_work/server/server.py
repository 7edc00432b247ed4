"""The server: one thread that owns the socket, one that runs the policy; sessions are known by their identity.

The socket's thread never waits for the policy, so that a Hello is answered and garbage refused at any time. What a
checkpoint is and how it infers is the business of `runner`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from dataclasses import dataclass, field

import zmq

import lerobot_ext
from simplify_work.server.mailbox import Job, Mailbox
from simplify_work.server.runner import PolicyRunner, PolicySession
from simplify_work.wire import sockets
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import (
    RemoteError,
    RemoteInferenceError,
    ServerBusy,
    SessionLost,
    Superseded,
    WireFormatError,
)
from simplify_work.wire.features import check_features
from simplify_work.wire.messages import (
    ACTIONS,
    MAX_TEXT,
    Bye,
    Chunk,
    Done,
    Durations,
    Error,
    Hello,
    Infer,
    Message,
    Reset,
    Welcome,
)

logger = logging.getLogger(__name__)

MAX_SESSIONS = 64
IDLE_TIMEOUT_S = 600.0

_POLL_MS = 200
_BYE_LINGER_MS = 500
_STOP_TIMEOUT_S = 10.0
_MALFORMED_LOGGED = 10  # lines about garbage before only the count is kept


_numbers = itertools.count()


@dataclass
class _Session:
    """One client.

    Attributes:
        client: Its name.
        policy: Its own processor state.
        last_seen_s: `monotonic` time of its last message.
    """

    client: str
    policy: PolicySession
    last_seen_s: float = field(default_factory=time.monotonic)


class PolicyServer:
    """Answers robots with chunks of a policy's actions.

    Args:
        runner: Loaded and warmed up.
        socket: From `listen.bind`; the server closes it.
        max_sessions: Further clients are refused.
        idle_timeout_s: A session without a message for this long is ended.
    """

    def __init__(
        self,
        runner: PolicyRunner,
        socket: zmq.Socket,
        max_sessions: int = MAX_SESSIONS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self._runner = runner
        self._socket = socket
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._sessions: dict[bytes, _Session] = {}
        self._mailbox = Mailbox()
        self._stopping = threading.Event()
        self._malformed = 0
        # The worker hands its replies to the socket's thread through this pair: sockets belong to one thread.
        self._inbox = f"inproc://replies-{next(_numbers)}"
        self._replies = zmq.Context.instance().socket(zmq.PULL)
        self._replies.bind(self._inbox)
        self._threads = [
            threading.Thread(target=self._serve, name="policy-server-socket", daemon=True),
            threading.Thread(target=self._work, name="policy-server-worker", daemon=True),
        ]

    @property
    def malformed(self) -> int:
        """Number of messages refused because they could not be read."""
        return self._malformed

    @property
    def running(self) -> bool:
        """True from `start` until `stop`, unless one of the threads failed."""
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell the clients, and end after the chunk that is being inferred."""
        self._stopping.set()
        self._mailbox.close()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)

    # --- the socket's thread ---

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._replies, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(_POLL_MS))
                if self._replies in ready:
                    self._send(self._replies.recv_multipart(copy=False))
                if self._socket in ready:
                    identity, *frames = sockets.receive(self._socket)
                    self._receive(identity.bytes, frames)
                self._end_idle_sessions()
            for identity in self._sessions:
                self._reply(identity, Bye(reason="the server was stopped."))
        except Exception:
            logger.exception("the server's socket failed; no client is served any more")
        finally:
            self._socket.close(linger=_BYE_LINGER_MS)
            self._replies.close(linger=0)

    def _receive(self, identity: bytes, frames: list[zmq.Frame]) -> None:
        """Answer one message; whatever it holds, the server goes on."""
        request = None
        try:
            message, arrays = unpack(frames)
            request = getattr(message, "request", None)
            match message:
                case Hello():
                    self._reply(identity, self._welcome(identity, message))
                case Infer() | Reset():
                    self._queue(Job(identity, message, arrays))
                case Bye():
                    self._end(identity, message.reason)
                case _:
                    raise WireFormatError(f"a client does not send {type(message).__name__}.")
        except RemoteError as error:
            if isinstance(error, WireFormatError):
                self._count_malformed(identity, error)
            self._reply(identity, _error(request, error))
        except Exception as error:
            logger.exception("a message of client %s could not be handled", identity.hex()[:8])
            self._reply(identity, _error(request, RemoteInferenceError(f"the server failed: {error}")))

    def _welcome(self, identity: bytes, hello: Hello) -> Welcome:
        """Open the session, or go on with it, and say what is served."""
        runner = self._runner
        if hello.features is not None:
            check_features(runner.inputs, hello.features, runner.config.type)
        session = self._sessions.get(identity)
        if session is None:
            if len(self._sessions) >= self._max_sessions:
                raise ServerBusy(
                    f"the server has its {self._max_sessions} sessions; wait for one to end, or start another server."
                )
            self._sessions[identity] = _Session(hello.client, runner.open_session())
            logger.info("session of %s began (%d now)", hello.client, len(self._sessions))
        else:
            session.last_seen_s = time.monotonic()
        names = getattr(runner.config, "action_feature_names", None)
        return Welcome(
            request=hello.request,
            server=f"lerobot_ext {lerobot_ext.__version__}",
            policy_type=runner.config.type,
            inputs=runner.inputs,
            action_dim=runner.action_dim,
            action_names=tuple(names) if names else None,
            chunk_size=runner.chunk_size,
            n_action_steps=runner.n_action_steps,
        )

    def _queue(self, job: Job) -> None:
        session = self._sessions.get(job.session)
        if session is None:
            raise SessionLost(
                "the server does not know this client; it was restarted or the client was idle."
            )
        session.last_seen_s = time.monotonic()
        if isinstance(job.message, Infer) and job.message.rtc is not None:
            raise RemoteInferenceError("this server does not run RTC; use --inference.type=sync.")
        for old in self._mailbox.put(job):
            newer = Superseded("a newer request of the same robot took this one's place.")
            self._reply(old.session, _error(old.message.request, newer))

    def _end(self, identity: bytes, reason: str) -> None:
        session = self._sessions.pop(identity, None)
        self._mailbox.discard(identity)
        if session is not None:
            logger.info("session of %s ended: %s (%d left)", session.client, reason, len(self._sessions))

    def _end_idle_sessions(self) -> None:
        limit = time.monotonic() - self._idle_timeout_s
        for identity in [key for key, session in self._sessions.items() if session.last_seen_s < limit]:
            self._end(identity, f"silent for {self._idle_timeout_s:g} s")

    def _count_malformed(self, identity: bytes, error: WireFormatError) -> None:
        """Log the first ones; garbage must not be able to fill the disk."""
        self._malformed += 1
        if self._malformed <= _MALFORMED_LOGGED:
            last = " (further ones are only counted)" if self._malformed == _MALFORMED_LOGGED else ""
            logger.warning("refused a message of client %s: %s%s", identity.hex()[:8], error, last)

    def _reply(self, identity: bytes, message: Message) -> None:
        self._send([identity, *pack(message)])

    def _send(self, frames: list) -> None:
        """Hand a reply to ZeroMQ; a client that is gone or does not read loses it, and nobody waits."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            logger.debug("a reply was dropped: its client does not read")

    # --- the worker's thread ---

    def _work(self) -> None:
        outbox = zmq.Context.instance().socket(zmq.PUSH)
        outbox.connect(self._inbox)
        try:
            while (job := self._mailbox.take()) is not None:
                session = self._sessions.get(job.session)
                if session is None:
                    continue
                frames = self._answer(session.policy, job)
                if not self._stopping.is_set():  # nobody would take it: the socket's thread has said goodbye
                    outbox.send_multipart([job.session, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            logger.debug("a reply was dropped: the server stopped meanwhile")
        finally:
            outbox.close(linger=0)

    def _answer(self, policy: PolicySession, job: Job) -> list:
        """Frames of the reply to one job; an error of the policy is one, too."""
        message = job.message
        try:
            if isinstance(message, Reset):
                policy.reset()
                return pack(Done(request=message.request))
            queue_s = time.perf_counter() - job.received_s
            result = policy.infer(job.arrays, message.task, message.robot_type, message.seed)
            durations = Durations(queue_s, result.preprocess_s, result.infer_s, result.postprocess_s)
            return pack(Chunk(request=message.request, durations=durations), {ACTIONS: result.actions})
        except RemoteError as error:
            return pack(_error(message.request, error))
        except Exception as error:
            logger.exception("the policy failed on an observation")
            text = f"the policy failed on the server ({type(error).__name__}: {error}); its log says where."
            return pack(_error(message.request, RemoteInferenceError(text)))


def _error(request: int | None, error: RemoteError) -> Error:
    return Error(request=request, error=error.kind, text=str(error)[:MAX_TEXT])
