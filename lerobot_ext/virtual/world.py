"""The physics of the task press: MuJoCo's model of the arms, the button and the contact between them.

Drives go in as servo goals, truth comes out: joint angles, contact force, the button's height. No protocol, no
picture and no judgement here.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.arm import GEAR_FRICTION, HOME, JOINTS, Arm, Drive
from lerobot_ext.virtual.two_arms import LEFT, two_arm_model

__all__ = [
    "BUTTON_XY",
    "GEAR_FRICTION",
    "HEIGHTS_M",
    "HOME",
    "JOINTS",
    "Drive",
    "World",
    "load_model",
    "load_mujoco",
]

BUTTON_XY = (0.22, 0.0)
HEIGHTS_M = (0.025, 0.050)  # range of the button's height above the table

CLEARANCE_M = 0.012  # the button may jump only if the pad stays at least this far above it
LIFT_SPEED = 0.02  # m/s, when it may not

LAMP_OFF = (0.80, 0.24, 0.20, 1.0)
LAMP_ON = (0.15, 0.85, 0.25, 1.0)


def load_mujoco():
    """Import MuJoCo, with software rendering where there is no display.

    Raises:
        UserError: If the package is not installed.
    """
    if not os.environ.get("MUJOCO_GL") and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "osmesa"
    # Mesa's rasteriser in this thread: for pictures this small its worker threads cost a quarter more than they save
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        import mujoco
    except Exception as error:  # a missing OpenGL shows here too, as whatever its binding raises
        raise UserError(
            f"the virtual lab needs MuJoCo, which cannot be imported ({type(error).__name__}: {error}); "
            "install it in the project's folder with `pip install -e '.[lab]'` and, for rendering without a display, "
            "`apt install libosmesa6`."
        ) from error
    return mujoco


def load_model(arms: int = 1):
    """The compiled model of `press.xml`, which has one arm; with two, a second one stands to its left."""
    mujoco, path = load_mujoco(), Path(__file__).with_name("press.xml")
    return mujoco.MjModel.from_xml_path(str(path)) if arms == 1 else two_arm_model(mujoco, path)


class World:
    """The scene, stepped 2 ms at a time.

    What it tells of "the" arm it tells of the first one, which presses.

    Attributes:
        model, data: MuJoCo's own, for rendering.
        arms: One, or the right and the left one.
    """

    def __init__(self, model=None) -> None:
        """The scene of `press.xml`, or of `model`: one compiled from a variant with the same names in it."""
        mujoco = self._mj = load_mujoco()
        self.model = load_model() if model is None else model
        self.data = mujoco.MjData(self.model)
        self.dt = self.model.opt.timestep
        names = {self.model.joint(index).name for index in range(self.model.njnt)}
        self.arms = tuple(
            Arm(mujoco, self.model, self.data, prefix)
            for prefix in ("", LEFT)
            if f"{prefix}{JOINTS[0]}" in names
        )
        self._block = self.model.body("block").id
        self._lamp = self.model.mat("lamp").id
        self._target_height = 0.04
        self._raise_block(self._target_height)
        mujoco.mj_forward(self.model, self.data)

    @property
    def time(self) -> float:
        """Simulated seconds since the start."""
        return self.data.time

    @property
    def joints(self) -> np.ndarray:
        """Joint angles in rad, float64 (6,)."""
        return self.arms[0].joints

    @property
    def velocities(self) -> np.ndarray:
        """Joint velocities in rad/s, float64 (6,)."""
        return self.arms[0].velocities

    @property
    def loads(self) -> np.ndarray:
        """Motor torques relative to the stall torque, -1 to 1, float64 (6,)."""
        return self.arms[0].loads

    @property
    def tip(self) -> np.ndarray:
        """Where the pad's tip is, in m, float64 (3,)."""
        return self.arms[0].tip

    @property
    def force(self) -> np.ndarray:
        """Contact force on the pad in N, float64 (3,): along its normal (pressing is positive), then tangential."""
        return self.arms[0].force

    @property
    def normal_force(self) -> float:
        """Contact force along the pad's normal, N; never negative."""
        return self.arms[0].normal_force

    @property
    def block_height(self) -> float:
        """Height of the button's top above the table, m; while it moves, where it will stop."""
        return self._target_height

    def set_block_height(self, height: float) -> None:
        """Let the button stand `height` metres above the table: at once, or slowly if the pad is in its way."""
        self._target_height = float(height)

    def set_contacts(self, on: bool) -> None:
        """Whether things touch each other; without, the arm passes through them."""
        flag = int(self._mj.mjtDisableBit.mjDSBL_CONTACT)
        flags = self.model.opt.disableflags
        self.model.opt.disableflags = flags & ~flag if on else flags | flag

    def set_lamp(self, on: bool) -> None:
        """Green when `on`, red otherwise."""
        self.model.mat_rgba[self._lamp] = LAMP_ON if on else LAMP_OFF

    @property
    def visible(self) -> np.ndarray:
        """All that pictures depend on, float64 (n,): radians, metres and shares of a colour."""
        block, lamp = self.model.body_pos[self._block], self.model.mat_rgba[self._lamp]
        return np.concatenate((self.data.qpos, block, lamp))

    def drive(self, drive: Drive) -> None:
        """Follow `drive` from the next step on."""
        self.arms[0].drive(drive)

    def step(self, n: int) -> list[float]:
        """Advance `n` steps of 2 ms, with setpoints and button moved once; call it at least 100 times a second.

        Returns:
            The normal contact force after each step, N.
        """
        for arm in self.arms:
            arm.set_off(self.dt * n)
        self._move_block(n)
        forces = []
        for _ in range(n):
            self._mj.mj_step(self.model, self.data)
            for arm in self.arms:
                arm.feel()
            forces.append(self.normal_force)
        return forces

    def _move_block(self, n: int) -> None:
        now = self.model.body_pos[self._block, 2]
        if now == self._target_height:
            return
        if all(self._clears(arm.tip, max(self._target_height, now)) for arm in self.arms):
            self._raise_block(self._target_height)
        else:
            reach = LIFT_SPEED * self.dt * n
            self._raise_block(now + float(np.clip(self._target_height - now, -reach, reach)))

    @staticmethod
    def _clears(tip: np.ndarray, height: float) -> bool:
        """Whether a pad at `tip` is beside the button, or far enough above one of that height."""
        beside = max(abs(tip[0] - BUTTON_XY[0]), abs(tip[1] - BUTTON_XY[1])) > 0.08
        return bool(beside or tip[2] > height + CLEARANCE_M)

    def _raise_block(self, height: float) -> None:
        self.model.body_pos[self._block] = (*BUTTON_XY, height)
