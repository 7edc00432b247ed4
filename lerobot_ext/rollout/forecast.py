"""How many steps the next chunk will take, from those of the recent ones; what a step is, its owner knows."""

from __future__ import annotations

import re
from collections import deque

import numpy as np


class DelayForecast:
    """Maximum or percentile of the last delays.

    Args:
        latency: `max`, or `p50`, `p90`, `p95`, …: the percentile.
        window: How many of the last delays count.

    Raises:
        ValueError: If `latency` or `window` is none of these.
    """

    def __init__(self, latency: str = "max", window: int = 10) -> None:
        self._percentile = percentile_of(latency)
        if window < 1:
            raise ValueError(f"latency_window is {window}, expected 1 or more.")
        self._delays: deque[int] = deque(maxlen=window)

    def add(self, steps: int) -> None:
        """Note the delay of a chunk, in steps."""
        self._delays.append(steps)

    def clear(self) -> None:
        """Forget them."""
        self._delays.clear()

    def steps(self) -> int:
        """The forecast: a delay that did occur; 0 before the first."""
        if not self._delays:
            return 0
        return int(np.percentile(self._delays, self._percentile, method="higher"))


def percentile_of(latency: str) -> float:
    """100 for `max`, 95 for `p95`.

    Raises:
        ValueError: If it is neither.
    """
    if latency == "max":
        return 100.0
    match = re.fullmatch(r"p(\d{1,2}|100)", latency)
    if match is None:
        raise ValueError(
            f"latency is '{latency}', expected 'max' or a percentile such as 'p50', 'p90' or 'p95'."
        )
    return float(match.group(1))
