"""The last observations, for policies that look at more than one, or at the last samples of a vector."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

import numpy as np

from simplify_work.local.windows import Windows


class History:
    """The observations of the last control steps, the newest last.

    Safe to use from several threads.

    Args:
        length: How many are kept, the policy's `n_obs_steps`.
        windows: Of which vectors the last samples are sent with one observation, and how many (`FeatureSpec.history`).
    """

    def __init__(self, length: int, windows: Mapping[str, int] | None = None) -> None:
        self.length = length
        self._windows = Windows(windows)
        self._seen: deque[Mapping[str, np.ndarray]] = deque(maxlen=length)
        self._lock = threading.Lock()

    @property
    def windows(self) -> tuple[str, ...]:
        """The vectors of which the last samples are sent: at each control step `add` or `remember` wants one."""
        return self._windows.names

    def add(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Remember the observation of this step.

        Args:
            observation: Not copied, except for vectors that have a window.

        Returns:
            What is sent of it: itself, with windows; if `length` is above 1, all that are remembered along a new
            first axis.
        """
        with self._lock:
            observation = self._windows.add(observation)
            if self.length == 1:
                return observation
            # A picture of another size (a camera that was restarted) cannot be stacked with the ones before.
            if self._seen and any(
                self._seen[-1][name].shape != observation[name].shape for name in observation
            ):
                self._seen.clear()
            self._seen.append(observation)
            seen = list(self._seen)
        return {name: np.stack([each[name] for each in seen]) for name in observation}

    def remember(self, samples: Mapping[str, np.ndarray]) -> None:
        """Remember those vectors of a step that have a window; nothing is sent of it."""
        with self._lock:
            self._windows.add(samples)

    def clear(self) -> None:
        """A new episode begins."""
        with self._lock:
            self._seen.clear()
            self._windows.clear()
