"""Our own clients' server: one thread reads a ZeroMQ socket; clients are known by their identity there.

The reading thread never waits for the policy, so that a Hello is answered and garbage refused at any time. What
infers, and answers from its own thread, is in `worker`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import zmq

import lerobot_ext
from simplify_work.server.channel import Channel
from simplify_work.server.decoders import Decoders
from simplify_work.server.mailbox import Answer, Job
from simplify_work.server.protocol import Runner
from simplify_work.server.worker import IDLE_TIMEOUT_S, MAX_BATCH, MAX_SESSIONS, Session, Worker
from simplify_work.wire import listen, sockets
from simplify_work.wire.codec import pack, peek, read_arrays
from simplify_work.wire.errors import RemoteError, RemoteInferenceError, SessionLost, WireFormatError
from simplify_work.wire.features import check_features
from simplify_work.wire.messages import (
    ACTIONS,
    MAX_TEXT,
    MODEL_ACTIONS,
    POSTPROCESSOR_OFFSET,
    POSTPROCESSOR_SCALE,
    Bye,
    Chunk,
    Done,
    Error,
    Hello,
    Infer,
    Message,
    Reset,
    Welcome,
)
from simplify_work.wire.shared import SharedView

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_BYE_LINGER_MS = 500
_BYE_HEAD_START_S = 0.1
_STOP_TIMEOUT_S = 10.0
_MALFORMED_LOGGED = 10  # lines about garbage before only the count is kept


@dataclass
class _Client:
    """One client.

    Attributes:
        session: Of its robot.
        memory_name: Name of its shared memory.
        memory: The server's access to that.
    """

    session: Session
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
                logger.warning("%s sends its arrays through the socket: %s", self.session.client, error)


class PolicyServer:
    """Answers robots with chunks of a policy's actions.

    Attributes:
        worker: What infers; doors may use it, too.
        metrics: What it did.

    Args:
        runner: Loaded and warmed up.
        socket: From `listen.bind`; the server closes it.
        max_sessions: Further clients are refused.
        idle_timeout_s: A session without a message for this long is ended.
        max_batch: Observations inferred at once, at most.
        path: The checkpoint, as the user named it.
    """

    def __init__(
        self,
        runner: Runner,
        socket: zmq.Socket,
        max_sessions: int = MAX_SESSIONS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_batch: int = MAX_BATCH,
        path: str = "",
    ) -> None:
        self.worker = Worker(runner, path, max_sessions, idle_timeout_s, max_batch)
        self.metrics = self.worker.metrics
        self._shares_memory = listen.endpoint(socket).startswith("ipc://")
        self._strangers = sockets.Strangers(socket)
        self._channel = Channel(socket)
        self._clients: dict[bytes, _Client] = {}
        self._decoders = Decoders(self._decoded)
        self._stopping = threading.Event()
        self._malformed = 0
        self._thread = threading.Thread(target=self._serve, name="policy-server-socket", daemon=True)

    @property
    def malformed(self) -> int:
        """Number of messages refused because they could not be read."""
        return self._malformed

    @property
    def running(self) -> bool:
        """True from `start` until `stop`, unless one of the threads failed."""
        return self._thread.is_alive() and self.worker.running

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self.worker.start()

    def stop(self) -> None:
        """Tell the clients, and end after the chunk that is being inferred."""
        self._stopping.set()
        self.worker.close()
        self._decoders.close()
        self._channel.wake()
        self._thread.join(_STOP_TIMEOUT_S)
        self.worker.stop()

    # --- the socket's thread ---

    def _serve(self) -> None:
        try:
            while not self._stopping.is_set():
                if (message := self._channel.receive(_POLL_S)) is not None:
                    identity, *frames = message
                    self._receive(identity.bytes, frames)
                self._forget_ended()
                for _ in range(self._strangers.arrived()):
                    self._count_malformed(
                        "a connection that does not speak ZeroMQ, or not as this server does"
                    )
            for identity, client in self._clients.items():
                self._reply(identity, Bye(reason="the server was stopped."))
                client.share(None)
            if self._clients:  # so that they read it before they notice the end of the connection
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
                    self.worker.submit(self._job(identity, message, {}))
                case Bye():
                    self._end(identity, message.reason)
                case _:
                    raise WireFormatError(f"a client does not send {type(message).__name__}.")
        except Exception as error:
            self._refuse(identity, request, error)

    def _refuse(self, identity: bytes, request: int | None, error: Exception) -> None:
        """Answer with an error."""
        self._reply(identity, _error(request, self._counted(f"client {identity.hex()[:8]}", error)))

    def _counted(self, client: str, error: Exception) -> RemoteError:
        """Note that a message of a client was refused, and what to tell it."""
        if isinstance(error, WireFormatError):
            self._count_malformed(f"a message of {client}: {error}")
        else:
            self.metrics.refused.inc()
        if isinstance(error, RemoteError):
            return error
        logger.error("a message of %s could not be handled", client, exc_info=error)
        return RemoteInferenceError(f"the server failed: {error}")

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        """Open the session, or go on with it, and say what is served."""
        served = self.worker.served
        if hello.features is not None:
            check_features(served.inputs, hello.features, served.policy_type)
        client = self._clients.get(identity)
        if client is None or client.session.ended:
            self._forget(identity)
            client = self._clients[identity] = _Client(self.worker.open_session(hello.client))
        client.session.touch()
        client.share(hello.shared_memory if self._shares_memory else None)
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
            temporal_ensemble_coeff=served.temporal_ensemble_coeff,
            shared_memory=client.memory is not None,
        )
        arrays = {}
        if served.postprocessor is not None:
            arrays = dict(zip((POSTPROCESSOR_SCALE, POSTPROCESSOR_OFFSET), served.postprocessor, strict=True))
        self._reply(identity, welcome, arrays)

    def _job(self, identity: bytes, message: Infer | Reset, arrays: Mapping[str, np.ndarray] | None) -> Job:
        answer = partial(self._answer, identity, message.request)
        return Job(self._known(identity).session, message, arrays, answer)

    def _known(self, identity: bytes) -> _Client:
        client = self._clients.get(identity)
        if client is None:
            raise SessionLost(
                "the server does not know this client; it was restarted or the client was idle."
            )
        client.session.touch()
        return client

    def _observe(self, identity: bytes, message: Infer, frames: list[zmq.Frame]) -> None:
        """Queue an observation; encoded pictures are left to the decoders."""
        memory = self._known(identity).memory
        infos = message.arrays
        if all(info.encoding == "raw" for info in infos) or any(info.offset is not None for info in infos):
            self.worker.submit(self._job(identity, message, read_arrays(message, frames, memory)))
            return
        job = self._job(identity, message, None)
        self.worker.submit(job)
        self._decoders.submit(job, lambda: read_arrays(message, frames))

    def _decoded(self, job: Job, found: Mapping[str, np.ndarray] | Exception) -> None:
        """A decoder is done with a job (in its thread)."""
        if not isinstance(found, Exception):
            self.worker.waiting.complete(job, found)
        elif self.worker.withdraw(job):
            job.answer(Answer(self._counted(job.session.client, found)))

    def _forget(self, identity: bytes) -> None:
        client = self._clients.pop(identity, None)
        if client is not None:
            client.share(None)

    def _end(self, identity: bytes, reason: str) -> None:
        if (client := self._clients.get(identity)) is not None:
            self.worker.end(client.session, reason)
            self._forget(identity)

    def _forget_ended(self) -> None:
        """Let go of what clients held whose sessions the worker ended."""
        for identity in [key for key, client in self._clients.items() if client.session.ended]:
            self._forget(identity)

    def _count_malformed(self, what: str) -> None:
        """Log the first ones; garbage must not be able to fill the disk."""
        self._malformed += 1
        self.metrics.malformed.inc()
        if self._malformed <= _MALFORMED_LOGGED:
            last = " (further ones are only counted)" if self._malformed == _MALFORMED_LOGGED else ""
            logger.warning("refused %s%s", what, last)

    def _reply(self, identity: bytes, message: Message, arrays: dict[str, np.ndarray] | None = None) -> None:
        self._channel.send([identity, *pack(message, arrays)])

    # --- for the worker's and the decoders' threads, too ---

    def _answer(self, identity: bytes, request: int, answer: Answer) -> None:
        """Send what became of a job."""
        result = answer.result
        if isinstance(result, Exception):
            self._reply(identity, _error(request, result))
        elif result is None:
            self._reply(identity, Done(request=request))
        else:
            arrays = {ACTIONS: result.actions}
            if result.model_actions is not None:
                arrays[MODEL_ACTIONS] = result.model_actions
            self._reply(identity, Chunk(request=request, durations=answer.durations), arrays)


def _error(request: int | None, error: RemoteError) -> Error:
    return Error(request=request, error=error.kind, text=str(error)[:MAX_TEXT])
