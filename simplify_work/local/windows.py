"""The last samples of some arrays, kept at the rate at which the robot is controlled.

A policy may look at the last samples of a vector (force, say) and at one of everything else. Chunks are asked for
more rarely than the robot is controlled, so the samples in between are remembered here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np


class Windows:
    """Windows of the last samples of named vectors, the newest last; not safe to use from several threads.

    Args:
        lengths: How many samples, by name; vectors that are not named have no window.
    """

    def __init__(self, lengths: Mapping[str, int] | None = None) -> None:
        self._seen: dict[str, deque[np.ndarray]] = {
            name: deque(maxlen=length) for name, length in (lengths or {}).items() if length > 1
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The vectors that have a window."""
        return tuple(self._seen)

    def add(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Remember the samples of this control step.

        Args:
            observation: Not changed; samples (n,) are copied. What is a window already, (length, n), is left alone
                and not remembered.

        Returns:
            The observation with windows (length, n) in place of samples; the first sample since `clear` stands for
            those before it.
        """
        return {name: self._window(name, value) for name, value in observation.items()}

    def clear(self) -> None:
        """A new episode begins."""
        for seen in self._seen.values():
            seen.clear()

    def _window(self, name: str, value: Any) -> Any:
        seen = self._seen.get(name)
        if seen is None or np.ndim(value) != 1:
            return value
        seen.append(np.array(value))
        return np.stack([seen[0]] * (seen.maxlen - len(seen)) + list(seen))
