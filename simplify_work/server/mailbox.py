"""What waits for the policy: at most one observation a session, the newest; sessions take turns."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import numpy as np

from simplify_work.server.protocol import Inference
from simplify_work.wire.messages import Durations, Infer, Reset


@dataclass(frozen=True)
class Answer:
    """What becomes of a job.

    Attributes:
        result: The chunk, None for a Reset, or why there is none.
        durations: What the chunk cost.
    """

    result: Inference | Exception | None
    durations: Durations | None = None


def _nobody(answer: Answer) -> None:
    """Nobody waits for this answer."""


@dataclass(eq=False)
class Job:
    """A request that the policy has to answer.

    Attributes:
        session: Whose it is.
        message: What is asked.
        arrays: The observation; None while its pictures are being decoded.
        answer: Called once, by any thread, with what became of it.
        received_s: `perf_counter` at its arrival.
    """

    session: Hashable
    message: Infer | Reset
    arrays: Mapping[str, np.ndarray] | None = field(default_factory=dict)
    answer: Callable[[Answer], None] = _nobody
    received_s: float = field(default_factory=perf_counter)


class Mailbox:
    """A queue bounded by the number of sessions: two jobs a session at most, a Reset and an Infer after it."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, job: Job) -> list[Job] | None:
        """Add a job; returns those whose place it took, which nobody will answer now, or None if it is too late.

        An Infer takes the place of the session's waiting Infer; a Reset that of everything that waits. The session
        keeps its turn. A job without arrays waits until `complete`.
        """
        with self._changed:
            if self._closed:
                return None
            waiting = self._waiting.setdefault(job.session, deque())
            superseded = [
                old for old in waiting if isinstance(job.message, Reset) or isinstance(old.message, Infer)
            ]
            for old in superseded:
                waiting.remove(old)
            waiting.append(job)
            if job.arrays is not None:
                self._changed.notify()
            return superseded

    def complete(self, job: Job, arrays: Mapping[str, np.ndarray]) -> None:
        """Give a job the arrays that it waited for."""
        with self._changed:
            job.arrays = arrays
            self._changed.notify()

    def withdraw(self, job: Job) -> bool:
        """Take a job back; False if it was superseded or taken meanwhile."""
        with self._changed:
            waiting = self._waiting.get(job.session, ())
            if job not in waiting:
                return False
            waiting.remove(job)
            if not waiting:
                del self._waiting[job.session]
            return True

    def take(self, limit: int = 1, timeout_s: float | None = None) -> list[Job] | None:
        """Wait for jobs: the next one of each of the sessions whose turn it is.

        Args:
            limit: Sessions at most; the others stay first in the line.
            timeout_s: Wait no longer than this; None: for as long as it takes.

        Returns:
            Jobs, each of another session, none if none came in time; None once the mailbox is closed.
        """
        until = None if timeout_s is None else monotonic() + timeout_s
        with self._changed:
            while not self._closed:
                ready = [key for key, jobs in self._waiting.items() if jobs[0].arrays is not None][:limit]
                if ready:
                    return [self._pop(session) for session in ready]
                remaining_s = None if until is None else until - monotonic()
                if remaining_s is not None and remaining_s <= 0:
                    return []
                self._changed.wait(remaining_s)
            return None

    def discard(self, session: Hashable) -> list[Job]:
        """Forget what a session that ended was waiting for; returns that, which nobody will answer now."""
        with self._changed:
            return list(self._waiting.pop(session, ()))

    def drain(self) -> list[Job]:
        """Forget everything that waits; returns it."""
        with self._changed:
            jobs = [job for waiting in self._waiting.values() for job in waiting]
            self._waiting.clear()
            return jobs

    def close(self) -> None:
        """Let `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _pop(self, session: Hashable) -> Job:
        waiting = self._waiting.pop(session)
        job = waiting.popleft()
        if waiting:
            self._waiting[session] = waiting  # at the end of the line
        return job
