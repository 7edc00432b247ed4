"""The interface that every force sensor has, close to LeRobot's cameras and its proposed `TactileSensor`.

What is here knows samples, units and names; how samples get here is a driver's matter.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import draccus
import numpy as np
from lerobot.utils.import_utils import make_device_from_device_class
from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

FEW_SAMPLES = "{sensor}: cannot tare, only {got} of {wanted} samples came within {within_s:.1f} s; is it still plugged in?"
TOUCHED = (
    "%s: samples scatter by %.3g %s (channel %s) while taring, more than %.3g; if something touches it, let go and "
    "start the episode again."
)
NOT_FINITE = "{channels} of a sample are not finite: {values}."
WRONG_SHAPE = "a sample has shape {found}, expected {expected}."


@dataclass(kw_only=True)
class ForceSensorConfig(draccus.ChoiceRegistry, abc.ABC):
    """What all force sensors can be told.

    Attributes:
        max_age_ms: `read_latest` refuses a sample that arrived longer ago than this.
        tare_samples: How many samples `tare` averages.
        tare_max_std: A standard deviation above this while taring is warned of, in the sensor's unit.
    """

    max_age_ms: float = 500.0
    tare_samples: int = 20
    tare_max_std: float = 5.0

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for key in ("max_age_ms", "tare_samples", "tare_max_std"):
            if getattr(self, key) <= 0:
                raise ValueError(f"force sensor: {key} is {getattr(self, key)}; expected a number above 0.")

    @property
    def type(self) -> str:
        """The name it is registered under."""
        return self.get_choice_name(self.__class__)


@dataclass(frozen=True)
class ForceSensorSpec:
    """What one sample of a sensor looks like.

    Attributes:
        channels: One name for each number of a sample.
        unit: The unit of all of them.
        rate_hz: Samples a second, nominal.
        limit: Largest magnitude that a sample can have.
    """

    channels: tuple[str, ...]
    unit: str
    rate_hz: float
    limit: float

    @property
    def shape(self) -> tuple[int]:
        """Shape of a sample: (number of channels,)."""
        return (len(self.channels),)

    def validate(self, sample: ArrayLike) -> NDArray[np.float32]:
        """`sample` as float32 of `shape`.

        Raises:
            ValueError: Its shape differs, or a number is not finite.
        """
        array = np.asarray(sample, dtype=np.float32)
        if array.shape != self.shape:
            raise ValueError(WRONG_SHAPE.format(found=array.shape, expected=self.shape))
        finite = np.isfinite(array)
        if not finite.all():
            channels = [name for name, good in zip(self.channels, finite, strict=True) if not good]
            raise ValueError(NOT_FINITE.format(channels=", ".join(channels), values=array[~finite].tolist()))
        return array

    def example(self, seed: int = 0) -> NDArray[np.float32]:
        """A sample that `validate` accepts, for examples and tests."""
        numbers = np.random.default_rng(seed).uniform(-1, 1, self.shape) * min(self.limit, 1e3)
        return self.validate(numbers)


class ForceSensor(abc.ABC):
    """A sensor that gives a vector of forces or force-like numbers.

    Values read are float32 and tared: raw minus `baseline`, which is zero until `tare` was called. A driver
    gives `spec`, `connect`, `disconnect`, `is_connected` and `wait_raw`, `latest_raw`; the rest follows.
    """

    def __init__(self, config: ForceSensorConfig):
        """Prepare to connect; opens nothing."""
        self.config = config
        self._baseline: NDArray[np.float32] | None = None

    # What a driver gives.

    @property
    @abc.abstractmethod
    def spec(self) -> ForceSensorSpec:
        """Names, unit and rate; known without a connection."""

    @property
    @abc.abstractmethod
    def is_connected(self) -> bool:
        """Whether `connect` succeeded and `disconnect` was not called since."""

    @abc.abstractmethod
    def connect(self, warmup: bool = True) -> None:
        """Open the device; with `warmup`, return only when a sample has come.

        Raises:
            ConnectionError: It cannot be opened or sends nothing useful. Nothing stays open then.
        """

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Release the device; again does nothing."""

    @abc.abstractmethod
    def wait_raw(self, after: int, timeout_s: float) -> tuple[int, float, NDArray[np.float32]]:
        """The newest sample with a number above `after`, waiting for it if need be.

        Returns:
            Its number (counting from 1), its time (`time.perf_counter`) and the untared sample.

        Raises:
            TimeoutError: None came in time.
            ConnectionError: Not connected, or the device is lost.
        """

    @abc.abstractmethod
    def latest_raw(self) -> tuple[int, float, NDArray[np.float32]]:
        """The newest sample at once, as `wait_raw` returns it; number 0 if there is none yet.

        Raises:
            ConnectionError: Not connected, or the device is lost.
        """

    # What follows from it.

    @property
    def baseline(self) -> NDArray[np.float32] | None:
        """What is subtracted from raw samples; None before the first `tare`."""
        return None if self._baseline is None else self._baseline.copy()

    def read(self, timeout_ms: float = 1000) -> NDArray[np.float32]:
        """The next sample that arrives after this call; errors as `wait_raw`."""
        return self._tared(self.wait_raw(self.latest_raw()[0], timeout_ms / 1e3))

    def async_read(self, timeout_ms: float = 200) -> NDArray[np.float32]:
        """The newest sample that this method has not returned yet, waiting if need be; errors as `wait_raw`."""
        sample = self.wait_raw(self._returned, timeout_ms / 1e3)
        self._returned = sample[0]
        return self._tared(sample)

    def read_latest(self, max_age_ms: float | None = None) -> NDArray[np.float32]:
        """The newest sample, at once.

        Args:
            max_age_ms: Largest age; the configuration's if None.

        Raises:
            TimeoutError: The newest is older, or there is none yet.
            ConnectionError: Not connected, or the device is lost.
        """
        allowed_ms = self.config.max_age_ms if max_age_ms is None else max_age_ms
        number, at_s, _ = sample = self.latest_raw()
        if number == 0:
            raise TimeoutError(f"{self}: no sample yet.")
        age_ms = (time.perf_counter() - at_s) * 1e3
        if age_ms > allowed_ms:
            raise TimeoutError(
                f"{self}: the newest sample is {age_ms:.0f} ms old, more than {allowed_ms:.0f} ms; "
                "is it still plugged in?"
            )
        return self._tared(sample)

    def tare(self, num_samples: int | None = None) -> NDArray[np.float32]:
        """Take the mean of fresh samples for zero. Nothing may touch the sensor meanwhile.

        Args:
            num_samples: How many; the configuration's (20) if None.

        Returns:
            The new baseline, in the sensor's unit.

        Raises:
            ConnectionError: Not connected, lost, or fewer samples came; the old baseline stays.
        """
        wanted = num_samples or self.config.tare_samples
        within_s = max(1.0, 5 * wanted / self.spec.rate_hz)
        deadline = time.perf_counter() + within_s
        number, samples = self.latest_raw()[0], []
        while len(samples) < wanted:
            try:
                number, _, sample = self.wait_raw(number, deadline - time.perf_counter())
            except TimeoutError as error:
                text = FEW_SAMPLES.format(sensor=self, got=len(samples), wanted=wanted, within_s=within_s)
                raise ConnectionError(text) from error
            samples.append(sample)
        std = np.std(samples, axis=0)
        if std.max() > self.config.tare_max_std:
            worst = self.spec.channels[int(std.argmax())]
            logger.warning(TOUCHED, self, std.max(), self.spec.unit, worst, self.config.tare_max_std)
        self._baseline = np.mean(samples, axis=0, dtype=np.float64).astype(np.float32)
        logger.debug("%s tared with %d samples: %s", self, wanted, self._baseline.tolist())
        return self._baseline.copy()

    _returned = 0

    def _tared(self, sample: tuple[int, float, NDArray[np.float32]]) -> NDArray[np.float32]:
        raw = sample[2]
        return raw.copy() if self._baseline is None else raw - self._baseline

    def __enter__(self) -> ForceSensor:
        """Connect for the length of a `with` block."""
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect, whatever happened."""
        self.disconnect()


def make_force_sensors_from_configs(configs: Mapping[str, ForceSensorConfig]) -> dict[str, ForceSensor]:
    """One sensor for each configuration, under the same names; opens nothing."""
    return {name: make_device_from_device_class(config) for name, config in configs.items()}
