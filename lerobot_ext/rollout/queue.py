"""The queue between whoever makes chunks and the control loop; every action in it has its timestep.

A timestep is counted for each action handed out. Row i of a chunk made from an observation of timestep t is for
timestep t + i: what has been executed meanwhile is trimmed, whatever the clock says. Not thread-safe: its owner locks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lerobot_ext.rollout.merge import Actions, Ensemble, Join, MergeRule, Votes

# Executed rows that are kept, since a leftover begins at the timestep of an observation that is a little older.
_HISTORY = 64


@dataclass(frozen=True)
class Merged:
    """What became of a chunk.

    Attributes:
        trimmed: Rows that were too late.
        added: Rows that were not.
        jump: Largest difference between what is next now and what was next before the merge (the last executed action
            if nothing was), in the action's units; None if there was neither.
    """

    trimmed: int
    added: int
    jump: float | None


class ActionQueue:
    """Actions by timestep.

    Attributes:
        executed: Actions handed out so far: the timestep of the next one.
    """

    def __init__(self) -> None:
        self.reset()

    def __len__(self) -> int:
        """Actions that can still be handed out."""
        return self._first + len(self._rows) - self.executed

    def reset(self) -> None:
        """A new episode: forget everything, begin at timestep 0."""
        self.executed = 0
        self._first = 0  # timestep of the first row
        self._rows: Actions = np.empty((0, 0), np.float32)
        self._model: Actions | None = None
        self._votes: Votes = np.empty(0, np.int64)  # of how many chunks a row is the mean

    def pop(self) -> Actions | None:
        """Hand out the next action, (dim,), the caller's own; None if there is none, and no timestep is counted."""
        if not len(self):
            return None
        action = self._rows[self.executed - self._first].copy()
        self.executed += 1
        return action

    def planned(self, timestep: int) -> Actions | None:
        """The actions from `timestep` on, (n, dim), as handed out; None if there are none or they are forgotten."""
        return self._from(self._rows, timestep)

    def left_over(self, timestep: int) -> Actions | None:
        """The same in the model's units, which is what a guided chunk continues; None if they are not known.

        Args:
            timestep: Of the observation that the new chunk is made from: row 0 is what that chunk's row 0 replaces,
                also if it has been handed out since.
        """
        return None if self._model is None else self._from(self._model, timestep)

    def merge(
        self, rule: MergeRule, timestep: int, actions: Actions, model_actions: Actions | None = None
    ) -> Merged:
        """Take in a chunk.

        Args:
            rule: How to join it with what is queued.
            timestep: Of the observation it was made from.
            actions: (n, dim) float32.
            model_actions: (n, width) float32, the same before postprocessing; None if not known.

        Raises:
            ValueError: If the observation is of a timestep that has not come yet.
        """
        late = self.executed - timestep
        if late < 0:
            raise ValueError(
                f"a chunk is for timestep {timestep}, but only {self.executed} actions were handed out."
            )
        new = actions[late:]
        if not len(new):
            return Merged(trimmed=len(actions), added=0, jump=None)
        here = self.executed - self._first
        before = self._rows[min(here, len(self._rows) - 1)] if len(self._rows) else None
        keep = min(here, _HISTORY)
        votes = self._votes[here:]
        join = rule.over(votes) if isinstance(rule, Ensemble) else rule
        self._model = self._merged_model(
            join, here, keep, None if model_actions is None else model_actions[late:]
        )
        self._rows = self._joined(join, self._rows, here, keep, new)
        # What another rule has made is one opinion.
        alone = np.ones(len(self._rows) - keep, np.int64)
        votes = rule.votes(votes, len(new)) if isinstance(rule, Ensemble) else alone
        self._votes = np.concatenate([self._votes[here - keep : here], votes])
        self._first = self.executed - keep
        after = self._rows[keep]
        jump = None if before is None else float(np.abs(after - before).max())
        return Merged(trimmed=late, added=len(new), jump=jump)

    def _merged_model(self, join: Join, here: int, keep: int, new: Actions | None) -> Actions | None:
        if new is None or (self._model is None and len(self._rows)):
            return None
        old = np.empty((0, new.shape[1]), np.float32) if self._model is None else self._model
        return self._joined(join, old, here, keep, new)

    @staticmethod
    def _joined(join: Join, old: Actions, here: int, keep: int, new: Actions) -> Actions:
        if not len(old):
            return np.ascontiguousarray(new)
        return np.concatenate([old[here - keep : here], join(old[here:], new)])

    def _from(self, rows: Actions, timestep: int) -> Actions | None:
        index = timestep - self._first
        return rows[index:] if 0 <= index < len(rows) else None
