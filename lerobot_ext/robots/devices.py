"""Reading a robot's cameras and sensors: what they show, when it was taken, and what happens when they fail.

One `Device` for each camera and sensor, whoever made it. What an observation is made of is the robot's matter; a
picture is never passed on without knowing that its device is well.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from lerobot.cameras import Camera

from lerobot_ext.sensors import ForceSensor

logger = logging.getLogger(__name__)

FAILURES = (ConnectionError, TimeoutError, RuntimeError, OSError)
STOP, SKIP_FRAME = "stop", "skip_frame"
WARN_AGAIN_S = 60.0
REVIVE_S = 1.0

OLD = (
    "%s: what it shows is old when the joints are read: %.0f ms, more than %.0f ms (mean of the last %d observations: "
    "%.0f ms). %s"
)
CAMERA_REMEDY = (
    "Give it a USB 3 port of its own, fewer pixels, or light for a shorter exposure; if the computer is busy, record "
    "with fewer cameras. Pictures that are always this old can be allowed with warn_age_ms."
)
SENSOR_REMEDY = (
    "Is the computer busy, or is the sensor on a slow hub? Samples that are always this old can be allowed with "
    "warn_age_ms."
)


class DeviceError(ConnectionError):
    """A device gave nothing that may be used.

    Attributes:
        device: Which.
    """

    def __init__(self, device: Device, error: Exception) -> None:
        text = " ".join(str(error).split()).rstrip(".")
        super().__init__(text if text.startswith(device.label) else f"{device.label}: {text}")
        self.device = device


@dataclass
class Device:
    """A camera or sensor of a robot.

    Attributes:
        name: As the robot calls it.
        driver: The camera or sensor.
        on_error: "stop" or "skip_frame".
        warn_age_ms: Older than this, its data is warned of.
        skipped: Observations that waited for it.
        repeated: Observations with the picture of the one before, for cameras that do not count themselves.
    """

    name: str
    driver: Camera | ForceSensor
    on_error: str
    warn_age_ms: float
    skipped: int = 0
    repeated: int = 0
    _at_s: float | None = None
    _ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    _warned_s: float = -WARN_AGAIN_S
    _revived_s: float = 0.0

    @property
    def is_camera(self) -> bool:
        """Whether it is a camera."""
        return not isinstance(self.driver, ForceSensor)

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{'camera' if self.is_camera else 'sensor'} '{self.name}'"

    def read(self) -> tuple[dict[str, Any], float | None]:
        """What it shows now.

        Returns:
            By the observation's names: pictures that belong to the caller (`<name>`, `<name>_depth`), or the sample;
            and when it was taken (`time.perf_counter`), None if the device does not tell.

        Raises:
            DeviceError: It shows nothing, or nothing new enough.
        """
        try:
            shown, at_s = self._pictures() if self.is_camera else self._sample()
        except FAILURES as error:
            raise DeviceError(self, error) from error
        if at_s is not None:
            self.repeated += at_s == self._at_s
            self._at_s = at_s
        return shown, at_s

    def _sample(self) -> tuple[dict[str, Any], float]:
        at_s = self.driver.latest_raw()[1]  # before the sample: an age may be too large, never too small
        return {self.name: self.driver.read_latest()}, at_s

    def _pictures(self) -> tuple[dict[str, Any], float | None]:
        """Of one instant where the camera can."""
        camera = self.driver
        wants_rgb, wants_depth = getattr(camera, "use_rgb", True), getattr(camera, "use_depth", False)
        color = depth = None
        if hasattr(camera, "read_latest_frameset"):
            frameset = camera.read_latest_frameset()
            at_s = frameset.captured_s
            color = frameset.color.copy() if wants_rgb else None
            depth = frameset.depth.copy() if wants_depth else None
        else:
            at_s = getattr(camera, "latest_timestamp", None)
            color = camera.read_latest() if wants_rgb else None
            depth = camera.read_latest_depth() if wants_depth else None
        shown = {}
        if wants_rgb:
            shown[self.name] = color
        if wants_depth:
            shown[f"{self.name}_depth"] = depth
        return shown, at_s

    def note_age(self, age_ms: float) -> None:
        """Take the age of what was read last; warns, at most once a minute, when it is above `warn_age_ms`."""
        self._ages_ms.append(age_ms)
        now_s = time.monotonic()
        if age_ms <= self.warn_age_ms or now_s - self._warned_s < WARN_AGAIN_S:
            return
        self._warned_s = now_s
        count, mean_ms = len(self._ages_ms), sum(self._ages_ms) / len(self._ages_ms)
        remedy = CAMERA_REMEDY if self.is_camera else SENSOR_REMEDY
        logger.warning(OLD, self.label, age_ms, self.warn_age_ms, count, mean_ms, remedy)

    def revive(self) -> None:
        """Connect a camera of LeRobot's again whose reading thread has given up; at most once a second, quietly."""
        thread = getattr(self.driver, "thread", None)
        lost = not self.driver.is_connected or (thread is not None and not thread.is_alive())
        now_s = time.monotonic()
        if not self.is_camera or not lost or now_s - self._revived_s < REVIVE_S:
            return
        self._revived_s = now_s
        try:
            if self.driver.is_connected:
                self.driver.disconnect()
            self.driver.connect(warmup=False)
        except FAILURES as error:
            logger.debug("%s does not connect again yet: %s", self.label, error)

    def counts(self) -> dict[str, int]:
        """Its counters, by `<name>.<counter>`."""
        counted = {f"{self.name}.repeated": self.repeated, f"{self.name}.skipped": self.skipped}
        own = getattr(self.driver, "counts", None) or {}
        return counted | {f"{self.name}.{key}": value for key, value in own.items()}
