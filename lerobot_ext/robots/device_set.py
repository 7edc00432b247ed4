"""The cameras and force sensors of one robot: opened, tared, read after the joints, and released together.

What a single one does is in `devices`; how its failure is waited for, in `waiting`. The arms are the robot's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from lerobot.cameras import Camera
from lerobot.utils.constants import OBS_IMAGES
from numpy.typing import NDArray

from lerobot_ext.features import FORCE, OBS_FORCE, VectorFeature
from lerobot_ext.robots.devices import STOP, Device
from lerobot_ext.sensors import ForceSensor
from lerobot_ext.sensors.zero import TareRefused

logger = logging.getLogger(__name__)

SENSOR_WARN_MS = 1000 / 30  # a sensor has no frames of its own: one of LeRobot's usual recordings


class DeviceSet:
    """A robot's cameras and sensors.

    Args:
        cameras: By name; the robot's own dict, read when they are opened.
        sensors: By name, likewise; the order is that of the numbers in `force`.
    """

    def __init__(self, cameras: dict[str, Camera], sensors: dict[str, ForceSensor]) -> None:
        self._cameras, self._sensors = cameras, sensors
        self._devices: list[Device] = []

    def start(self, on_error: Mapping[str, str], warn_age_ms: Mapping[str, float]) -> None:
        """Start counting from nothing.

        Args:
            on_error: By name, what happens when one fails; the device's own configuration counts for the others.
            warn_age_ms: By name, how old its data may be; one frame for the others.
        """
        self._devices = [
            Device(
                name,
                driver,
                on_error.get(name) or getattr(getattr(driver, "config", None), "on_error", STOP),
                warn_age_ms[name] if name in warn_age_ms else _frame_ms(driver),
            )
            for name, driver in (self._cameras | self._sensors).items()
        ]

    @property
    def force_features(self) -> dict[str, VectorFeature]:
        """`{"force": <sensor>.<channel> of all of them}`; empty without sensors."""
        names = [f"{name}.{ch}" for name, sensor in self._sensors.items() for ch in sensor.spec.channels]
        return {FORCE: VectorFeature(names)} if names else {}

    def connect(self) -> None:
        """Open all of them.

        Raises:
            ConnectionError: One sentence on the first that cannot be opened; those before it are open.
        """
        for name, camera in self._cameras.items():
            _connect_camera(name, camera)
        for sensor in self._sensors.values():
            sensor.connect()

    def tare(self, num_samples: int | None = None) -> dict[str, NDArray[np.float32]]:
        """As the robots' `tare`."""
        if not self._sensors:
            return {}
        with ThreadPoolExecutor(len(self._sensors)) as pool:
            jobs = {name: pool.submit(sensor.tare, num_samples) for name, sensor in self._sensors.items()}
            return {name: job.result() for name, job in jobs.items()}

    def tare_for_now(self) -> None:
        """Tare for whoever reads before an episode starts, or never starts one: teleoperation, the live view."""
        try:
            self.tare()
        except TareRefused as refused:
            logger.warning("%s It is tared again when an episode starts.", refused)

    def read(self, joints_s: float) -> tuple[dict[str, Any], dict[str, float]]:
        """The newest that each has.

        Args:
            joints_s: When the joints were read (`time.perf_counter`).

        Returns:
            The observation's pictures and `force`, and by device how long before `joints_s` it was taken, ms.

        Raises:
            DeviceError: One shows nothing, or nothing new enough.
        """
        shown: dict[str, Any] = {}
        ages_ms, samples = {}, []
        for device in self._devices:
            values, at_s = device.read()
            if device.is_camera:
                shown.update(values)
            else:
                samples += values.values()
            if at_s is not None:
                ages_ms[device.name] = (joints_s - at_s) * 1e3
        if samples:
            shown[FORCE] = np.concatenate(samples, dtype=np.float32)
        for device in self._devices:
            if device.name in ages_ms:
                device.note_age(ages_ms[device.name])
        return shown, ages_ms

    def counts(self) -> dict[str, int]:
        """All counters, by `<device>.<counter>`."""
        counted: dict[str, int] = {}
        for device in self._devices:
            counted |= device.counts()
        return counted

    def metadata(self) -> dict[str, dict[str, Any]]:
        """As the robots' `feature_metadata`."""
        found: dict[str, dict[str, Any]] = {}
        for name, camera in self._cameras.items():
            told = camera.metadata() if hasattr(camera, "metadata") else {}
            for stream, suffix in (("color", ""), ("depth", "_depth")):
                if told.get(stream):
                    found[f"{OBS_IMAGES}.{name}{suffix}"] = {"camera": told[stream]}
        sensors = {
            name: sensor.metadata() for name, sensor in self._sensors.items() if hasattr(sensor, "metadata")
        }
        if sensors:
            found[OBS_FORCE] = {"sensors": sensors}
        return found

    def release(self) -> None:
        """Close all that are open; one that fails at it does not keep the others from it."""
        for name, sensor in self._sensors.items():
            attempt(f"sensor '{name}'", sensor.disconnect)
        for name, camera in self._cameras.items():
            if camera.is_connected:
                attempt(f"camera '{name}'", camera.disconnect)


def attempt(what: str, release: Callable[[], None]) -> None:
    """Call `release`; its failure is a line in the log."""
    try:
        release()
    except Exception as error:
        logger.warning("%s: releasing it failed: %s", what, " ".join(str(error).split()))


def _frame_ms(driver: Camera | ForceSensor) -> float:
    return 1000 / driver.fps if getattr(driver, "fps", None) else SENSOR_WARN_MS


def _connect_camera(name: str, camera: Camera) -> None:
    try:
        camera.connect()
    except (ConnectionError, TimeoutError):
        raise
    except Exception as error:  # LeRobot's drivers raise RuntimeError, too
        raise ConnectionError(f"camera '{name}': {' '.join(str(error).split())}") from error
