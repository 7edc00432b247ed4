"""The scripted operator: a hand on the leader arm that presses the button as a person would.

It sees the arm, feels the follower's contact force a moment late and reacts to the button's lamp. It moves joint
angles only; servos, clocks and judgement are elsewhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from lerobot_ext.virtual.referee import FORCE_N
from lerobot_ext.virtual.world import BUTTON_XY, HEIGHTS_M, HOME, load_model, load_mujoco

PITCH = 1.40  # of the gripper while pressing, rad below the horizontal
HOVER_M = 0.074  # of the pad's tip above the table
LOWEST_M = HEIGHTS_M[0] - 0.022  # further down there is no button
DESCENT = 0.033  # m/s until contact is felt
ASCENT = 0.12  # m/s
AIM_N = sum(FORCE_N) / 2
TOUCH_N = 0.2  # a hand notices it
COMPLIANCE = 0.010  # m/s of pressing per newton missing
FEELING_DELAY_S = 0.04
REACTION_S = 0.5  # from the lamp to the hand, which makes sure; also longer than a short chunk looks ahead
PATIENCE_S = 3.0  # how long it waits for the lamp
CLOSED = (0.0, 0.10)  # wrist roll and jaw while pressing, rad
REACH_S = 0.8  # from home to above the button


class Kinematics:
    """Forward and inverse kinematics of the arm, on MuJoCo's model of it."""

    def __init__(self) -> None:
        self._mj = load_mujoco()
        self._model = load_model()
        self._data = self._mj.MjData(self._model)
        self._site = self._model.site("pad").id
        self._jacobian = np.zeros((3, self._model.nv))

    def tip(self, joints: np.ndarray) -> np.ndarray:
        """The pad's tip in m, float64 (3,), at `joints` (rad, (6,))."""
        self._data.qpos[:6] = joints
        self._mj.mj_kinematics(self._model, self._data)
        self._mj.mj_comPos(self._model, self._data)
        return self._data.site_xpos[self._site].copy()

    def reach(self, joints: np.ndarray, tip: np.ndarray, pitch: float, iterations: int = 1) -> np.ndarray:
        """Joints near `joints` whose pad's tip is at `tip` with the gripper at `pitch`; damped least squares."""
        joints = joints.copy()
        for _ in range(iterations):
            error = np.append(tip - self.tip(joints), 0.1 * (pitch - joints[1:4].sum()))
            self._mj.mj_jacSite(self._model, self._data, self._jacobian, None, self._site)
            matrix = np.vstack([self._jacobian[:, :4], 0.1 * np.array([0.0, 1, 1, 1])])
            joints[:4] += matrix.T @ np.linalg.solve(matrix @ matrix.T + 1e-7 * np.eye(4), error)
        return joints


class Operator:
    """Moves the leader's joints; call `step` at a steady pace.

    Attributes:
        joints: Where the hand holds the leader, rad, float64 (6,).
        doing: "home", "down", "hold" or "up".
    """

    def __init__(self, seed: int = 0) -> None:
        self._kinematics = Kinematics()
        self._rng = np.random.default_rng(seed)
        self.joints = HOME.copy()
        self.doing = "home"
        self._motion: Iterator[None] | None = None
        self._felt: deque[float] = deque()
        self._force = 0.0
        self._lamp = False
        self._dt = 0.01
        self._time = 0.0

    @property
    def busy(self) -> bool:
        """Whether it is on its way."""
        return self._motion is not None

    def press(self) -> None:
        """Begin a press from wherever the leader is."""
        self._motion = self._press()

    def go_home(self) -> None:
        """Leave what it is doing and go home; nothing if it is there."""
        if self.doing != "home" or np.abs(self.joints - HOME).max() > 0.1:
            self._motion = self._retreat()

    def step(self, dt: float, force: float, lamp: bool) -> np.ndarray:
        """Advance by `dt` seconds.

        Args:
            dt: Seconds since the last step.
            force: The follower's true contact force, N; felt FEELING_DELAY_S late.
            lamp: Whether the button's lamp is green.

        Returns:
            `joints`.
        """
        self._dt, self._lamp = dt, lamp
        self._time += dt
        self._felt.append(force)
        while len(self._felt) > max(1, round(FEELING_DELAY_S / dt)):
            self._force = self._felt.popleft()
        if self._motion is not None and next(self._motion, self) is self:
            self._motion = None
        return self.joints

    def _press(self) -> Iterator[None]:
        """Home, above the button, down until it is felt, hold until the lamp is green, back."""
        self.doing = "down"
        hover = np.array([*BUTTON_XY, HOVER_M]) + self._rng.normal(0, (0.0012, 0.0012, 0.0010))
        descent = DESCENT * self._rng.uniform(0.95, 1.05)
        # nobody holds the wrist and the jaw twice the same
        closed = np.array([*HOME[:4], *(CLOSED + self._rng.uniform(-0.01, 0.01, 2))])
        above = self._kinematics.reach(closed, hover, PITCH, iterations=30)
        yield from self._glide(above, REACH_S)

        tip, speed, waited, seen = hover.copy(), 0.0, 0.0, 0.0
        while seen < REACTION_S and waited < PATIENCE_S:
            if self._force < TOUCH_N and self.doing == "down":
                wanted = descent
            else:
                self.doing = "hold"
                wanted = float(np.clip(COMPLIANCE * (AIM_N - self._force), -descent, descent))
            speed += (wanted - speed) * min(1.0, self._dt / 0.03)
            tip[2] = max(tip[2] - speed * self._dt, LOWEST_M)
            if self.doing == "hold" or tip[2] <= LOWEST_M:
                waited += self._dt
            seen = seen + self._dt if self._lamp else 0.0
            yield from self._hold(self._kinematics.reach(self.joints, tip, PITCH))
        yield from self._retreat()

    def _retreat(self) -> Iterator[None]:
        """Straight up if something may be in the way, then home."""
        self.doing = "up"
        tip = self._kinematics.tip(self.joints)
        pitch = float(self.joints[1:4].sum())
        speed = 0.0
        while tip[2] < HOVER_M - 0.01:
            speed = min(ASCENT, speed + 0.8 * self._dt)
            tip[2] += speed * self._dt
            yield from self._hold(self._kinematics.reach(self.joints, tip, pitch))
        away = float(np.abs(self.joints - HOME).max())
        yield from self._glide(HOME.copy(), float(np.clip(away / 0.9, 0.3, 1.5)))
        self.doing = "home"

    def _glide(self, goal: np.ndarray, seconds: float) -> Iterator[None]:
        """Minimum jerk from here to `goal` (Flash and Hogan, 1985)."""
        start, passed = self.joints.copy(), 0.0
        while passed < seconds:
            passed = min(passed + self._dt, seconds)
            s = passed / seconds
            yield from self._hold(start + (goal - start) * (10 * s**3 - 15 * s**4 + 6 * s**5))

    def _hold(self, joints: np.ndarray) -> Iterator[None]:
        """One step at `joints`; the wrist's roll and the jaw sway a little, as hands do."""
        self.joints = joints
        self.joints[4] += 0.01 * self._dt * math.sin(1.7 * self._time)
        self.joints[5] += 0.01 * self._dt * math.sin(2.3 * self._time + 1)
        yield
