"""Threads that decode pictures, so that the socket's thread goes on and one robot's pictures wait for no other's.

A session is decoded by one thread at a time, and of what it has waiting only the newest: a robot that sends faster
than its pictures are decoded takes nothing from the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from simplify_work.server.mailbox import Job

Read = Callable[[], Mapping[str, np.ndarray]]
Finish = Callable[[Job, Mapping[str, np.ndarray] | Exception], None]

_MAX_THREADS = 4


class Decoders:
    """A few threads.

    Args:
        finish: Called by one of them with a job and its arrays, or what was wrong with them.
    """

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._pool = ThreadPoolExecutor(
            min(os.cpu_count() or 1, _MAX_THREADS), thread_name_prefix="policy-server-decoder"
        )
        self._lock = threading.Lock()
        self._next: dict[Hashable, tuple[Job, Read]] = {}
        self._busy: set[Hashable] = set()

    def submit(self, job: Job, read: Read) -> None:
        """Read a job's arrays soon; takes the place of an older one of the same session that has not begun."""
        with self._lock:
            self._next[job.session] = (job, read)
            if job.session not in self._busy:
                self._busy.add(job.session)
                self._pool.submit(self._decode, job.session)

    def close(self) -> None:
        """Let what has not begun be."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, session: Hashable) -> None:
        with self._lock:
            job, read = self._next.pop(session)
        try:
            found = read()
        except Exception as error:
            found = error
        self._finish(job, found)
        with self._lock:
            if session not in self._next:
                self._busy.discard(session)
                return
            try:
                self._pool.submit(self._decode, session)  # behind the others
            except RuntimeError:  # closed
                self._busy.discard(session)
