"""Two SO-100 or SO-101 followers with cameras and force sensors as one robot, in the shape of LeRobot's `bi_so_follower`.

Each arm is an `SOFollowerExt` without devices: its bus, its retries and its port that is opened again are its own.
Here is what two make together: names with prefixes, one observation of one instant, and what the one does while the
other has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import numpy as np
from lerobot.cameras import make_cameras_from_configs
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots import Robot
from lerobot.robots.so_follower.so_follower import SOFollower
from lerobot.utils.bimanual import BimanualMixin
from lerobot.utils.constants import HF_LEROBOT_CALIBRATION, ROBOTS
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from numpy.typing import NDArray

from lerobot_ext.robots.config_bi_so_follower_ext import (
    SIDES,
    BiSO100FollowerExtConfig,
    BiSO101FollowerExtConfig,
    BiSOFollowerExtConfig,
)
from lerobot_ext.robots.device_set import DeviceSet
from lerobot_ext.robots.observation_report import ObservationReport
from lerobot_ext.robots.servo_errors import ErrorWatch
from lerobot_ext.robots.so_follower_ext import SO100FollowerExt, SO101FollowerExt, SOFollowerExt
from lerobot_ext.robots.waiting import patiently
from lerobot_ext.sensors import ForceSensor, make_force_sensors_from_configs

logger = logging.getLogger(__name__)


class BiSOFollowerExt(BimanualMixin, Robot):
    """Two arms, `left_arm` and `right_arm`; whatever belongs to one has its prefix.

    `cameras` and `force_sensors` hold both arms' and the top's, by the names that they have in an observation.
    """

    config_class = BiSOFollowerExtConfig
    config: BiSOFollowerExtConfig
    arm_class: type[SOFollowerExt]

    def __init__(self, config: BiSOFollowerExtConfig):
        """Prepare arms, cameras and sensors; opens nothing."""
        if config.calibration_dir is None:  # where LeRobot's own bi_so_follower has its arms' files
            config = replace(config, calibration_dir=HF_LEROBOT_CALIBRATION / ROBOTS / SOFollower.name)
        super().__init__(config)
        self.config = config
        self.left_arm, self.right_arm = (self._make_arm(side) for side in SIDES)
        self.cameras = make_cameras_from_configs(config.all_of("cameras"))
        self.force_sensors: dict[str, ForceSensor] = make_force_sensors_from_configs(
            config.all_of("force_sensors")
        )
        self._devices = DeviceSet(self.cameras, self.force_sensors)
        self._report: ObservationReport | None = None
        self._beside: ThreadPoolExecutor | None = None  # asks the right arm while the left one is asked

    def _make_arm(self, side: str) -> SOFollowerExt:
        section = self.config.arms[side]
        given = {each.name: getattr(section, each.name) for each in fields(section)}
        # Its devices are the robot's, which reads them once both arms are read.
        for what in ("cameras", "force_sensors", "on_error", "warn_age_ms"):
            given[what] = {}
        id_ = f"{self.config.id}_{side}" if self.config.id else None
        arm = self.arm_class(
            self.arm_class.config_class(id=id_, calibration_dir=self.config.calibration_dir, **given)
        )
        arm.label = f"{side} arm"
        arm.bus.errors = ErrorWatch({motor.id: f"{side} {name}" for name, motor in arm.bus.motors.items()})
        return arm

    @property
    def arms(self) -> dict[str, SOFollowerExt]:
        """Both, by side, the left one first."""
        return {side: getattr(self, f"{side}_arm") for side in SIDES}

    @property
    def last_report(self) -> ObservationReport | None:
        """Ages and counts that belong to the last observation; None before the first one since `connect`."""
        return self._report

    def feature_metadata(self) -> dict[str, dict[str, Any]]:
        """As one arm's: by feature, what the devices tell."""
        return self._devices.metadata()

    @cached_property
    def action_features(self) -> dict[str, type]:
        """`left_<motor>.pos`, then `right_<motor>.pos`."""
        return _prefixed("left", self.left_arm.action_features) | _prefixed(
            "right", self.right_arm.action_features
        )

    @cached_property
    def observation_features(self) -> dict[str, type | tuple]:
        """The joints, the pictures, and `force` when there are sensors."""
        pictures = SOFollower._cameras_ft.fget(self)  # as LeRobot's arm describes its `cameras`
        return {**self.action_features, **pictures, **self._devices.force_features}

    @property
    def is_connected(self) -> bool:
        """Whether there is something to disconnect.

        Also when an arm or a camera has been lost: LeRobot disconnects at a run's end only what says that it is
        connected, and the other arm has to be let go.
        """
        return self._beside is not None

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Open both arms, cameras and sensors, and tare the sensors; when anything fails, release what was opened.

        Args:
            calibrate: Whether to ask for a calibration when motors and file disagree.

        Raises:
            ConnectionError: One sentence on what is not there and what to do.
        """
        try:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="right_arm")
            for side, arm in self.arms.items():
                with _named(side):
                    arm.connect(calibrate)
            self._devices.connect()
            self._devices.tare_for_now()
            self._devices.start(self.config.all_of("on_error"), self.config.all_of("warn_age_ms"))
            self._report = None
        except BaseException:
            self._release()
            raise
        logger.info("%s connected.", self)

    def tare(self, num_samples: int | None = None) -> dict[str, NDArray[np.float32]]:
        """As one arm's: take what all sensors feel now for zero."""
        return self._devices.tare(num_samples)

    def setup_motors(self) -> None:
        """As LeRobot's, one arm after the other; says which."""
        for side, arm in self.arms.items():
            logger.info("The %s arm, on %s:", side, arm.config.port)
            arm.setup_motors()

    def calibrate(self) -> None:
        """As LeRobot's, one arm after the other; says which."""
        for side, arm in self.arms.items():
            logger.info("The %s arm, on %s:", side, arm.config.port)
            arm.calibrate()

    @check_if_not_connected
    def get_observation(self) -> RobotObservation:
        """Joints of both arms, pictures and force of now; `last_report` then tells how old they are.

        Both arms are read at the same time, and the newest of the devices at once after them. While one arm's port is
        opened again nothing is sent to the other, which holds; then both are read anew.

        Returns:
            `left_<motor>.pos` and `right_<motor>.pos` floats, pictures and `force` as one arm's.

        Raises:
            ConnectionError: An arm does not answer, or a device is lost or shows nothing new enough.
            KeyboardInterrupt: On Ctrl-C while something is waited for.
        """
        return patiently(self._observe, self.config.skip_limit_s)

    def _observe(self) -> RobotObservation:
        observation: RobotObservation = self._read_joints()
        joints_s = np.mean([arm.bus.answered_s for arm in self.arms.values()])
        shown, ages_ms = self._devices.read(float(joints_s))
        self._report = ObservationReport(ages_ms, self._arm_counts() | self._devices.counts())
        self._report.log()
        return observation | shown

    def _arm_counts(self) -> dict[str, int]:
        return _prefixed("left", self.left_arm.counts()) | _prefixed("right", self.right_arm.counts())

    def _read_joints(self) -> dict[str, float]:
        """Both arms at the same time, which takes as long as one."""
        while True:
            reopened = self._arm_counts()
            # Only the question is asked beside this thread: what has to be waited for is waited for here, where
            # Ctrl-C is heard.
            asked = self._beside.submit(self.right_arm.ask_positions)
            try:
                with _named("left"):
                    left = self.left_arm.from_arm(self.left_arm.ask_positions)
            finally:
                wait([asked])
            with _named("right"):
                right = self._carry_on(asked)
            now = self._arm_counts()
            # What the one said before the other was waited for is old by now.
            if all(now[name] == reopened[name] for name in now if name.endswith("reopened")):
                return _prefixed("left", left) | _prefixed("right", right)

    def _carry_on(self, asked: Future[dict[str, float]]) -> dict[str, float]:
        """The right arm's answer; if it has not answered, it is asked on as any arm."""
        answers = chain([asked.result], repeat(self.right_arm.ask_positions))
        return self.right_arm.from_arm(lambda: next(answers)())

    @check_if_not_connected
    def send_action(self, action: RobotAction) -> RobotAction:
        """Send each arm its part; entries of neither arm are left out.

        An arm whose port fails at this is waited for as in an observation. The other one has its part already if it
        is the left one, and holds there: the two are never more than one action apart.

        Returns:
            The action that was sent, clipped if an arm's `max_relative_target` says so.

        Raises:
            ConnectionError: An arm does not answer.
        """
        sent: RobotAction = {}
        for side, arm in self.arms.items():
            prefix = f"{side}_"
            part = {
                name.removeprefix(prefix): value for name, value in action.items() if name.startswith(prefix)
            }
            if part:
                with _named(side):
                    sent |= _prefixed(side, arm.send_action(part))
        return sent

    def disconnect(self) -> None:
        """Release everything that is open; what fails at it does not keep the others from it."""
        self._release()
        logger.info("%s disconnected.", self)

    def _release(self) -> None:
        if self._beside is not None:
            self._beside.shutdown()
            self._beside = None
        self._devices.release()
        for arm in self.arms.values():
            arm.release()


def _prefixed(side: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{side}_{name}": value for name, value in values.items()}


@contextmanager
def _named(side: str) -> Iterator[None]:
    """Let the errors of an arm, most of which begin with "arm", say which."""
    try:
        yield
    except ConnectionError as error:
        text = str(error)
        raise ConnectionError(f"{side} {text if text.startswith('arm') else f'arm: {text}'}") from error


class BiSO100FollowerExt(BiSOFollowerExt):
    """Two SO-100 followers."""

    config_class = BiSO100FollowerExtConfig
    name = "bi_so100_follower_ext"
    arm_class = SO100FollowerExt


class BiSO101FollowerExt(BiSOFollowerExt):
    """Two SO-101 followers."""

    config_class = BiSO101FollowerExtConfig
    name = "bi_so101_follower_ext"
    arm_class = SO101FollowerExt
