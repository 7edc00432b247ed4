"""A robot in this process that notes when which position was sent, LeRobot's loop around it, and figures of that.

It stands for an arm and its cameras where a benchmark is about the loop: its cameras hold frames that were made
beforehand, of which an observation gets copies, and its bus takes a given time. Real drivers are measured elsewhere.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common  # noqa: F401  (makes the repository importable)
import numpy as np
from lerobot.robots import Robot, RobotConfig

LATE = 0.5  # of a period


@RobotConfig.register_subclass("bench_arm")
@dataclass
class BenchArmConfig(RobotConfig):
    """Its measures.

    Attributes:
        joints: How many.
        pictures: Names of its cameras.
        height: Of a picture.
        width: Of a picture.
        frames: Made of each camera.
        bus_s: What reading the joints takes.
        seed: Of the frames.
    """

    joints: int = 6
    pictures: tuple[str, ...] = ()
    height: int = 480
    width: int = 640
    frames: int = 8
    bus_s: float = 0.0
    seed: int = 0


class BenchArm(Robot):
    """A robot that is where it was told to be.

    `get_observation` copies a frame of each camera. LeRobot's cameras read in threads of their own and hand out the
    newest frame uncopied; the copy stands for what such a thread does with the interpreter and the memory.

    Attributes:
        sent: (`perf_counter` when `send_action` was called, positions) of each.
        looked: `perf_counter` when `get_observation` was called.
    """

    config_class = BenchArmConfig
    name = "bench_arm"

    def __init__(self, config: BenchArmConfig) -> None:
        config.calibration_dir = config.calibration_dir or Path(tempfile.gettempdir()) / "bench_arm"
        super().__init__(config)
        self.config = config
        self.entries = [f"joint{index}.pos" for index in range(config.joints)]
        self.sent: list[tuple[float, tuple[float, ...]]] = []
        self.looked: list[float] = []
        rng = np.random.default_rng(config.seed)
        size = (config.frames, config.height, config.width, 3)
        self._frames = {name: rng.integers(0, 256, size, np.uint8) for name in config.pictures}
        self._turns = itertools.count()
        self._at = (0.0,) * config.joints
        self._connected = False
        self._enough: tuple[float, threading.Event] | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joints and cameras."""
        return self.action_features | dict.fromkeys(
            self.config.pictures, (self.config.height, self.config.width, 3)
        )

    @property
    def action_features(self) -> dict[str, Any]:
        """Joints."""
        return dict.fromkeys(self.entries, float)

    @property
    def is_connected(self) -> bool:
        """As it was told."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """It needs none."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """There is nothing to open."""
        self._connected = True

    def calibrate(self) -> None:
        """It needs none."""

    def configure(self) -> None:
        """There is nothing to set."""

    def disconnect(self) -> None:
        """There is nothing to close."""
        self._connected = False

    def run_for(self, seconds: float, end: threading.Event) -> None:
        """Set the event so many seconds after the first position was sent; the first chunk may take its time."""
        self._enough = (seconds, end)

    def get_observation(self) -> dict[str, Any]:
        """Where it was told to be, and a copy of the next frame of each camera."""
        self.looked.append(time.perf_counter())
        if self.config.bus_s:
            time.sleep(self.config.bus_s)
        turn = next(self._turns) % self.config.frames
        seen: dict[str, Any] = dict(zip(self.entries, self._at, strict=True))
        return seen | {name: frames[turn].copy() for name, frames in self._frames.items()}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Note it."""
        now = time.perf_counter()
        self._at = tuple(action[name] for name in self.entries)
        self.sent.append((now, self._at))
        if self._enough is not None and now - self.sent[0][0] > self._enough[0]:
            self._enough[1].set()
        return action


