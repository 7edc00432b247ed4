"""Whether somebody reads an arm regularly, which is how the lab knows that a loop is running; no protocol here."""

from __future__ import annotations

import math
import time


class ReadWatch:
    """How regularly somebody reads the arm's positions; notes come from the bus's thread."""

    GAP_S = 0.25  # a longer pause ends a run of regular reads

    def __init__(self) -> None:
        self._first = self._last = -math.inf

    def note(self) -> None:
        """Somebody has just read a position."""
        now = time.monotonic()
        if now - self._last > self.GAP_S:
            self._first = now
        self._last = now

    def restart(self) -> None:
        """Forget the reads so far."""
        self._first = self._last = -math.inf

    def regular_for(self) -> float:
        """Seconds since which positions have been read regularly up to now; 0 if they are not."""
        first, last = self._first, self._last
        return last - first if time.monotonic() - last <= self.GAP_S else 0.0
