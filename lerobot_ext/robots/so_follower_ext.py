"""SO-100 and SO-101 followers with cameras and force sensors, on LeRobot's own follower.

What an observation is made of and how the arm is opened and released lives here; its cameras and sensors are a
`device_set`. What happens when something fails is told elsewhere: on the bus in `patient_bus`, with the port in
`reopening`, with a camera or sensor in `devices` and `waiting`; the errors of opening the arm are in `arm_errors`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots.so_follower.so_follower import SOFollower
from lerobot.utils.constants import HF_LEROBOT_CALIBRATION, ROBOTS
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from numpy.typing import NDArray

from lerobot_ext import serial_ports
from lerobot_ext.features import VectorFeature
from lerobot_ext.robots.arm_errors import connect_bus, not_calibrated
from lerobot_ext.robots.config_so_follower_ext import (
    SO100FollowerExtConfig,
    SO101FollowerExtConfig,
    SOFollowerExtConfig,
)
from lerobot_ext.robots.device_set import DeviceSet, attempt
from lerobot_ext.robots.observation_report import ObservationReport
from lerobot_ext.robots.patient_bus import NoAnswerError, PatientBus, PortLostError
from lerobot_ext.robots.reopening import close, no_answer, reopen, restore
from lerobot_ext.robots.waiting import interruptible, patiently
from lerobot_ext.sensors import ForceSensor, make_force_sensors_from_configs

logger = logging.getLogger(__name__)

REOPENED = (
    "%s: %s. Its port was opened again (%s) and all servos answer after %.1f s; %s. If this comes again, look at the "
    "cables and the power supply."
)
POWER_WAS_ON = "they kept their power and hold where they were told to"
POWER_WAS_OFF = "%s had lost power and hold where they are now"
LEFT_ON = (
    "%s: its port is gone, so its torque could not be switched off; hold the arm and switch its power off."
)


class SOFollowerExt(SOFollower):
    """LeRobot's SO follower whose observation also has `force`: all sensors' samples, one after the other.

    Unless `calibration_dir` says otherwise, the calibration is the file that LeRobot's own SO follower of the
    same id uses, so an arm that is calibrated is calibrated for both.
    """

    config_class = SOFollowerExtConfig
    config: SOFollowerExtConfig
    label = "arm"
    """How messages call it; a robot of two arms says which."""

    def __init__(self, config: SOFollowerExtConfig):
        """Prepare arm, cameras and sensors; opens nothing."""
        if config.calibration_dir is None:
            config = replace(config, calibration_dir=HF_LEROBOT_CALIBRATION / ROBOTS / SOFollower.name)
        super().__init__(config)
        self.bus = PatientBus.like(self.bus, config.num_read_retries)
        self.force_sensors: dict[str, ForceSensor] = make_force_sensors_from_configs(config.force_sensors)
        self._serial_number: str | None = None
        self._opened = False
        self._devices = DeviceSet(self.cameras, self.force_sensors)
        self._forget()

    def _forget(self) -> None:
        """Start counting from nothing."""
        self.bus.retries = self._reopened = 0
        self._report: ObservationReport | None = None
        self._devices.start(self.config.on_error, self.config.warn_age_ms)

    @property
    def last_report(self) -> ObservationReport | None:
        """Ages and counts that belong to the last observation; None before the first one since `connect`."""
        return self._report

    def feature_metadata(self) -> dict[str, dict[str, Any]]:
        """What the devices tell about the features of a dataset; known once connected.

        Returns:
            By feature (`observation.images.<camera>`, `observation.images.<camera>_depth`, `observation.force`):
            `{"camera": {...}}` or `{"sensors": {<sensor>: {...}}}`, as JSON can hold it. A device that tells nothing
            is not in it.
        """
        return self._devices.metadata()

    @property
    def _force_ft(self) -> dict[str, VectorFeature]:
        return self._devices.force_features

    @cached_property
    def observation_features(self) -> dict[str, type | tuple]:
        """LeRobot's features, and `force` when there are sensors."""
        return {**self._motors_ft, **self._cameras_ft, **self._force_ft}

    @property
    def is_connected(self) -> bool:
        """Whether there is something to disconnect.

        Also when the arm's port or a camera has been lost: LeRobot disconnects at a run's end only what says that it is
        connected, and what is left has to be let go.
        """
        return self._opened

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Open arm, cameras and sensors, and tare the sensors; when anything fails, release what was opened.

        Args:
            calibrate: Whether to ask for a calibration when motors and file disagree.

        Raises:
            ConnectionError: One sentence on what is not there and what to do.
        """
        try:
            self._opened = True
            self._forget()
            connect_bus(self.bus)
            self._serial_number = serial_ports.serial_number_of(self.bus.port)
            if calibrate and not self.is_calibrated:
                self._calibrate()
            self._devices.connect()
            self.configure()
            self._devices.tare_for_now()
            self._forget()
        except BaseException:
            self.release()
            raise
        logger.info("%s connected.", self)

    def _calibrate(self) -> None:
        logger.info("%s: the motors' calibration is not that of %s.", self, self.calibration_fpath)
        try:
            self.calibrate()
        except EOFError as error:
            raise not_calibrated(self) from error

    def tare(self, num_samples: int | None = None) -> dict[str, NDArray[np.float32]]:
        """Take what the sensors feel now for zero, all at the same time.

        Args:
            num_samples: How many samples to average; each sensor's configuration says if None.

        Returns:
            The new baseline of each sensor, by its name.

        Raises:
            TareRefused: Something touches a sensor; its old baseline stays.
            ConnectionError: A sensor gave too few samples.
        """
        return self._devices.tare(num_samples)

    @check_if_not_connected
    def get_observation(self) -> RobotObservation:
        """Joints, pictures and force of now; `last_report` then tells how old they are.

        The joints are read first, and at once after them the newest that cameras and sensors have, so that what is
        shown is at most one frame and the camera's own delay older than the joints. A read of the arm is tried again,
        and its port is opened again once; a device with `on_error: skip_frame` is waited for, and then everything is
        read anew.

        Returns:
            `<motor>.pos` floats, `<camera>` (H, W, 3) uint8, `<camera>_depth` (H, W, 1), `force` (n,) float32.

        Raises:
            ConnectionError: The arm does not answer, or a device is lost or shows nothing new enough.
            KeyboardInterrupt: On Ctrl-C while something is waited for.
        """
        return patiently(self._observe, self.config.skip_limit_s)

    def _observe(self) -> RobotObservation:
        observation: RobotObservation = self.from_arm(self.ask_positions)
        shown, ages_ms = self._devices.read(self.bus.answered_s)
        self._report = ObservationReport(ages_ms, self.counts() | self._devices.counts())
        self._report.log()
        return observation | shown

    def ask_positions(self) -> dict[str, float]:
        """Read the joints alone; as an instruction for `from_arm`, which sees to what it raises."""
        positions = self.bus.sync_read("Present_Position", num_retry=self.config.num_read_retries)
        return {f"{motor}.pos": value for motor, value in positions.items()}

    def counts(self) -> dict[str, int]:
        """What was tried again since `connect`: `arm.retries` and `arm.reopened`."""
        return {"arm.retries": self.bus.retries, "arm.reopened": self._reopened}

    @check_if_not_connected
    def send_action(self, action: RobotAction) -> RobotAction:
        """As LeRobot's; the arm's port is opened again, once, when it has failed.

        Returns:
            The action that was sent, clipped if `max_relative_target` says so.

        Raises:
            ConnectionError: The arm does not answer.
        """
        return self.from_arm(lambda: SOFollower.send_action(self, action))

    def from_arm(self, instruction: Callable[[], Any]) -> Any:
        """Carry out an instruction; when it fails, look again whether the arm answers, then open its port again.

        Args:
            instruction: Called up to three times; raises NoAnswerError or PortLostError when it fails.

        Raises:
            ConnectionError: The arm does not answer.
        """
        try:
            return instruction()
        except NoAnswerError as error:
            failure: ConnectionError = error
            # On a bad line luck can run out for one read of an arm that is well: that needs no new port.
            if all(self.bus.ping(id_) is not None for id_ in error.ids):
                try:
                    return instruction()
                except (NoAnswerError, PortLostError) as again:
                    failure = again
        except PortLostError as error:
            failure = error
        try:
            self._reopen(failure)
            return instruction()
        except NoAnswerError as error:
            raise ConnectionError(no_answer(self.bus, error.ids)) from error

    def _reopen(self, failure: ConnectionError) -> None:
        start_s = time.monotonic()
        with interruptible():
            reopen(self.bus, self._serial_number, self.config.reopen_s, failure)
        lost = restore(self.bus, self.configure)
        self._reopened += 1
        state = POWER_WAS_OFF % ", ".join(lost) if lost else POWER_WAS_ON
        logger.warning(REOPENED, self.label, failure, self.bus.port, time.monotonic() - start_s, state)

    def disconnect(self) -> None:
        """Release everything that is open; a device that fails at it does not keep the others from it."""
        self.release()
        logger.info("%s disconnected.", self)

    def release(self) -> None:
        """As `disconnect`, without a word about it."""
        self._opened = False
        self._devices.release()
        if self.bus.is_connected:
            attempt(f"{self.label} (its torque may still be on)", self._release_bus)
        elif self.bus.powered and self.config.disable_torque_on_disconnect:
            logger.warning(LEFT_ON, self.label)
        self.bus.powered = None

    def _release_bus(self) -> None:
        """Switch the torque of every servo off, also when one of them does not answer; then close the port."""
        silent = []
        try:
            for motor in self.bus.motors if self.config.disable_torque_on_disconnect else ():
                try:
                    self.bus.disable_torque(motor, num_retry=5)
                except NoAnswerError:
                    silent.append(motor)
        finally:
            close(self.bus)
        if silent:
            raise ConnectionError(f"{', '.join(silent)} did not answer; switch the arm's power off.")


class SO100FollowerExt(SOFollowerExt):
    """An SO-100 follower with force sensors."""

    config_class = SO100FollowerExtConfig
    name = "so100_follower_ext"


class SO101FollowerExt(SOFollowerExt):
    """An SO-101 follower with force sensors."""

    config_class = SO101FollowerExtConfig
    name = "so101_follower_ext"
