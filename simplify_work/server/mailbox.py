"""What waits for the policy: at most one observation a session, the newest; sessions take turns."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from simplify_work.wire.messages import Infer, Reset


@dataclass(frozen=True)
class Job:
    """A request that the policy has to answer.

    Attributes:
        session: Identity of the session.
        message: What is asked.
        arrays: The observation.
        received_s: `perf_counter` at its arrival.
    """

    session: bytes
    message: Infer | Reset
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    received_s: float = field(default_factory=perf_counter)


class Mailbox:
    """A queue bounded by the number of sessions: two jobs a session at most, a Reset and an Infer after it."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[bytes, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> list[Job]:
        """Add a job; returns those whose place it took, which nobody will answer now.

        An Infer takes the place of the session's waiting Infer; a Reset that of everything that waits.
        """
        with self._changed:
            waiting = self._waiting.setdefault(job.session, deque())
            superseded = [
                old for old in waiting if isinstance(job.message, Reset) or isinstance(old.message, Infer)
            ]
            for old in superseded:
                waiting.remove(old)
            waiting.append(job)
            self._changed.notify()
            return superseded

    def take(self) -> Job | None:
        """Wait for a job, that of the session whose turn it is; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            session, waiting = self._waiting.popitem(last=False)
            job = waiting.popleft()
            if waiting:
                self._waiting[session] = waiting
            return job

    def discard(self, session: bytes) -> None:
        """Forget what a session that ended was waiting for."""
        with self._changed:
            self._waiting.pop(session, None)

    def close(self) -> None:
        """Let `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
