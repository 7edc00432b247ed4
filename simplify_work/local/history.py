"""The last observations, for policies that look at more than one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

import numpy as np


class History:
    """The observations of the last control steps, the newest last.

    Safe to use from several threads.

    Args:
        length: How many are kept, the policy's `n_obs_steps`.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._seen: deque[Mapping[str, np.ndarray]] = deque(maxlen=length)
        self._lock = threading.Lock()

    def add(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Remember the observation of this step.

        Args:
            observation: Not copied.

        Returns:
            What is sent of it: itself; if `length` is above 1, all that are remembered along a new first axis.
        """
        if self.length == 1:
            return dict(observation)
        with self._lock:
            # A picture of another size (a camera that was restarted) cannot be stacked with the ones before.
            if self._seen and any(
                self._seen[-1][name].shape != observation[name].shape for name in observation
            ):
                self._seen.clear()
            self._seen.append(observation)
            seen = list(self._seen)
        return {name: np.stack([each[name] for each in seen]) for name in observation}

    def clear(self) -> None:
        """A new episode begins."""
        with self._lock:
            self._seen.clear()
