"""How a new chunk is joined with what is still queued, by name. Rules are pure functions on arrays.

A rule gets both parts cut to begin at the same timestep, the next one to be executed; when to ask for a chunk, and
which of its actions are too late, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.float32]
Combine = Callable[[Actions, Actions], Actions]
MergeRule = Callable[[Actions, Actions], Actions]

# LeRobot's names and weights (async_inference/configs.py), (old, new).
WEIGHTS: dict[str, tuple[float, float]] = {
    "weighted_average": (0.3, 0.7),
    "latest_only": (0.0, 1.0),
    "average": (0.5, 0.5),
    "conservative": (0.7, 0.3),
}
MERGES = ("rtc", "aggregate", "append")


def replace(old: Actions, new: Actions) -> Actions:
    """The new chunk alone."""
    return new


def append(old: Actions, new: Actions) -> Actions:
    """What is queued stays; of the new chunk comes what lies beyond it."""
    return np.concatenate([old, new[len(old) :]])


def aggregate(name: str) -> MergeRule:
    """The rule that mixes old and new where they overlap; beyond, whichever goes on.

    Args:
        name: One of WEIGHTS.
    """
    old_weight, new_weight = (np.float32(weight) for weight in WEIGHTS[name])

    def rule(old: Actions, new: Actions) -> Actions:
        both = min(len(old), len(new))
        mixed = old_weight * old[:both] + new_weight * new[:both]
        return np.concatenate([mixed, old[both:], new[both:]])

    return rule


def merge_rule(merge: str, aggregation: str) -> MergeRule:
    """The rule of that name: `rtc` replaces (the new chunk was made to continue the old one).

    Args:
        merge: One of MERGES.
        aggregation: One of WEIGHTS; used by `aggregate` only.
    """
    return {"rtc": replace, "append": append}.get(merge) or aggregate(aggregation)
