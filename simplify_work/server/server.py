"""The server: one thread reads the socket, one runs the policy and answers; sessions are known by their identity.

The reading thread never waits for the policy, so that a Hello is answered and garbage refused at any time. What
infers is anything with the protocol of `protocol.Runner`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import zmq

import lerobot_ext
from simplify_work.server.channel import Channel
from simplify_work.server.decoders import Decoders
from simplify_work.server.mailbox import Job, Mailbox
from simplify_work.server.metrics import Metrics
from simplify_work.server.protocol import Inference, Request, Runner, SessionState
from simplify_work.wire import listen, sockets
from simplify_work.wire.codec import pack, peek, read_arrays
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
    MODEL_ACTIONS,
    POSTPROCESSOR_OFFSET,
    POSTPROCESSOR_SCALE,
    PREV_CHUNK_LEFT_OVER,
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
from simplify_work.wire.shared import SharedView

logger = logging.getLogger(__name__)

MAX_SESSIONS = 64
MAX_BATCH = 16
IDLE_TIMEOUT_S = 600.0

_POLL_S = 0.2
_BYE_LINGER_MS = 500
_BYE_HEAD_START_S = 0.1
_STOP_TIMEOUT_S = 10.0
_MALFORMED_LOGGED = 10  # lines about garbage before only the count is kept


@dataclass
class _Session:
    """One client.

    Attributes:
        client: Its name.
        state: Of its policy and processors.
        last_seen_s: `monotonic` time of its last message.
        memory_name: Name of its shared memory.
        memory: The server's access to that.
    """

    client: str
    state: SessionState
    last_seen_s: float = field(default_factory=time.monotonic)
    memory_name: str | None = None
    memory: SharedView | None = None

    def share(self, name: str | None) -> None:
        """Read arrays from this segment from now on, if it can be had."""
        if name == self.memory_name:
            return  # its name is gone since it was opened
        if self.memory is not None:
            self.memory.close()
        self.memory_name, self.memory = name, None
        if name is not None:
            try:
                self.memory = SharedView(name)
            except WireFormatError as error:
                logger.warning("%s sends its arrays through the socket: %s", self.client, error)


class PolicyServer:
    """Answers robots with chunks of a policy's actions.

    Attributes:
        metrics: What it did.

    Args:
        runner: Loaded and warmed up.
        socket: From `listen.bind`; the server closes it.
        max_sessions: Further clients are refused.
        idle_timeout_s: A session without a message for this long is ended.
        max_batch: Observations inferred at once, at most.
    """

    def __init__(
        self,
        runner: Runner,
        socket: zmq.Socket,
        max_sessions: int = MAX_SESSIONS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._runner = runner
        self._shares_memory = listen.endpoint(socket).startswith("ipc://")
        self._strangers = sockets.Strangers(socket)
        self._channel = Channel(socket)
        self._max_sessions = max_sessions
        self._max_batch = max_batch
        self._idle_timeout_s = idle_timeout_s
        self._sessions: dict[bytes, _Session] = {}
        self._mailbox = Mailbox()
        self._decoders = Decoders(self._decoded)
        self._stopping = threading.Event()
        self._malformed = 0
        self.metrics = Metrics(lambda: len(self._sessions))
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
        self._decoders.close()
        self._channel.wake()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)

    # --- the socket's thread ---

    def _serve(self) -> None:
        try:
            while not self._stopping.is_set():
                if (message := self._channel.receive(_POLL_S)) is not None:
                    identity, *frames = message
                    self._receive(identity.bytes, frames)
                self._end_idle_sessions()
                for _ in range(self._strangers.arrived()):
                    self._count_malformed(
                        "a connection that does not speak ZeroMQ, or not as this server does"
                    )
            for identity, session in self._sessions.items():
                self._reply(identity, Bye(reason="the server was stopped."))
                session.share(None)
            if self._sessions:  # so that they read it before they notice the end of the connection
                time.sleep(_BYE_HEAD_START_S)
        except Exception:
            logger.exception("the server's socket failed; no client is served any more")
        finally:
            self._channel.close(_BYE_LINGER_MS)

    def _receive(self, identity: bytes, frames: list[zmq.Frame]) -> None:
        """Answer one message; whatever it holds, the server goes on."""
        request = None
        try:
            message = peek(frames)
            request = getattr(message, "request", None)
            if isinstance(message, Infer):
                self._observe(identity, message, frames)
                return
            read_arrays(message, frames)
            match message:
                case Hello():
                    self._welcome(identity, message)
                case Reset():
                    self._known(identity)
                    self._queue(Job(identity, message))
                case Bye():
                    self._end(identity, message.reason)
                case _:
                    raise WireFormatError(f"a client does not send {type(message).__name__}.")
        except Exception as error:
            self._refuse(identity, request, error)

    def _refuse(self, identity: bytes, request: int | None, error: Exception) -> None:
        """Answer with an error."""
        if isinstance(error, WireFormatError):
            self._count_malformed(f"a message of client {identity.hex()[:8]}: {error}")
        else:
            self.metrics.refused.inc()
        if not isinstance(error, RemoteError):
            logger.error("a message of client %s could not be handled", identity.hex()[:8], exc_info=error)
            error = RemoteInferenceError(f"the server failed: {error}")
        self._reply(identity, _error(request, error))

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        """Open the session, or go on with it, and say what is served."""
        served = self._runner.served
        if hello.features is not None:
            check_features(served.inputs, hello.features, served.policy_type)
        session = self._sessions.get(identity)
        if session is None:
            if len(self._sessions) >= self._max_sessions:
                raise ServerBusy(
                    f"the server has its {self._max_sessions} sessions; wait for one to end, or start another server."
                )
            session = self._sessions[identity] = _Session(hello.client, self._runner.open_session())
            logger.info("session of %s began (%d now)", hello.client, len(self._sessions))
        session.last_seen_s = time.monotonic()
        session.share(hello.shared_memory if self._shares_memory else None)
        welcome = Welcome(
            request=hello.request,
            server=f"lerobot_ext {lerobot_ext.__version__}",
            policy_type=served.policy_type,
            inputs=served.inputs,
            action_dim=served.action_dim,
            action_names=served.action_names,
            chunk_size=served.chunk_size,
            n_action_steps=served.n_action_steps,
            n_obs_steps=served.n_obs_steps,
            supports_rtc=served.supports_rtc,
            takes_tip=served.takes_tip,
            pictures=served.pictures,
            shared_memory=session.memory is not None,
        )
        arrays = {}
        if served.postprocessor is not None:
            arrays = dict(zip((POSTPROCESSOR_SCALE, POSTPROCESSOR_OFFSET), served.postprocessor, strict=True))
        self._reply(identity, welcome, arrays)

    def _known(self, identity: bytes) -> _Session:
        session = self._sessions.get(identity)
        if session is None:
            raise SessionLost(
                "the server does not know this client; it was restarted or the client was idle."
            )
        session.last_seen_s = time.monotonic()
        return session

    def _observe(self, identity: bytes, message: Infer, frames: list[zmq.Frame]) -> None:
        """Queue an observation; encoded pictures are left to the decoders."""
        session = self._known(identity)
        self.metrics.requests.inc()
        infos = message.arrays
        if all(info.encoding == "raw" for info in infos) or any(info.offset is not None for info in infos):
            self._queue(Job(identity, message, read_arrays(message, frames, session.memory)))
            return
        job = Job(identity, message, None)
        self._queue(job)
        self._decoders.submit(job, lambda: read_arrays(message, frames))

    def _queue(self, job: Job) -> None:
        for old in self._mailbox.put(job):
            self.metrics.superseded.inc()
            newer = Superseded("a newer request of the same robot took this one's place.")
            self._reply(old.session, _error(old.message.request, newer))

    def _decoded(self, job: Job, found: Mapping[str, np.ndarray] | Exception) -> None:
        """A decoder is done with a job (in its thread)."""
        if not isinstance(found, Exception):
            self._mailbox.complete(job, found)
        elif self._mailbox.withdraw(job):
            self._refuse(job.session, job.message.request, found)

    def _end(self, identity: bytes, reason: str) -> None:
        session = self._sessions.pop(identity, None)
        self._mailbox.discard(identity)
        if session is not None:
            session.share(None)
            logger.info("session of %s ended: %s (%d left)", session.client, reason, len(self._sessions))

    def _end_idle_sessions(self) -> None:
        limit = time.monotonic() - self._idle_timeout_s
        for identity in [key for key, session in self._sessions.items() if session.last_seen_s < limit]:
            self._end(identity, f"silent for {self._idle_timeout_s:g} s")

    def _count_malformed(self, what: str) -> None:
        """Log the first ones; garbage must not be able to fill the disk."""
        self._malformed += 1
        self.metrics.malformed.inc()
        if self._malformed <= _MALFORMED_LOGGED:
            last = " (further ones are only counted)" if self._malformed == _MALFORMED_LOGGED else ""
            logger.warning("refused %s%s", what, last)

    def _reply(self, identity: bytes, message: Message, arrays: dict[str, np.ndarray] | None = None) -> None:
        self._channel.send([identity, *pack(message, arrays)])

    # --- the worker's thread ---

    def _work(self) -> None:
        while (jobs := self._mailbox.take(self._max_batch)) is not None:
            asked: list[tuple[Job, Request]] = []
            for job in jobs:
                session = self._sessions.get(job.session)
                if session is None:
                    continue
                if isinstance(job.message, Reset):
                    self._reset(session, job)
                else:
                    asked.append((job, _request(session.state, job)))
            if asked:
                self._infer(asked)

    def _reset(self, session: _Session, job: Job) -> None:
        try:
            session.state.reset()
            self._reply(job.session, Done(request=job.message.request))
        except Exception as error:
            self._fail(job, error)

    def _infer(self, asked: Sequence[tuple[Job, Request]]) -> None:
        """Answer each request as soon as its chunk is there."""
        waiting = dict(enumerate(asked))
        sent: list[tuple[Durations, int]] = []
        try:
            for index, outcome in self._runner.infer([request for _, request in asked]):
                job, _ = waiting.pop(index)
                if isinstance(outcome, Exception):
                    self._fail(job, outcome)
                else:
                    sent.append((self._answer(job, outcome), outcome.batch_size))
        except Exception as error:
            for job, _ in waiting.values():
                self._fail(job, error)
        for durations, batch_size in sent:  # counted when nobody waits for it
            self.metrics.chunk_sent(durations, batch_size)

    def _answer(self, job: Job, result: Inference) -> Durations:
        arrays = {ACTIONS: result.actions}
        if result.model_actions is not None:
            arrays[MODEL_ACTIONS] = result.model_actions
        worked_s = result.preprocess_s + result.infer_s + result.postprocess_s
        queue_s = max(0.0, time.perf_counter() - job.received_s - worked_s)
        durations = Durations(queue_s, result.preprocess_s, result.infer_s, result.postprocess_s)
        self._reply(job.session, Chunk(request=job.message.request, durations=durations), arrays)
        return durations

    def _fail(self, job: Job, error: Exception) -> None:
        self.metrics.refused.inc()
        if not isinstance(error, RemoteError):
            logger.error("the policy failed on an observation", exc_info=error)
            text = f"the policy failed on the server ({type(error).__name__}: {error}); its log says where."
            error = RemoteInferenceError(text)
        self._reply(job.session, _error(job.message.request, error))


def _request(state: SessionState, job: Job) -> Request:
    message = job.message
    observation = dict(job.arrays)
    left_over = observation.pop(PREV_CHUNK_LEFT_OVER, None)
    return Request(
        session=state,
        observation=observation,
        task=message.task,
        robot_type=message.robot_type,
        seed=message.seed,
        rtc=message.rtc,
        left_over=left_over,
        model_actions=message.model_actions,
    )


def _error(request: int | None, error: RemoteError) -> Error:
    return Error(request=request, error=error.kind, text=str(error)[:MAX_TEXT])
