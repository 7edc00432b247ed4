"""How a new chunk is joined with what is still queued, by name. Rules are pure functions on arrays.

A rule gets both parts cut to begin at the same timestep, the next one to be executed; when to ask for a chunk, and
which of its actions are too late, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.rollout.ensemble import ACT_COEFF, ensembled, one_more

Actions = NDArray[np.float32]
Votes = NDArray[np.int64]
Join = Callable[[Actions, Actions], Actions]

# LeRobot's names and weights (async_inference/configs.py), (old, new).
WEIGHTS: dict[str, tuple[float, float]] = {
    "weighted_average": (0.3, 0.7),
    "latest_only": (0.0, 1.0),
    "average": (0.5, 0.5),
    "conservative": (0.7, 0.3),
}
MERGES = ("rtc", "aggregate", "append", "ensemble")


@dataclass(frozen=True)
class Ensemble:
    """ACT's temporal ensembling: an action is the weighted mean of all that chunks have said for its timestep.

    The one rule that has to know of how many chunks a queued action is the mean; the queue counts them.

    Attributes:
        coeff: Chunk i of those for a timestep, the oldest being 0, weighs exp(-coeff * i).
    """

    coeff: float = ACT_COEFF

    def over(self, votes: Votes) -> Join:
        """The rule for old actions of so many chunks each."""
        return lambda old, new: ensembled(self.coeff, old, votes, new)

    def votes(self, old: Votes, rows: int) -> Votes:
        """Of how many chunks each action is the mean after one more, of so many rows."""
        return one_more(old, rows)


MergeRule = Join | Ensemble


def replace(old: Actions, new: Actions) -> Actions:
    """The new chunk alone."""
    return new


def append(old: Actions, new: Actions) -> Actions:
    """What is queued stays; of the new chunk comes what lies beyond it."""
    return np.concatenate([old, new[len(old) :]])


def aggregate(name: str) -> Join:
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


def merge_rule(merge: str, aggregation: str, coeff: float = ACT_COEFF) -> MergeRule:
    """The rule of that name: `rtc` replaces (the new chunk was made to continue the old one).

    Args:
        merge: One of MERGES.
        aggregation: One of WEIGHTS; used by `aggregate` only.
        coeff: Used by `ensemble` only.
    """
    if merge == "ensemble":
        return Ensemble(coeff)
    return {"rtc": replace, "append": append}.get(merge) or aggregate(aggregation)
