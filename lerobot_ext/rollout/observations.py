"""What an engine keeps of the observations that the control loop shows it, every tick.

An engine that infers in a thread preprocesses only the observations that chunks are asked for with. A policy that
looks at the last samples of a vector (force as a token) gets them with those, as a window made here, so that they are
one control step apart however rarely chunks are asked for. The windows are passed on by the preprocessor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from lerobot.utils.constants import OBS_STR

from simplify_work.local.windows import Windows


class RecentObservations:
    """The last observations, with windows of their vectors; owned by one thread, or guarded by its owner.

    Args:
        n_obs_steps: How many observations are kept.
        windows: Of which vectors the last samples are kept, by the robot's names, and how many.
    """

    def __init__(self, n_obs_steps: int, windows: Mapping[str, int] | None = None) -> None:
        self._windows = Windows(windows)
        self._seen: deque[Mapping[str, Any]] = deque(maxlen=n_obs_steps)

    def add(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        """Remember the observation of this control step; returns it with windows, (history, n), for samples, (n,)."""
        if self._windows.names:
            observation = self._windows.add(observation)
        self._seen.append(observation)
        return observation

    def clear(self) -> None:
        """Forget all: a new episode, or a gap."""
        self._windows.clear()
        self._seen.clear()

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The observations, the newest last."""
        return iter(self._seen)


def vector_history(policy: Any, preprocessor: Any) -> dict[str, int]:
    """Of which of the robot's vectors a policy wants the last samples, and how many, by the robot's names.

    Args:
        policy: A LeRobot policy, or one of type `remote`, which knows what the server's policy wants.
        preprocessor: Of a policy in this process.
    """
    wanted: dict[str, int] = {}
    for part in (policy, *getattr(preprocessor, "steps", ())):
        if hasattr(part, "required_history"):
            wanted |= part.required_history()
    return {key.removeprefix(f"{OBS_STR}."): length for key, length in wanted.items()}
