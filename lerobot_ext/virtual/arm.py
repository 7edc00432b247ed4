"""One arm of the world: its joints, its servos' motors and the contact force on its pad, in MuJoCo's model.

It is told what its servos ask for and follows it; the scene, the time and what else moves belong to `world`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
HOME = np.array(
    [-0.276, -0.043, -0.264, 1.657, 0.12, 0.25]
)  # above, behind and beside the button; gears hold it

MAX_SPEED = 5.0  # rad/s: an STS3215 without load at 12 V, 50 turns a minute
GEAR_FRICTION = 0.45  # N·m: what a 1:345 gear train without current resists before it turns

NO_FORCE = np.zeros(3)


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


class Arm:
    """An arm at home, without power.

    Attributes:
        force: Contact force on the pad in N, float64 (3,): along the pad's normal (pressing is positive), then
            the two tangential components.

    Args:
        mujoco, model, data: MuJoCo and its own.
        prefix: Of the arm's names in the model.
    """

    def __init__(self, mujoco, model, data, prefix: str = "") -> None:
        self._mj, self._model, self._data = mujoco, model, data
        self.force = NO_FORCE
        joints = [model.joint(prefix + name) for name in JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._motors = np.array([model.actuator(prefix + name).id for name in JOINTS])
        self._pad = model.geom(f"{prefix}pad").id
        self._pad_site = model.site(f"{prefix}pad").id
        self._pad_body = model.body(f"{prefix}pad").id
        self._kp = model.actuator_gainprm[self._motors, 0]
        self._kv = -model.actuator_biasprm[self._motors, 2]
        self._stall = model.actuator_forcerange[self._motors, 1]
        self._slack = GEAR_FRICTION / self._kp  # how far a joint without power gets from its setpoint
        self._drive: Drive | None = None
        self._setpoint = HOME.copy()
        data.qpos[self._qpos] = HOME
        self.drive(Drive(HOME.copy(), np.zeros(6, bool), np.ones(6), np.ones(6)))

    @property
    def joints(self) -> np.ndarray:
        """Joint angles in rad, float64 (6,)."""
        return self._data.qpos[self._qpos]

    @property
    def velocities(self) -> np.ndarray:
        """Joint velocities in rad/s, float64 (6,)."""
        return self._data.qvel[self._dofs]

    @property
    def loads(self) -> np.ndarray:
        """Motor torques relative to the stall torque, -1 to 1, float64 (6,)."""
        return self._data.actuator_force[self._motors] / self._stall

    @property
    def tip(self) -> np.ndarray:
        """Where the pad's tip is, in m, float64 (3,)."""
        return self._data.site_xpos[self._pad_site].copy()

    @property
    def normal_force(self) -> float:
        """Contact force along the pad's normal, N; never negative."""
        return max(float(self.force[0]), 0.0)

    def drive(self, drive: Drive) -> None:
        """Follow `drive` from the next step on."""
        if drive is self._drive:
            return
        stiffness = np.where(drive.powered, self._kp * drive.stiffness, self._kp)
        limit = np.where(drive.powered, self._stall * drive.torque, GEAR_FRICTION)
        model, motors = self._model, self._motors
        model.actuator_gainprm[motors, 0] = stiffness
        model.actuator_biasprm[motors, 1] = -stiffness
        model.actuator_biasprm[motors, 2] = -self._kv * np.sqrt(stiffness / self._kp)
        model.actuator_forcerange[motors, 0] = -limit
        model.actuator_forcerange[motors, 1] = limit
        self._drive, self._powered = drive, bool(drive.powered.all())

    def set_off(self, seconds: float) -> None:
        """Move the motors' setpoints on their way for the next `seconds`."""
        goal = self._drive.goal
        if not self._powered:
            # without power the gears alone hold the joint, like a spring that slips when it is loaded too much
            joints = self.joints
            held = np.minimum(np.maximum(self._setpoint, joints - self._slack), joints + self._slack)
            goal = np.where(self._drive.powered, goal, held)
        change = goal - self._setpoint
        reach = MAX_SPEED * seconds
        self._setpoint = self._setpoint + np.minimum(np.maximum(change, -reach), reach)
        self._data.ctrl[self._motors] = self._setpoint

    def feel(self) -> None:
        """Sum the contact forces on the pad and turn them into its axes."""
        data = self._data
        if not data.ncon:
            self.force = NO_FORCE
            return
        total = np.zeros(3)
        wrench = np.zeros(6)
        for index in range(data.ncon):
            contact = data.contact[index]
            if self._pad not in (contact.geom1, contact.geom2):
                continue
            self._mj.mj_contactForce(self._model, data, index, wrench)
            in_world = contact.frame.reshape(3, 3).T @ wrench[:3]
            total += in_world if contact.geom2 == self._pad else -in_world
        # MuJoCo gives the force on geom2; the pad's own x axis points out of it, so pressing is along -x
        in_pad = data.xmat[self._pad_body].reshape(3, 3).T @ total
        self.force = np.array([-in_pad[0], in_pad[1], in_pad[2]])
