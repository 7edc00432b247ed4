"""What the threads of the engine are given to do, and the threads themselves.

Which job comes next, and what becomes of its outcome, is the engine's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lerobot_ext.rollout.sources import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation that the control loop has shown.

    Attributes:
        number: Counts them.
        timestep: That it belongs to.
        ticks: Policy steps until then, in this episode, with or without an action.
    """

    number: int
    timestep: int
    ticks: int


@dataclass(frozen=True, eq=False)
class Job:
    """Ask for a chunk, or reset the source if there is no request.

    Attributes:
        generation: Of the engine when it was given.
        number: Counts them.
        request: What a chunk is asked for with.
        observation: That the chunk is made from.
        forecast: Steps that it was expected to take.
    """

    generation: int
    number: int
    request: Request | None = None
    observation: Seen | None = None
    forecast: int = 0


class Workers:
    """Threads that all do the same work until it returns.

    Args:
        work: What they do.
        on_crash: Called with what `work` raised, which it never should.
    """

    def __init__(self, work: Callable[[], None], on_crash: Callable[[Exception], None]) -> None:
        self._work, self._on_crash = work, on_crash
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """Whether they were started, and not released since."""
        return bool(self._threads)

    def start(self, count: int) -> None:
        """Start that many."""
        self._threads = [
            threading.Thread(target=self._run, name=f"chunks-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def release(self) -> list[threading.Thread]:
        """The threads, which are the caller's from now on: new ones may be started."""
        threads, self._threads = self._threads, []
        return threads

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # of ours; nobody would ask for chunks any more
            logger.exception("a thread of the inference engine ended")
            self._on_crash(error)


def join(threads: list[threading.Thread], patience_s: float) -> None:
    """Wait for threads that were told to end, no longer than that in all."""
    until = time.monotonic() + patience_s + 0.5
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            logger.warning("a chunk is still being made after %.1f s; it will be thrown away", patience_s)
