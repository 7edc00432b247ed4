"""SO-100 and SO-101 followers with cameras and force sensors, on LeRobot's own follower.

What an observation is made of and how the devices are opened and released lives here; the errors of opening the
arm are in `arm_errors`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np
from lerobot.cameras import Camera
from lerobot.lerobot_types import RobotObservation
from lerobot.robots.so_follower.so_follower import SOFollower
from lerobot.utils.constants import HF_LEROBOT_CALIBRATION, ROBOTS
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from numpy.typing import NDArray

from lerobot_ext.features import FORCE, VectorFeature
from lerobot_ext.robots.arm_errors import connect_bus, not_calibrated
from lerobot_ext.robots.config_so_follower_ext import (
    SO100FollowerExtConfig,
    SO101FollowerExtConfig,
    SOFollowerExtConfig,
)
from lerobot_ext.robots.patient_bus import PatientBus
from lerobot_ext.sensors import ForceSensor, make_force_sensors_from_configs

logger = logging.getLogger(__name__)


class SOFollowerExt(SOFollower):
    """LeRobot's SO follower whose observation also has `force`: all sensors' samples, one after the other.

    Unless `calibration_dir` says otherwise, the calibration is the file that LeRobot's own SO follower of the
    same id uses, so an arm that is calibrated is calibrated for both.
    """

    config_class = SOFollowerExtConfig
    config: SOFollowerExtConfig

    def __init__(self, config: SOFollowerExtConfig):
        """Prepare arm, cameras and sensors; opens nothing."""
        if config.calibration_dir is None:
            config = replace(config, calibration_dir=HF_LEROBOT_CALIBRATION / ROBOTS / SOFollower.name)
        super().__init__(config)
        self.bus = PatientBus.like(self.bus, config.num_read_retries)
        self.force_sensors: dict[str, ForceSensor] = make_force_sensors_from_configs(config.force_sensors)

    @property
    def _force_ft(self) -> dict[str, VectorFeature]:
        names = [f"{name}.{ch}" for name, sensor in self.force_sensors.items() for ch in sensor.spec.channels]
        return {FORCE: VectorFeature(names)} if names else {}

    @cached_property
    def observation_features(self) -> dict[str, type | tuple]:
        """LeRobot's features, and `force` when there are sensors."""
        return {**self._motors_ft, **self._cameras_ft, **self._force_ft}

    @property
    def is_connected(self) -> bool:
        """Whether arm, cameras and sensors all are."""
        return super().is_connected and all(sensor.is_connected for sensor in self.force_sensors.values())

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Open arm, cameras and sensors, and tare the sensors; when anything fails, release what was opened.

        Args:
            calibrate: Whether to ask for a calibration when motors and file disagree.

        Raises:
            ConnectionError: One sentence on what is not there and what to do.
        """
        try:
            connect_bus(self.bus)
            if calibrate and not self.is_calibrated:
                self._calibrate()
            for name, camera in self.cameras.items():
                _connect_camera(name, camera)
            for sensor in self.force_sensors.values():
                sensor.connect()
            self.configure()
            # For whoever reads before an episode starts, or never starts one: teleoperation, the live view.
            self.tare()
        except BaseException:
            self._release()
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
            ConnectionError: A sensor gave too few samples.
        """
        if not self.force_sensors:
            return {}
        with ThreadPoolExecutor(len(self.force_sensors)) as pool:
            jobs = {
                name: pool.submit(sensor.tare, num_samples) for name, sensor in self.force_sensors.items()
            }
            return {name: job.result() for name, job in jobs.items()}

    @check_if_not_connected
    def get_observation(self) -> RobotObservation:
        """Joints (retried), pictures and force of now.

        Returns:
            `<motor>.pos` floats, `<camera>` (H, W, 3) uint8, `<camera>_depth` (H, W, 1), `force` (n,) float32.

        Raises:
            ConnectionError: The arm did not answer or a device is lost.
            TimeoutError: A camera's or a sensor's newest data is too old.
        """
        positions = self.bus.sync_read("Present_Position", num_retry=self.config.num_read_retries)
        observation: RobotObservation = {f"{motor}.pos": value for motor, value in positions.items()}
        for name, camera in self.cameras.items():
            observation.update(_pictures(name, camera))
        if self.force_sensors:
            samples = [sensor.read_latest() for sensor in self.force_sensors.values()]
            observation[FORCE] = np.concatenate(samples, dtype=np.float32)
        return observation

    def disconnect(self) -> None:
        """Release everything that is open; a device that fails at it does not keep the others from it."""
        self._release()
        logger.info("%s disconnected.", self)

    def _release(self) -> None:
        for name, sensor in self.force_sensors.items():
            _try(f"sensor '{name}'", sensor.disconnect)
        for name, camera in self.cameras.items():
            if camera.is_connected:
                _try(f"camera '{name}'", camera.disconnect)
        if self.bus.is_connected:
            _try("arm (its torque may still be on)", self._release_bus)

    def _release_bus(self) -> None:
        try:
            self.bus.disconnect(self.config.disable_torque_on_disconnect)
        finally:
            if self.bus.is_connected:
                self.bus.port_handler.closePort()


class SO100FollowerExt(SOFollowerExt):
    """An SO-100 follower with force sensors."""

    config_class = SO100FollowerExtConfig
    name = "so100_follower_ext"


class SO101FollowerExt(SOFollowerExt):
    """An SO-101 follower with force sensors."""

    config_class = SO101FollowerExtConfig
    name = "so101_follower_ext"


def _connect_camera(name: str, camera: Camera) -> None:
    try:
        camera.connect()
    except (ConnectionError, TimeoutError):
        raise
    except Exception as error:  # LeRobot's drivers raise RuntimeError, too
        raise ConnectionError(f"camera '{name}': {' '.join(str(error).split())}") from error


def _pictures(name: str, camera: Camera) -> RobotObservation:
    """Colour and depth of one camera, of one instant if it can."""
    wants_rgb, wants_depth = getattr(camera, "use_rgb", True), getattr(camera, "use_depth", False)
    if hasattr(camera, "read_latest_combined"):
        color, depth = camera.read_latest_combined()
    else:
        color = camera.read_latest() if wants_rgb else None
        depth = camera.read_latest_depth() if wants_depth else None
    pictures: RobotObservation = {}
    if wants_rgb:
        pictures[name] = color
    if wants_depth:
        pictures[f"{name}_depth"] = depth
    return pictures


def _try(what: str, release: Callable[[], None]) -> None:
    try:
        release()
    except Exception as error:
        logger.warning("%s: releasing it failed: %s", what, " ".join(str(error).split()))
