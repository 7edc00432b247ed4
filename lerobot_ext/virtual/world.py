"""The physics of the task press: MuJoCo's model of the arm, the button and the contact between them.

Drives go in as servo goals, truth comes out: joint angles, contact force, the button's height. No protocol, no
picture and no judgement here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lerobot_ext.errors import UserError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HOME = np.array(
    [-0.276, -0.043, -0.264, 1.657, 0.12, 0.25]
)  # above, behind and beside the button; gears hold it
BUTTON_XY = (0.22, 0.0)
HEIGHTS_M = (0.025, 0.050)  # range of the button's height above the table

MAX_SPEED = 5.0  # rad/s: an STS3215 without load at 12 V, 50 turns a minute
GEAR_FRICTION = 0.45  # N·m: what a 1:345 gear train without current resists before it turns
CLEARANCE_M = 0.012  # the button may jump only if the pad stays at least this far above it
LIFT_SPEED = 0.02  # m/s, when it may not

NO_FORCE = np.zeros(3)
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
            "install it with `pip install 'lerobot_robot_ext[lab]'` and, for rendering without a display, "
            "`apt install libosmesa6`."
        ) from error
    return mujoco


def load_model():
    """The compiled model of `press.xml`."""
    return load_mujoco().MjModel.from_xml_path(str(Path(__file__).with_name("press.xml")))


@dataclass
class Drive:
    """What six servos ask of their motors; arrays of shape (6,), float64 and bool, in the order of JOINTS.

    Attributes:
        goal: Angle to hold, rad.
        powered: False lets the joint go; then only its gears resist.
        stiffness: Position gain relative to the usual one (P coefficient 16).
        torque: Largest torque relative to the stall torque, 0 to 1.
    """

    goal: np.ndarray
    powered: np.ndarray
    stiffness: np.ndarray
    torque: np.ndarray

    @classmethod
    def at(cls, goal: np.ndarray) -> Drive:
        """All joints powered and going to `goal`."""
        n = len(JOINTS)
        return cls(np.array(goal, float), np.ones(n, bool), np.ones(n), np.ones(n))


class World:
    """The scene, stepped 2 ms at a time.

    Attributes:
        model, data: MuJoCo's own, for rendering.
        force: Contact force on the pad in N, float64 (3,): along the pad's normal (pressing is positive), then
            the two tangential components.
    """

    def __init__(self, model=None) -> None:
        """The scene of `press.xml`, or of `model`: one compiled from a variant with the same names in it."""
        mujoco = self._mj = load_mujoco()
        self.model = load_model() if model is None else model
        self.data = mujoco.MjData(self.model)
        self.dt = self.model.opt.timestep
        self.force = NO_FORCE
        joints = [self.model.joint(name) for name in JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._pad = self.model.geom("pad").id
        self._pad_site = self.model.site("pad").id
        self._pad_body = self.model.body("pad").id
        self._block = self.model.body("block").id
        self._lamp = self.model.mat("lamp").id
        self._kp = self.model.actuator_gainprm[:, 0].copy()
        self._kv = -self.model.actuator_biasprm[:, 2].copy()
        self._stall = self.model.actuator_forcerange[:, 1].copy()
        self._drive = Drive.at(HOME)
        self._setpoint = HOME.copy()
        self._target_height = 0.04
        self.data.qpos[self._qpos] = HOME
        self._raise_block(self._target_height)
        self.drive(Drive(HOME.copy(), np.zeros(6, bool), np.ones(6), np.ones(6)))
        mujoco.mj_forward(self.model, self.data)

    @property
    def time(self) -> float:
        """Simulated seconds since the start."""
        return self.data.time

    @property
    def joints(self) -> np.ndarray:
        """Joint angles in rad, float64 (6,)."""
        return self.data.qpos[self._qpos]

    @property
    def velocities(self) -> np.ndarray:
        """Joint velocities in rad/s, float64 (6,)."""
        return self.data.qvel[self._dofs]

    @property
    def loads(self) -> np.ndarray:
        """Motor torques relative to the stall torque, -1 to 1, float64 (6,)."""
        return self.data.actuator_force / self._stall

    @property
    def tip(self) -> np.ndarray:
        """Where the pad's tip is, in m, float64 (3,)."""
        return self.data.site_xpos[self._pad_site].copy()

    @property
    def normal_force(self) -> float:
        """Contact force along the pad's normal, N; never negative."""
        return max(float(self.force[0]), 0.0)

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

    def drive(self, drive: Drive) -> None:
        """Follow `drive` from the next step on."""
        if drive is self._drive:
            return
        self._stiffness = np.where(drive.powered, self._kp * drive.stiffness, self._kp)
        limit = np.where(drive.powered, self._stall * drive.torque, GEAR_FRICTION)
        self.model.actuator_gainprm[:, 0] = self._stiffness
        self.model.actuator_biasprm[:, 1] = -self._stiffness
        self.model.actuator_biasprm[:, 2] = -self._kv * np.sqrt(self._stiffness / self._kp)
        self.model.actuator_forcerange[:, 0] = -limit
        self.model.actuator_forcerange[:, 1] = limit
        self._drive = drive

    def step(self, n: int) -> list[float]:
        """Advance `n` steps of 2 ms, with setpoints and button moved once; call it at least 100 times a second.

        Returns:
            The normal contact force after each step, N.
        """
        joints, powered = self.joints, self._drive.powered
        # without power the gears alone hold the joint, like a spring that slips when it is loaded too much
        slack = GEAR_FRICTION / self._kp
        held = np.minimum(np.maximum(self._setpoint, joints - slack), joints + slack)
        change = np.where(powered, self._drive.goal, held) - self._setpoint
        reach = MAX_SPEED * self.dt * n
        self._setpoint = self._setpoint + np.minimum(np.maximum(change, -reach), reach)
        self.data.ctrl[:] = self._setpoint
        self._move_block(n)
        forces = []
        for _ in range(n):
            self._mj.mj_step(self.model, self.data)
            self._feel()
            forces.append(self.normal_force)
        return forces

    def _feel(self) -> None:
        """Sum the contact forces on the pad and turn them into its axes."""
        if not self.data.ncon:
            self.force = NO_FORCE
            return
        total = np.zeros(3)
        wrench = np.zeros(6)
        for index in range(self.data.ncon):
            contact = self.data.contact[index]
            if self._pad not in (contact.geom1, contact.geom2):
                continue
            self._mj.mj_contactForce(self.model, self.data, index, wrench)
            in_world = contact.frame.reshape(3, 3).T @ wrench[:3]
            total += in_world if contact.geom2 == self._pad else -in_world
        # MuJoCo gives the force on geom2; the pad's own x axis points out of it, so pressing is along -x
        in_pad = self.data.xmat[self._pad_body].reshape(3, 3).T @ total
        self.force = np.array([-in_pad[0], in_pad[1], in_pad[2]])

    def _move_block(self, n: int) -> None:
        now = self.model.body_pos[self._block, 2]
        if now == self._target_height:
            return
        tip = self.data.site_xpos[self._pad_site]
        beside = max(abs(tip[0] - BUTTON_XY[0]), abs(tip[1] - BUTTON_XY[1])) > 0.08
        if beside or tip[2] > max(self._target_height, now) + CLEARANCE_M:
            self._raise_block(self._target_height)
        else:
            reach = LIFT_SPEED * self.dt * n
            self._raise_block(now + float(np.clip(self._target_height - now, -reach, reach)))

    def _raise_block(self, height: float) -> None:
        self.model.body_pos[self._block] = (*BUTTON_XY, height)
