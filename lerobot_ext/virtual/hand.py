"""The hand that a calibration asks for: it moves unpowered arms to the middle and through their ranges.

LeRobot's `calibrate()` tells a person to do this; in the lab `lerobot-ext lab --hand=…` does it. Poses and speeds
only; the task press has its own operator.
"""

from __future__ import annotations

import math

import numpy as np

from lerobot_ext.virtual.world import HOME

POSES = ("middle", "sweep", "home")
MIDDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.875])
REACH = np.array([1.92, 1.75, 1.69, 1.66, 0.0, 0.875])  # the wrist's roll has no end to find
PERIOD_S = 8.0
SPEED = 2.0  # rad/s


class Hand:
    """Takes an arm from `joints` (rad, (6,)) to a pose, or through its ranges again and again.

    Attributes:
        joints: Where the hand holds the arm now, rad, float64 (6,).
        pose: One of POSES.
    """

    def __init__(self, joints: np.ndarray, pose: str) -> None:
        if pose not in POSES:
            raise ValueError(f"there is no pose '{pose}'; there are: {', '.join(POSES)}.")
        self.joints = joints.copy()
        self.pose = pose
        self._time = 0.0

    @property
    def done(self) -> bool:
        """Whether the arm is home again, so that the hand can leave it."""
        return self.pose == "home" and bool(np.abs(self.joints - HOME).max() < 1e-6)

    def step(self, dt: float) -> np.ndarray:
        """Advance by `dt` seconds; returns `joints`."""
        self._time += dt
        goal = HOME if self.pose == "home" else MIDDLE
        if self.pose == "sweep":
            goal = MIDDLE + REACH * math.sin(2 * math.pi * self._time / PERIOD_S)
        self.joints = self.joints + np.clip(goal - self.joints, -SPEED * dt, SPEED * dt)
        return self.joints
