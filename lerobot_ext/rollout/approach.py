"""The smooth way of a robot to a given position, before an episode begins: how it moves, and whether it arrived.

The joints begin and end together; the one with the longest way sets the pace. Who wants to go where, and what becomes
of the rollout, is decided elsewhere.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.errors import UserError
from lerobot_ext.rollout.checks import by_entry, limits_of

logger = logging.getLogger(__name__)

OPTION = "initial_position"
RATE_HZ = 50.0
ARRIVE_S = 5.0
# Of s(u) = 10 u^3 - 15 u^4 + 6 u^5 (minimum jerk: Flash & Hogan 1985), whose derivative is greatest at u = 1/2.
_PEAK = 1.875


class Stopped(Exception):  # noqa: N818
    """The motion was broken off because somebody said so."""


@dataclass(frozen=True)
class Destination:
    """Where to go, and how.

    Attributes:
        target: Action entry (`shoulder_pan.pos`) to position; joints that are not in it stay where they are.
        speed: That no joint exceeds, in the action's units a second.
        tolerance: How far from its target a joint may end, in the action's units.
    """

    target: Mapping[str, float]
    speed: float
    tolerance: float


def destination(robot: Any, wanted: Mapping[str, float], speed: float, tolerance: float) -> Destination:
    """Where a robot is to go; checked before it is connected.

    Args:
        robot: A LeRobot robot.
        wanted: By joint, with or without the ending `.pos`; of two arms with their prefixes (`left_shoulder_pan`).
        speed: See `Destination`.
        tolerance: See `Destination`.

    Raises:
        ValueError: If a joint is none of the robot's, or a position not within the joint's calibrated limits.
    """
    target = by_entry(wanted, positions_of(robot), OPTION)
    limits = limits_of(robot, slack=0.0)
    for name, value in target.items():
        low, high = limits.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            raise ValueError(f"{OPTION}.{name} is {value:g}; the joint goes from {low:.4g} to {high:.4g}.")
    return Destination(target, speed, tolerance)


def positions_of(robot: Any) -> list[str]:
    """The entries of a robot's action that are positions, in order."""
    return [name for name in robot.action_features if name.endswith(".pos")]


class SmoothWay:
    """From one position to another with neither a jump in speed nor in acceleration.

    Args:
        start: (dim,) where it begins.
        target: (dim,).
        speed: That no joint exceeds, in units a second, if the steps are sent at `rate_hz` or slower.
        rate_hz: Steps a second.
    """

    def __init__(
        self, start: NDArray[np.float64], target: NDArray[np.float64], speed: float, rate_hz: float = RATE_HZ
    ) -> None:
        self._start, self._way = start, target - start
        longest = float(np.abs(self._way).max(initial=0.0))
        self.steps = math.ceil(_PEAK * longest / speed * rate_hz)

    def at(self, step: int) -> NDArray[np.float64]:
        """The position after a step, (dim,); step 0 is the start, `steps` the target."""
        u = step / max(self.steps, 1)
        return (
            self._start + self._way * (u**3 * (10.0 - 15.0 * u + 6.0 * u * u)) if self.steps else self._start
        )


def approach(
    robot: Any,
    where: Destination,
    *,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
    arrive_s: float = ARRIVE_S,
) -> None:
    """Go there, and look whether the robot is there.

    Args:
        robot: Connected, with `get_observation` and `send_action`.
        where: From `destination`.
        stopped: Asked before each step; where it says True nothing more is sent, and the robot stays where it is.
        tell: Gets a few words about how far it is.
        arrive_s: How long the joints may take to catch up when the last position was commanded.

    Raises:
        Stopped: As `stopped` said.
        UserError: Naming the joints that did not arrive.
    """
    names = positions_of(robot)
    seen = robot.get_observation()
    start = np.array([float(seen[name]) for name in names])
    goal = start.copy()
    for name, value in where.target.items():
        goal[names.index(name)] = value
    way = SmoothWay(start, goal, where.speed)
    next_s = time.monotonic()
    for step in range(1, way.steps + 1):
        if stopped():
            raise Stopped
        robot.send_action(dict(zip(names, way.at(step).tolist(), strict=True)))
        if step % RATE_HZ == 0:
            tell(f"{(way.steps - step) / RATE_HZ:.0f} s to go")
        # A step that was late is not made up for: the ones after it would come too fast.
        next_s = max(next_s + 1 / RATE_HZ, time.monotonic())
        time.sleep(max(next_s - time.monotonic(), 0.0))
    until = time.monotonic() + arrive_s
    while missing := _missing(robot, where):
        if stopped():
            raise Stopped
        if time.monotonic() >= until:
            raise UserError(
                f"{OPTION}: {'; '.join(missing)}, {arrive_s:g} s after the last position was commanded; look whether "
                "something is in the way, the arm's power is off, or its max_relative_target is small; or raise "
                f"initial_tolerance ({where.tolerance:g})."
            )
        # Commanded again: the servos do not confirm a position, and max_relative_target may have cut the last one short.
        robot.send_action(dict(zip(names, goal.tolist(), strict=True)))
        time.sleep(1 / RATE_HZ)


def hold_when_released(robot: Any) -> bool:
    """See to it that a robot's torque stays on when it is disconnected; False if the robot has no such setting."""
    found = False
    for part in (robot, getattr(robot, "left_arm", None), getattr(robot, "right_arm", None)):
        config = getattr(part, "config", None)
        if hasattr(config, "disable_torque_on_disconnect"):
            config.disable_torque_on_disconnect = False
            found = True
    return found


def _missing(robot: Any, where: Destination) -> list[str]:
    """The joints that are not where they were told to go, in words."""
    seen = robot.get_observation()
    return [
        f"{name} is at {float(seen[name]):.1f}, wanted {value:g}"
        for name, value in where.target.items()
        if not abs(float(seen[name]) - value) <= where.tolerance
    ]
