"""What a paced loop counts, and the line in the log that tells of it every few seconds.

A thread of its own writes that line, so that a slow terminal or disk never holds the arm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineState:
    """How an engine is doing.

    Attributes:
        queued: Actions that can be handed out, in policy steps.
        delay: Of the last chunk, in policy steps; None before the first.
        lost: No chunks come.
    """

    queued: int
    delay: int | None
    lost: bool


@dataclass
class Tally:
    """What a loop has done; written by its thread, read by any.

    Attributes:
        sent: Actions sent.
        ticks: Control ticks that came, with or without something to send.
        late: Deadlines that were met more than half a control period late, or not at all.
        missed: Of those, not at all: something took longer than a control period.
        steps: Policy steps that had an action.
        started_s: Time of the first deadline, by `time.perf_counter`; None before.
        ended_s: When the loop ended; None before.
        slowest_s: Longest time that each kind of work in the loop took, by its name.
    """

    sent: int = 0
    ticks: int = 0
    late: int = 0
    missed: int = 0
    steps: int = 0
    started_s: float | None = None
    ended_s: float | None = None
    slowest_s: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the first deadline to the end, or to now."""
        if self.started_s is None:
            return 0.0
        return (time.perf_counter() if self.ended_s is None else self.ended_s) - self.started_s

    @property
    def late_share(self) -> float:
        """0 to 1, of all deadlines."""
        return self.late / max(1, self.ticks + self.missed)

    def __str__(self) -> str:
        rate = self.sent / self.seconds if self.seconds else 0.0
        return (
            f"{self.sent} actions sent in {self.seconds:.1f} s ({rate:.1f} Hz), {self.steps} policy steps, "
            f"{self.late} late ticks ({100 * self.late_share:.1f} %)"
        )


class Monitor:
    """Writes a line every so often, between `with` and its end.

    Args:
        every_s: Seconds between lines; 0: none.
        tally: Of the loop.
        state: Of the engine; called in the monitor's thread.
    """

    def __init__(self, every_s: float, tally: Tally, state: Callable[[], EngineState]) -> None:
        self._every_s, self._tally, self._state = every_s, tally, state
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._every_s > 0:
            self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        sent, seconds = self._tally.sent, self._tally.seconds
        while not self._ended.wait(self._every_s):
            now = self._tally.seconds
            rate = (self._tally.sent - sent) / (now - seconds) if now > seconds else 0.0
            sent, seconds = self._tally.sent, now
            state = self._state()
            logger.info(
                "paced loop: %s; now %.1f Hz, queue %d policy steps, delay %s%s",
                self._tally,
                rate,
                state.queued,
                "unknown" if state.delay is None else f"{state.delay} policy steps",
                ", no chunks come" if state.lost else "",
            )
