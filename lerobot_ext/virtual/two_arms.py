"""What a second arm adds to the lab: where it stands, what the two can touch, and the hand at its leader.

The arm that presses is the right one of the two; the second stands to its left, of the same make, and reaches the
button as well. With one arm nothing of this is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lerobot_ext.virtual.arm import HOME, JOINTS, Drive

LEFT = "left_"  # of the left arm's names in the model; the right arm's have no prefix
LEFT_BASE_M = (0.0, 0.22, 0.0)  # the right one stands at the origin
# Where the side camera was, the right arm would hide the left one: it stands higher and farther away.
SIDE_CAMERA_M = {"side": (0.125, -0.56, 0.52), "side_depth": (0.140, -0.56, 0.52)}
SIDE_CAMERA_AXES = (1, 0, 0, 0, 0.62, 0.7846)  # its x and y
SWAY_RAD = 0.01  # a hand is never still, and a joint that is makes a column of a dataset that does not vary
SPEED = 3.0  # rad/s, when the leader's own servos move it

# MuJoCo lets two geoms touch if the one's contype and the other's conaffinity share a bit. In `press.xml` an arm's are
# these, and it touches what stands on the table; a further bit is for one arm touching the other.
_OF_AN_ARM = 1, 2
_OTHER_ARM = 4


def two_arm_model(mujoco, path: Path):
    """The compiled model of the scene in `path` with a second arm, which can touch the first."""
    spec, other = (mujoco.MjSpec.from_file(str(path)) for _ in range(2))
    for geom in spec.geoms:
        if (geom.contype, geom.conaffinity) == _OF_AN_ARM:
            geom.conaffinity |= _OTHER_ARM
    for geom in other.geoms:
        if (geom.contype, geom.conaffinity) == _OF_AN_ARM:
            geom.contype |= _OTHER_ARM
    for name, position in SIDE_CAMERA_M.items():
        camera = spec.camera(name)
        camera.pos, camera.alt.xyaxes = position, SIDE_CAMERA_AXES
    spec.worldbody.add_frame(pos=LEFT_BASE_M).attach_body(other.body("base"), LEFT, "")
    return spec.compile()


class IdleHand:
    """A hand that holds the left leader at home and sways a little; `step` it.

    Attributes:
        joints: The leader's joint angles, rad, float64 (6,).

    Args:
        sways: Whether there is a hand; without, the leader stays where it is.
    """

    def __init__(self, *, sways: bool = True) -> None:
        self.joints = HOME.copy()
        self._sways = sways
        self._time = 0.0
        self._rates = 1.3 + 0.27 * np.arange(len(JOINTS))  # rad/s, all different

    def step(self, dt: float, leader: Drive) -> None:
        """Advance by `dt` seconds; joints that `leader` powers go where its servos want."""
        self._time += dt
        held = HOME + SWAY_RAD * np.sin(self._rates * self._time) if self._sways else self.joints
        goal = np.where(leader.powered, leader.goal, held)
        reach = SPEED * dt
        self.joints = self.joints + np.clip(goal - self.joints, -reach, reach)
