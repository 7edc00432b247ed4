"""What an action must be before it may reach a robot: finite, as wide as the robot's, within its joints' limits.

A chunk is refused whole, with a sentence. Where limits come from a robot's calibration is here, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.arms import arms_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ActionChecks:
    """The conditions.

    Attributes:
        names: The robot's action entries, in order.
        low: (dim,) least allowed value of each, in the action's units; -inf where nothing is known.
        high: (dim,) greatest.
    """

    names: tuple[str, ...]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(
        cls, names: Sequence[str], limits: Mapping[str, tuple[float, float]] | None = None
    ) -> ActionChecks:
        """Checks with limits by entry; entries that are not listed have none."""
        limits = limits or {}
        rows = [limits.get(name, (-np.inf, np.inf)) for name in names]
        low, high = np.array(rows, np.float64).reshape(-1, 2).T
        return cls(tuple(names), low, high)

    def refusal(self, actions: Any, model_actions: Any = None) -> str | None:
        """Why a chunk must not be executed, in one sentence; None if it may.

        Args:
            actions: Should be (n, dim) float32, in the robot's units.
            model_actions: Should be None or (n, width) float32, finite; the next chunk will continue it.
        """
        actions = np.asarray(actions)
        width = len(self.names)
        if actions.ndim != 2 or actions.shape[1] != width or not len(actions):
            return (
                f"a chunk of shape {actions.shape} was refused, the robot takes (n, {width}): {', '.join(self.names)}; "
                "is the policy for this robot?"
            )
        if not np.isfinite(actions).all():
            step, joint = np.argwhere(~np.isfinite(actions))[0]
            return (
                f"a chunk was refused: {self.names[joint]} is {actions[step, joint]} at step {step} of {len(actions)}; "
                "look at the policy's input statistics and its dtype."
            )
        if model_actions is not None:
            model_actions = np.asarray(model_actions)
            if len(model_actions) != len(actions) or not np.isfinite(model_actions).all():
                return (
                    "a chunk was refused: its actions in the model's units are not finite, or not as many as its "
                    f"actions ({len(model_actions)} for {len(actions)})."
                )
        outside = (actions < self.low) | (actions > self.high)
        if outside.any():
            step, joint = np.argwhere(outside)[0]
            name = self.names[joint]
            return (
                f"a chunk was refused: {name} is {actions[step, joint]:.4g} at step {step} of {len(actions)}, allowed "
                f"is {self.low[joint]:.4g} to {self.high[joint]:.4g}; is the policy for this robot and calibration? "
                f"Otherwise set inference.action_limits.{name}."
            )
        return None

    def check_rest_position(self, position: Mapping[str, float]) -> None:
        """Refuse a rest position, by entry, that no chunk could ask for: the arm goes there when nobody looks.

        Raises:
            ValueError: With one sentence that names the joint.
        """
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low <= position.get(name, low) <= high:
                raise ValueError(
                    f"inference.rest_position has {name} at {position[name]:g}, allowed is {low:.4g} to {high:.4g}: "
                    f"choose a position in between, or set inference.action_limits.{name}."
                )


def by_entry(values: Mapping[str, Any], names: Sequence[str], option: str) -> dict[str, Any]:
    """Values given by joint, with or without the ending (`shoulder_pan` for `shoulder_pan.pos`), by action entry.

    Raises:
        ValueError: If a joint is none of the robot's.
    """
    known = {name.rpartition(".")[0]: name for name in names} | {name: name for name in names}
    found = {}
    for joint, value in values.items():
        if joint not in known:
            raise ValueError(f"{option} names '{joint}'; the robot's action has {', '.join(names)}.")
        found[known[joint]] = value
    return found


def limits_of(robot: Any, slack: float) -> dict[str, tuple[float, float]]:
    """The limits of a robot's joints in the units of its actions, as its motor bus scales them.

    Args:
        robot: With `bus.motors` and `bus.calibration`, as LeRobot's arms have, or of two such arms; others have no
            limits known here.
        slack: Share of the range by which a limit is widened: policies overshoot a little, and LeRobot's bus clamps.

    Returns:
        `{"<motor>.pos": (least, greatest)}`, with each arm's prefix where there are two.
    """
    limits = {}
    for prefix, arm in arms_of(robot).items():
        bus = getattr(arm, "bus", None)
        for name, motor in getattr(bus, "motors", {}).items():
            interval = _range(bus, name, getattr(motor.norm_mode, "value", None))
            if interval is not None:
                low, high = interval
                margin = slack * (high - low)
                limits[f"{prefix}{name}.pos"] = (low - margin, high + margin)
    return limits


def _range(bus: Any, name: str, norm_mode: str | None) -> tuple[float, float] | None:
    if norm_mode == "range_m100_100":
        return -100.0, 100.0
    if norm_mode == "range_0_100":
        return 0.0, 100.0
    calibration = (getattr(bus, "calibration", None) or {}).get(name)
    if norm_mode != "degrees" or calibration is None:
        return None
    # MotorsBus._normalize: 0 degrees is the middle of the calibrated range.
    resolution = bus.model_resolution_table[bus.motors[name].model] - 1
    half = (calibration.range_max - calibration.range_min) / 2 * 360 / resolution
    return -half, half
