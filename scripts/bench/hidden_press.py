"""The lab's press task with contact hidden: what neither the picture nor the joints tell, only the skin does.

Height: a screen stands between camera and button, so that the picture shows the arm above it and a lamp on its front,
but neither the button nor the place where the pad meets it. Contact: the servos are stiff, their gears have friction,
angles and goals are whole encoder ticks, and nothing but the pad on its spring touches. In this process, in simulated time, seeded. Not a benchmark itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lerobot_ext.virtual import world as lab_world
from lerobot_ext.virtual.referee import LIMIT_N
from lerobot_ext.virtual.render import Cameras
from lerobot_ext.virtual.scripted_operator import TOUCH_N
from lerobot_ext.virtual.skin import Skin
from lerobot_ext.virtual.task import TICK_S, PressTask
from lerobot_ext.virtual.world import GEAR_FRICTION, JOINTS, Drive, World, load_mujoco

FPS = 25  # four of the task's ticks a frame
PICTURE = 64
HEIGHTS_M = (0.015, 0.055)  # the band of force is 8 mm of the pad's spring: a fifth of this range
STIFFER = 40  # times the lab's usual servos
TICK_RAD = 2 * np.pi / 4096
TARE_TICKS = 20
TIME_LIMIT_S = 9.0  # a demonstration takes 4 to 6 s
FORCE_NAMES = [f"skin.m{index}_{axis}" for index in range(5) for axis in "xyz"]

_PER_FRAME = round(1 / FPS / TICK_S)
_SKIN_SEED = 7  # the same skin whoever presses
_SCREEN = ((0.075, 0.002, 0.052), (0.225, -0.13, 0.052))  # half sizes and centre, m
_LAMP = ((0.016, 0.002, 0.016), (0.185, -0.134, 0.06))


def hidden_model():
    """`press.xml` with a screen before the button, a lamp on it, stiff servos and gear friction; compiled."""
    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(Path(lab_world.__file__).with_name("press.xml")))
    for name, (size, position), material in (("screen", _SCREEN, "body"), ("screen_lamp", _LAMP, "lamp")):
        spec.worldbody.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=size,
            pos=position,
            material=material,
            contype=0,
            conaffinity=0,
        )
    model = spec.compile()
    model.actuator_gainprm[:, 0] *= STIFFER
    model.actuator_biasprm[:, 1] *= STIFFER
    model.actuator_biasprm[:, 2] *= np.sqrt(STIFFER)  # damping ratio as before
    for joint in JOINTS:
        model.dof_frictionloss[model.joint(joint).dofadr[0]] = GEAR_FRICTION
    # Only the pad touches: else the finger beside it is stopped by the button at about 3 N, and the joints tell.
    arm = (model.geom_contype == 1) & (np.arange(model.ngeom) != model.geom("pad").id)
    model.geom_contype[arm] = model.geom_conaffinity[arm] = 0
    return model


def whole_ticks(radians: np.ndarray) -> np.ndarray:
    """Angles as an encoder of 4096 ticks a turn gives them, rad."""
    return np.round(np.asarray(radians) / TICK_RAD) * TICK_RAD


@dataclass(frozen=True)
class Frame:
    """What a robot's observation would hold.

    Attributes:
        state: Joint angles in degrees, whole ticks, float32 (6,).
        force: Microtesla of the tared skin, float32 (15,).
        picture: uint8 (PICTURE, PICTURE, 3).
    """

    state: np.ndarray
    force: np.ndarray
    picture: np.ndarray


class HiddenPress:
    """The task, its camera and its skin; `close` it.

    Attributes:
        task: World, operator and referee.
        goals: The follower's goals of this episode, rad, one (6,) a frame.
    """

    def __init__(self, seed: int) -> None:
        self.task = PressTask(seed, world=World(hidden_model()), heights_m=HEIGHTS_M)
        self.goals: list[np.ndarray] = []
        self._cameras = Cameras(self.task.world, PICTURE, PICTURE)
        self._skin = Skin(_SKIN_SEED)
        self._goal = whole_ticks(self.task.world.joints)

    @property
    def leader(self) -> np.ndarray:
        """Where the operator holds the leader, degrees in whole ticks, float32 (6,)."""
        return np.rad2deg(whole_ticks(self.task.leader)).astype(np.float32)

    def start(self, operate: bool) -> None:
        """A new episode at home with another height, and the skin tared; the operator waits for the first frame."""
        self.task.start_episode(operate)
        drive, fields = Drive.at(self._goal), []
        for _ in range(TARE_TICKS):
            self.task.tick(drive, _held(self.task.leader), read_for=0.0)
            self._feel()
            fields.append(self._field)
        self._zero = np.mean(fields, axis=0)
        self.goals = []

    def frame(self, look: bool = True) -> Frame:
        """What there is to see now; without `look` with the last picture."""
        if look:
            self._picture = self._cameras.color("side")
        return Frame(
            np.rad2deg(whole_ticks(self.task.world.joints)).astype(np.float32),
            (self._field - self._zero).astype(np.float32),
            self._picture,
        )

    @property
    def decided(self) -> bool:
        """Whether the verdict will not change for the better any more: pressed well and home, or pressed too hard."""
        verdict = self.task.verdict()
        return verdict.success or verdict.peak_force_n > LIMIT_N

    def advance(self, goal: np.ndarray) -> None:
        """One frame in which the follower goes to `goal`, degrees (6,)."""
        self._goal = whole_ticks(np.deg2rad(np.asarray(goal, float)))
        self.goals.append(self._goal)
        drive, leader = Drive.at(self._goal), _held(self.task.leader)
        for _ in range(_PER_FRAME):
            self.task.tick(drive, leader, read_for=1.0)
            self._feel()

    def close(self) -> None:
        """Give the renderer back."""
        self._cameras.close()

    def _feel(self) -> None:
        self._field = self._skin.step(TICK_S, self.task.world.force)[:, 1:].ravel()


def demonstrate(rig: HiddenPress) -> Iterator[tuple[Frame, np.ndarray]]:
    """One press of the operator, who feels the force: each frame and the goal it was given, degrees (6,)."""
    rig.start(operate=True)
    moved = False
    while not moved or rig.task.operator_doing != "home":
        frame, goal = rig.frame(), rig.leader
        yield frame, goal
        rig.advance(goal)
        moved = moved or rig.task.operator_doing != "home"


@dataclass(frozen=True)
class Replay:
    """What a world said while it was driven through the goals of an episode.

    Attributes:
        ticks: Of the encoders at each frame, int (n, 6).
        force: Microtesla of the tared skin at each frame, float64 (n, 15).
        normal_n: Force on the pad at each frame, N, float64 (n,).
        pictures: What the camera saw at each frame, uint8 (n, PICTURE, PICTURE, 3).
    """

    ticks: np.ndarray
    force: np.ndarray
    normal_n: np.ndarray
    pictures: np.ndarray

    @property
    def touched(self) -> np.ndarray:
        """Whether the operator would feel it, bool (n,)."""
        return self.normal_n > TOUCH_N


def replay(world: World, goals: list[np.ndarray], height_m: float | None) -> Replay:
    """Drive `world`, which stands at home, through `goals` (rad, one a frame), whatever it touches.

    Args:
        world: New.
        goals: As `HiddenPress.goals`.
        height_m: The button's; None: there is none.
    """
    world.set_block_height(-1.0 if height_m is None else height_m)
    world.drive(Drive.at(world.joints))
    skin, cameras = Skin(_SKIN_SEED), Cameras(world, PICTURE, PICTURE)

    def tick() -> np.ndarray:
        world.step(round(TICK_S / world.dt))
        return skin.step(TICK_S, world.force)[:, 1:].ravel()

    zero = np.mean([tick() for _ in range(TARE_TICKS)], axis=0)
    field, rows = zero, []
    for goal in goals:
        ticks = np.round(world.joints / TICK_RAD).astype(int)
        rows.append((ticks, field - zero, world.normal_force, cameras.color("side")))
        world.drive(Drive.at(goal))
        for _ in range(_PER_FRAME):
            field = tick()
    cameras.close()
    return Replay(*(np.array(column) for column in zip(*rows, strict=True)))


def _held(joints: np.ndarray) -> Drive:
    """The leader in the operator's hand: no power."""
    return Drive(joints, np.zeros(6, bool), np.ones(6), np.ones(6))
