"""What infers: one thread runs the policy for the sessions of all clients, however their requests arrive.

Sessions are opened here, counted and ended when they fall silent, whether they belong to our own clients
(`server.PolicyServer`) or to those of a door (`doors`). Nothing here knows of a socket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Self

import numpy as np

from simplify_work.server.mailbox import Answer, Job, Mailbox
from simplify_work.server.metrics import Metrics
from simplify_work.server.protocol import Inference, Request, Runner, Served, SessionState
from simplify_work.wire.errors import (
    RemoteError,
    RemoteInferenceError,
    ServerBusy,
    ServerStopped,
    ServerTimeout,
    SessionLost,
    Superseded,
)
from simplify_work.wire.messages import PREV_CHUNK_LEFT_OVER, Durations, Infer, Reset

logger = logging.getLogger(__name__)

MAX_SESSIONS = 64
MAX_BATCH = 16
IDLE_TIMEOUT_S = 600.0

_STOP_TIMEOUT_S = 10.0
_TRACE_EVERY_S = 10.0  # a policy that fails may do so at each step of each robot


class Session:
    """One client's robot, as `doors.BrainSession` says; made by `Worker.open_session`.

    Attributes:
        client: Its name.
        state: Of its policy and processors.
        last_seen_s: `monotonic` time of its last request.
        ended: True once it was closed or fell silent.
    """

    def __init__(self, worker: Worker, client: str, state: SessionState) -> None:
        self._worker = worker
        self.client = client
        self.state = state
        self.last_seen_s = time.monotonic()
        self.ended = False

    def touch(self) -> None:
        """Note that the client is there.

        Raises:
            SessionLost: If the session has ended.
        """
        if self.ended:
            raise SessionLost(
                "the server does not know this client; it was restarted or the client was idle."
            )
        self.last_seen_s = time.monotonic()

    def infer(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        task: str = "",
        robot_type: str = "",
        timeout_s: float,
    ) -> Inference:
        """As `doors.BrainSession.infer`."""
        message = Infer(request=0, task=task, robot_type=robot_type)
        inference = self._wait(message, dict(observation), timeout_s)
        # Our own clients look by themselves; a foreign one would execute it.
        if not np.isfinite(inference.actions).all():
            raise RemoteInferenceError(
                "the policy gave actions that are not finite numbers; check the checkpoint and the observation."
            )
        return inference

    def reset(self) -> None:
        """As `doors.BrainSession.reset`; waits until the policy has forgotten the episode."""
        self._wait(Reset(request=0), {}, None)

    def close(self) -> None:
        """As `doors.BrainSession.close`."""
        self._worker.end(self, "it was closed")

    def _wait(
        self, message: Infer | Reset, arrays: Mapping[str, np.ndarray], timeout_s: float | None
    ) -> Inference | None:
        answer: Future[Answer] = Future()
        job = Job(self, message, arrays, answer.set_result)
        self._worker.submit(job)
        try:
            result = answer.result(timeout_s).result
        except TimeoutError:
            self._worker.withdraw(job)
            raise ServerTimeout(
                f"the policy did not answer within {timeout_s:g} s: it is busy with other robots, or slow."
            ) from None
        if isinstance(result, Exception):
            raise result
        return result


class Worker:
    """One loaded checkpoint and the thread that runs it: a `doors.Brain`.

    Attributes:
        path: The checkpoint, as the user named it.
        metrics: What it did.
        waiting: Jobs that the policy has not begun.

    Args:
        runner: Loaded and warmed up.
        path: For `path`.
        max_sessions: Further clients are refused.
        idle_timeout_s: A session without a request for this long is ended.
        max_batch: Observations inferred at once, at most.
    """

    def __init__(
        self,
        runner: Runner,
        path: str = "",
        max_sessions: int = MAX_SESSIONS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self.path = path
        self._runner = runner
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._max_batch = max_batch
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self.waiting = Mailbox()
        self.metrics = Metrics(lambda: len(self._sessions))
        self._thread = threading.Thread(target=self._work, name="policy-server-worker", daemon=True)
        self._trace_again_s = 0.0

    @property
    def served(self) -> Served:
        """What the policy is."""
        return self._runner.served

    @property
    def running(self) -> bool:
        """True from `start` until `stop`, unless the thread failed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to infer."""
        self._thread.start()

    def close(self) -> None:
        """End after what is being inferred, without waiting for it."""
        self.waiting.close()

    def stop(self) -> None:
        """End after what is being inferred; who still waits is told."""
        self.close()
        if self._thread.ident is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # --- for any thread ---

    def open_session(self, client: str) -> Session:
        """As `doors.Brain.open_session`."""
        with self._lock:
            if len(self._sessions) >= self._max_sessions:
                raise ServerBusy(
                    f"the server has its {self._max_sessions} sessions; wait for one to end, or start another server."
                )
            session = Session(self, client, self._runner.open_session())
            self._sessions.add(session)
        logger.info("session of %s began (%d now)", client, len(self._sessions))
        return session

    def end(self, session: Session, reason: str) -> None:
        """End a session, and let who waits for its answers know."""
        with self._lock:
            if session.ended:
                return
            session.ended = True
            self._sessions.discard(session)
        for job in self.waiting.discard(session):
            job.answer(Answer(SessionLost("the session was ended.")))
        logger.info("session of %s ended: %s (%d left)", session.client, reason, len(self._sessions))

    def submit(self, job: Job) -> None:
        """Queue a job; one that waits without arrays is completed, or withdrawn, later.

        Raises:
            SessionLost: If its session has ended.
            ServerStopped: If the server ends.
        """
        job.session.touch()
        if isinstance(job.message, Infer):
            self.metrics.requests.inc()
        superseded = self.waiting.put(job)
        if superseded is None:
            raise ServerStopped("the server was stopped.")
        for old in superseded:
            self.metrics.superseded.inc()
            old.answer(Answer(Superseded("a newer request of the same robot took this one's place.")))

    def withdraw(self, job: Job) -> bool:
        """Take a job back; False if it was superseded or begun meanwhile."""
        return self.waiting.withdraw(job)

    # --- the worker's thread ---

    def _work(self) -> None:
        try:
            while (jobs := self.waiting.take(self._max_batch, self._end_silent_sessions())) is not None:
                self._answer(jobs)
        finally:
            self.waiting.close()
            for job in self.waiting.drain():
                job.answer(Answer(ServerStopped("the server was stopped.")))

    def _answer(self, jobs: Sequence[Job]) -> None:
        asked: list[tuple[Job, Request]] = []
        for job in jobs:
            if job.session.ended:
                job.answer(Answer(SessionLost("the session was ended.")))
            elif isinstance(job.message, Reset):
                self._reset(job)
            else:
                asked.append((job, _request(job)))
        if asked:
            self._infer(asked)

    def _end_silent_sessions(self) -> float:
        """End those, and tell in how many seconds the next one may have to be."""
        with self._lock:
            sessions = list(self._sessions)
        # A session that begins later cannot end before that.
        remaining_s = self._idle_timeout_s
        now = time.monotonic()
        for session in sessions:
            left_s = session.last_seen_s + self._idle_timeout_s - now
            if left_s <= 0:
                self.end(session, f"silent for {self._idle_timeout_s:g} s")
            else:
                remaining_s = min(remaining_s, left_s)
        return remaining_s

    def _reset(self, job: Job) -> None:
        try:
            job.session.state.reset()
            job.answer(Answer(None))
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
                    durations = _durations(job, outcome)
                    job.answer(Answer(outcome, durations))
                    sent.append((durations, outcome.batch_size))
        except Exception as error:
            for job, _ in waiting.values():
                self._fail(job, error)
        for durations, batch_size in sent:  # counted when nobody waits for it
            self.metrics.chunk_sent(durations, batch_size)

    def _fail(self, job: Job, error: Exception) -> None:
        self.metrics.refused.inc()
        if not isinstance(error, RemoteError):
            if time.monotonic() >= self._trace_again_s:
                logger.error("the policy failed on an observation", exc_info=error)
                self._trace_again_s = time.monotonic() + _TRACE_EVERY_S
            text = f"the policy failed on the server ({type(error).__name__}: {error}); its log says where."
            error = RemoteInferenceError(text)
        job.answer(Answer(error))


def _durations(job: Job, result: Inference) -> Durations:
    worked_s = result.preprocess_s + result.infer_s + result.postprocess_s
    queue_s = max(0.0, time.perf_counter() - job.received_s - worked_s)
    return Durations(queue_s, result.preprocess_s, result.infer_s, result.postprocess_s)


def _request(job: Job) -> Request:
    message = job.message
    observation = dict(job.arrays)
    left_over = observation.pop(PREV_CHUNK_LEFT_OVER, None)
    return Request(
        session=job.session.state,
        observation=observation,
        task=message.task,
        robot_type=message.robot_type,
        seed=message.seed,
        rtc=message.rtc,
        left_over=left_over,
        model_actions=message.model_actions,
    )
