"""From policy steps to control ticks: which position is commanded at each tick between a policy's actions.

Policy steps are counted by the action queue; here they are points in time, 1 apart, and a control tick is
`policy_hz / control_hz` of that. Who takes actions from the queue and who sends positions is `loop`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lerobot_ext.rollout.checks import by_entry
from lerobot_ext.rollout.config import AsyncInferenceConfig

Positions = NDArray[np.float64]

# To the next action, and for the slope of a cubic there to the one after that.
LOOK_AHEAD = 2


class Resampler:
    """Positions at control ticks.

    Before each tick look at `begins_step`; where it is True, call `step` with the action of the policy step that
    begins. Then `tick` gives the position. With `linear` and `cubic` the action of a step is commanded at the step's
    own time (the first tick of the step, where `control_hz / policy_hz` is whole), and from there the way leads on to
    the next action, if that is known.

    Where an action is not the one that the way led to (the first of an episode, the first after a wait, one that a
    merge has changed), the difference is taken back during one policy period: the bridge. Whatever the way, no joint's
    commanded position changes by more than `max_step` from one tick to the next, and during a step none lies beyond what
    was commanded last and the actions that the way leads from and to.

    Args:
        names: The action's entries.
        config: With `policy_hz` and `control_hz`; `resample`, `hold_joints` and `max_step` say how.

    Raises:
        ValueError: `hold_joints` names a joint that is none of `names`.
    """

    def __init__(self, names: Sequence[str], config: AsyncInferenceConfig) -> None:
        self._policy_hz, self._control_hz = config.policy_hz, config.control_hz
        self._cubic, self._max_step = config.resample == "cubic", config.max_step
        held = by_entry(dict.fromkeys(config.hold_joints), list(names), "inference.hold_joints")
        self._held = np.array([config.resample == "hold" or name in held for name in names], bool)
        self.reset(None)

    def reset(self, position: ArrayLike | None) -> None:
        """A new episode: the next tick is its first.

        Args:
            position: (dim,) where the joints are, which the first bridge begins at; None if that is not known: the
                first action is then commanded as it is.
        """
        self._tick = 0
        self._sent: Positions | None = None if position is None else np.array(position, np.float64)
        self._here: Positions | None = self._sent  # the action of this step, or where the way ended
        self._next: Positions | None = None  # the next step's, if known
        self._starved = True
        self._slope = self._end_slope = np.zeros(len(self._held))  # of a cubic, at this step's ends
        self._bridge = np.zeros(len(self._held))
        self._bridged_from = 0.0  # when the bridge was whole
        self._low = self._high = self._sent  # a bridge and a bent way together could lead beyond their ends

    @property
    def begins_step(self) -> bool:
        """Whether a policy step begins with the next tick."""
        return self.step_begins_in(0)

    def step_begins_in(self, ticks: int) -> bool:
        """Whether a policy step begins with the tick that many after the next."""
        tick = self._tick + ticks
        return tick == 0 or self._step_of(tick) > self._step_of(tick - 1)

    def step(self, action: ArrayLike | None, ahead: ArrayLike = ()) -> None:
        """A policy step begins.

        Args:
            action: (dim,) its action; None if there is none: the way ends where it led to.
            ahead: (n, dim) those that are to follow, as far as known; the first `LOOK_AHEAD` are looked at.
        """
        self._starved = action is None
        led_to = self._here if self._next is None else self._next
        if action is None:
            self._next = None
            if led_to is not None:
                self._here = np.where(self._held, self._here, led_to)
            self._slope = self._end_slope = np.zeros_like(self._slope)
        else:
            self._here = np.array(action, np.float64)
            if led_to is not None and not np.array_equal(led_to, self._here):
                last = self._time(self._tick - 1)
                self._bridge = self._bridge * self._share(last) + (led_to - self._here)
                self._bridged_from = last
            rows = [np.asarray(row, np.float64) for row in ahead[:LOOK_AHEAD]]
            self._next = rows[0] if rows else None
            if self._cubic:
                self._plan_slopes(*rows)
        ends = [end for end in (self._sent, led_to, self._here, self._next) if end is not None]
        if ends:
            self._low, self._high = np.min(ends, 0), np.max(ends, 0)

    def tick(self) -> Positions | None:
        """The position to command now, (dim,) float64; None if there is no action and the way has ended."""
        now = self._time(self._tick)
        phase = max(0.0, now - self._step_of(self._tick))
        self._tick += 1
        if self._here is None:
            return None
        wanted = np.clip(self._way(phase) + self._bridge * self._share(now), self._low, self._high)
        wanted[self._held] = self._here[self._held]
        if self._sent is not None:
            if self._max_step is not None:
                wanted = np.clip(wanted, self._sent - self._max_step, self._sent + self._max_step)
            if self._starved and np.array_equal(wanted, self._sent):
                return None
        self._sent = wanted
        return wanted.copy()

    def _time(self, tick: int) -> float:
        # Multiplied first: where the step's number is whole, so is this.
        return tick * self._policy_hz / self._control_hz

    def _step_of(self, tick: int) -> int:
        return math.floor(self._time(tick) + 1e-9)

    def _share(self, now: float) -> float:
        """How much of the bridge is left."""
        done = min(1.0, now - self._bridged_from)
        # A cubic one sets off and arrives without a jerk.
        return 1 - (3 - 2 * done) * done**2 if self._cubic else 1 - done

    def _way(self, phase: float) -> Positions:
        if self._next is None:
            return self._here.copy()
        difference = self._next - self._here
        if not self._cubic:
            return self._here + phase * difference
        bend = (1 - phase) * self._slope - phase * self._end_slope + (2 * phase - 1) * difference
        return self._here + phase * difference + phase * (1 - phase) * bend

    def _plan_slopes(self, following: Positions | None = None, after: Positions | None = None) -> None:
        """Slopes per policy step at both ends, such that the cubic between is monotone: it stays between its ends.

        The end's is the harmonic mean of the differences before and after (Fritsch and Butland, 1984), 0 at an extremum
        and where nothing is known to follow; the start's is the last end's, within Fritsch and Carlson's bound.
        """
        zero = np.zeros_like(self._slope)
        difference = zero if following is None else following - self._here
        self._slope = np.clip(self._end_slope, np.minimum(3 * difference, 0), np.maximum(3 * difference, 0))
        self._end_slope = zero
        if after is not None:
            then = after - following
            product = difference * then
            same_way = product > 0
            self._end_slope = np.divide(2 * product, difference + then, out=zero, where=same_way)