def rollout_context(robot: Robot, engine: Any, *, fps: float, seconds: float, multiplier: int = 1) -> Any:
    """LeRobot's context for its strategy `base`, around an engine that was made by hand.

    Args:
        robot: Connected.
        engine: An inference engine.
        fps: Actions a second that the engine is asked for.
        seconds: How long it runs.
        multiplier: LeRobot's `interpolation_multiplier`.
    """
    from lerobot.processor import make_default_processors
    from lerobot.rollout import context
    from lerobot.rollout.robot_wrapper import ThreadSafeRobot
    from lerobot.utils.feature_utils import hw_to_dataset_features

    cfg = SimpleNamespace(
        fps=fps,
        duration=seconds,
        interpolation_multiplier=multiplier,
        use_torch_compile=False,
        display_data=False,
        return_to_initial_position=False,
    )
    features = hw_to_dataset_features(robot.observation_features, "observation")
    return context.RolloutContext(
        runtime=context.RuntimeContext(cfg=cfg, shutdown_event=threading.Event()),
        hardware=context.HardwareContext(robot_wrapper=ThreadSafeRobot(robot), teleop=None),
        policy=context.PolicyContext(policy=None, preprocessor=None, postprocessor=None, inference=engine),
        processors=context.ProcessorContext(*make_default_processors()),
        data=context.DatasetContext(
            dataset=None,
            dataset_features=features | hw_to_dataset_features(robot.action_features, "action"),
            hw_features=features,
            ordered_action_keys=list(robot.action_features),
        ),
    )


def run(ctx: Any) -> Any:
    """One rollout with LeRobot's strategy `base`: its own loop, or ours where the engine has two rates.

    Returns:
        What our loop counted itself, by its deadlines (`Tally`); None of LeRobot's loop, which has none.
    """
    from lerobot.rollout.configs import BaseStrategyConfig
    from lerobot.rollout.strategies.base import BaseStrategy

    strategy, listener = BaseStrategy(BaseStrategyConfig()), _Listener()
    log = logging.getLogger("lerobot_ext.rollout.loop")
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    log.propagate = False
    strategy.setup(ctx)
    try:
        strategy.run(ctx)
    finally:
        strategy.teardown(ctx)
        log.removeHandler(listener)
    return listener.tally


class _Listener(logging.Handler):
    """Takes what our loop says at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.tally: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO and record.args and hasattr(record.args[0], "late_share"):
            self.tally = record.args[0]


@dataclass(frozen=True)
class Sends:
    """What reached the arm, from the end of its first seconds on.

    Attributes:
        times: (n,) seconds.
        positions: (n, joints).
        hz: How often a position was due.
        looks: (n - 1,) observations between one and the next; above 1, there was nothing to send meanwhile.
    """

    times: np.ndarray
    positions: np.ndarray
    hz: float
    looks: np.ndarray

    @classmethod
    def of(cls, robot: BenchArm, hz: float, skip_s: float) -> Sends:
        """Those that a robot noted, without the first seconds.

        Raises:
            RuntimeError: If there are next to none.
        """
        sent = [one for one in robot.sent if one[0] >= robot.sent[0][0] + skip_s] if robot.sent else []
        if len(sent) < 10:
            raise RuntimeError(f"only {len(sent)} positions were sent in the time that counts; see the log.")
        times = np.array([at for at, _ in sent])
        looks = np.diff(np.searchsorted(robot.looked, times))
        return cls(times, np.array([where for _, where in sent]), hz, looks)

    @property
    def intervals(self) -> np.ndarray:
        """(n - 1,) seconds."""
        return np.diff(self.times)

    @property
    def rate(self) -> float:
        """Positions a second."""
        return float(1 / self.intervals.mean())

    @property
    def late(self) -> float:
        """Share of sends that came more than half a period later after the last one than they should have.

        Pauses in which there was nothing to send do not count, see `starved`.
        """
        return float(np.mean((self.intervals > (1 + LATE) / self.hz) & (self.looks <= 1)))

    @property
    def starved(self) -> float:
        """Share of observations after which there was nothing to send."""
        nothing = np.maximum(self.looks - 1, 0).sum()
        return float(nothing / (len(self.times) + nothing))

    def interval_errors(self) -> np.ndarray:
        """(m,) seconds: how far each interval is from the period, those left out in which there was nothing to send."""
        return np.abs(self.intervals[self.looks <= 1] - 1 / self.hz)

    def steps(self) -> np.ndarray:
        """(n - 1,): the largest change of a joint's commanded position from one send to the next."""
        return np.abs(np.diff(self.positions, axis=0)).max(1)

    def jerks(self) -> np.ndarray:
        """(n - 3,): the largest third difference of a joint's commanded position, a cubic second, at the nominal rate."""
        return np.abs(np.diff(self.positions, n=3, axis=0)).max(1) * self.hz**3
