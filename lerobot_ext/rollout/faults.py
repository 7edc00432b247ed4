"""What stops the chunks, how long it lasts, when to try again, when to give up; and the slow way to a rest position.

Both classes are told the time and know nothing of threads, sockets or robots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simplify_work.wire.errors import AddressError, FeatureMismatch, KeyRefused, PolicyChanged, RemoteError

# Trying again does not mend these: somebody has to change something.
LASTING = (AddressError, FeatureMismatch, KeyRefused, PolicyChanged)

_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 2.0


def describe(error: BaseException) -> tuple[str, str]:
    """Kind and sentence of whatever stopped a chunk; an error of the wire says both itself."""
    if isinstance(error, RemoteError):
        return error.kind, str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return (
        "policy",
        f"the policy failed ({type(error).__name__}: {first}); if it keeps failing, try it with sync.",
    )


@dataclass
class Outage:
    """No chunks come.

    Attributes:
        since: When it was noticed.
        kind: Of its first cause.
        text: Of its newest cause, with the remedy.
        failures: Attempts that failed.
        retry_at: Not to be tried again before.
    """

    since: float
    kind: str
    text: str
    failures: int = 0
    retry_at: float = 0.0

    def failed(self, now: float, text: str) -> None:
        """Note another failure; the wait doubles, up to two seconds."""
        self.text = text
        wait = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2**self.failures)
        self.failures += 1
        self.retry_at = now + wait


class RestMotion:
    """A straight line from one position to another, its fastest joint at a given speed.

    Args:
        start: (dim,) where it begins, in the action's units.
        target: (dim,).
        step: How far the fastest joint goes with one action.
    """

    def __init__(self, start: NDArray[np.float32], target: NDArray[np.float32], step: float) -> None:
        self._start, self._way = start, target - start
        self._steps = math.ceil(float(np.abs(self._way).max(initial=0.0)) / step)
        self._done = 0

    def next(self) -> NDArray[np.float32] | None:
        """The next position, (dim,) float32; None once it is there."""
        if self._done >= self._steps:
            return None
        self._done += 1
        return (self._start + self._way * (self._done / self._steps)).astype(np.float32)
