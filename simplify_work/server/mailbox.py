"""What waits for the policy: at most one observation a session, the newest; sessions take turns."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from simplify_work.wire.messages import Infer, Reset


@dataclass(eq=False)
class Job:
    """A request that the policy has to answer.

    Attributes:
        session: Identity of the session.
        message: What is asked.
        arrays: The observation; None while its pictures are being decoded.
        received_s: `perf_counter` at its arrival.
    """

    session: bytes
    message: Infer | Reset
    arrays: Mapping[str, np.ndarray] | None = field(default_factory=dict)
    received_s: float = field(default_factory=perf_counter)


class Mailbox:
    """A queue bounded by the number of sessions: two jobs a session at most, a Reset and an Infer after it."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[bytes, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, job: Job) -> list[Job]:
        """Add a job; returns those whose place it took, which nobody will answer now.

        An Infer takes the place of the session's waiting Infer; a Reset that of everything that waits. The session
        keeps its turn. A job without arrays waits until `complete`.
        """
        with self._changed:
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

    def take(self, limit: int = 1) -> list[Job] | None:
        """Wait for jobs: the next one of each of the sessions whose turn it is.

        Args:
            limit: Sessions at most; the others stay first in the line.

        Returns:
            One job or more, each of another session; None once the mailbox is closed.
        """
        with self._changed:
            while not self._closed:
                ready = [key for key, jobs in self._waiting.items() if jobs[0].arrays is not None][:limit]
                if ready:
                    return [self._pop(session) for session in ready]
                self._changed.wait()
            return None

    def discard(self, session: bytes) -> None:
        """Forget what a session that ended was waiting for."""
        with self._changed:
            self._waiting.pop(session, None)

    def close(self) -> None:
        """Let `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _pop(self, session: bytes) -> Job:
        waiting = self._waiting.pop(session)
        job = waiting.popleft()
        if waiting:
            self._waiting[session] = waiting  # at the end of the line
        return job
