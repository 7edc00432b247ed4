"""The interface that every force sensor has, close to LeRobot's cameras and its proposed `TactileSensor`.

What is here knows samples, zero and names; how samples get here is a driver's matter (`stream` has what most of them
need).
"""

from __future__ import annotations

import abc
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from lerobot.utils.import_utils import make_device_from_device_class
from numpy.typing import NDArray

from lerobot_ext.sensors.calibration import Calibration
from lerobot_ext.sensors.config import ForceSensorConfig
from lerobot_ext.sensors.spec import ForceSensorSpec
from lerobot_ext.sensors.zero import TOUCHED, Drift, TareRefused, find_unrest

logger = logging.getLogger(__name__)

RawSample = tuple[int, float, NDArray[np.float32]]  # number from 1, time (perf_counter), (raw channels,)

FEW_SAMPLES = "{sensor}: cannot tare, only {got} of {wanted} samples came within {within_s:.1f} s; is it still plugged in?"


class ForceSensor(abc.ABC):
    """A sensor that gives a vector of forces or force-like numbers.

    Values read are float32 and tared: raw minus `baseline`, times the calibration's matrix where there is one. A
    driver gives `raw_spec`, `connect`, `disconnect`, `is_connected` and `wait_raw`, `latest_raw`; the rest follows.
    One reader at a time reads; `recent`, `age_ms` and `counts` are for anyone.
    """

    setting = "tare_max_std"  # what a refused tare tells to raise

    def __init__(self, config: ForceSensorConfig):
        """Prepare to connect; opens no device.

        Raises:
            ValueError: The calibration's file does not fit.
        """
        self.config = config
        self._baseline: NDArray[np.float32] | None = None
        self._returned = self._averaged = 0
        self.calibration = Calibration.load(config.calibration, self.raw_spec) if config.calibration else None

    # What a driver gives.

    @property
    @abc.abstractmethod
    def raw_spec(self) -> ForceSensorSpec:
        """Names, units and rate of raw samples; known from `config` alone, without a connection."""

    @property
    @abc.abstractmethod
    def is_connected(self) -> bool:
        """Whether `connect` succeeded and `disconnect` was not called since; a lost sensor still is connected."""

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
    def wait_raw(self, after: int, timeout_s: float) -> RawSample:
        """The newest sample with a number above `after`, waiting for it if need be.

        Returns:
            Its number (counting from 1), its time (`time.perf_counter`) and the untared sample.

        Raises:
            TimeoutError: None came in time.
            ConnectionError: Not connected, or the device is lost.
        """

    @abc.abstractmethod
    def latest_raw(self) -> RawSample:
        """The newest sample at once, as `wait_raw` returns it; number 0 if there is none yet.

        Raises:
            ConnectionError: Not connected, or the device is lost.
        """

    def history_raw(self, after: int) -> list[RawSample]:
        """The samples with a number above `after` that are still kept, oldest first.

        A driver that keeps none has the newest one only.

        Raises:
            ConnectionError: As `latest_raw`.
        """
        newest = self.latest_raw()
        return [newest] if newest[0] > after else []

    @property
    def counts(self) -> dict[str, int]:
        """What happened since `connect`, by name; drivers have more."""
        return {}

    @property
    def tare_limits(self) -> NDArray[np.float64]:
        """(raw channels,): the standard deviation of each at rest, at most; infinite for one that is not tared."""
        return np.full(self.raw_spec.shape, self.config.tare_max_std)

    @property
    def drift_limits(self) -> NDArray[np.float64]:
        """(raw channels,): how far the zero of each may move in an episode."""
        return np.full(self.raw_spec.shape, self.config.max_drift)

    # What follows from it.

    @property
    def spec(self) -> ForceSensorSpec:
        """Names, units and rate of what is read; known without a connection."""
        return self.raw_spec if self.calibration is None else self.calibration.spec(self.raw_spec)

    @property
    def baseline(self) -> NDArray[np.float32] | None:
        """(raw channels,), in raw units: what is subtracted from raw samples; None before the first `tare`."""
        return None if self._baseline is None else self._baseline.copy()

    @property
    def age_ms(self) -> float:
        """How long ago the newest sample came; infinite if there is none, or if the sensor is lost."""
        try:
            number, at_s, _ = self.latest_raw()
        except ConnectionError:
            return math.inf
        return (time.perf_counter() - at_s) * 1e3 if number else math.inf

    def metadata(self) -> dict[str, Any]:
        """What somebody needs who reads the samples years later; plain values that JSON can hold.

        `calibration` is the file's path or None; with one, `calibration_matrix` and the raw channels are here too,
        and a baseline is in their units.
        """
        spec, raw = self.spec, self.raw_spec
        found = {
            "driver": self.config.type,
            "channels": list(spec.channels),
            "unit": spec.unit,
            "units": list(spec.units),
            "rate_hz": float(spec.rate_hz),
            "limit": float(spec.limit),
            "reduce": self.config.reduce,
            "calibration": None,
            "layout_mm": None,
        }
        if self.calibration is not None:
            found |= {
                "calibration": self.calibration.path,
                "calibration_matrix": self.calibration.matrix.tolist(),
                "calibration_offset": self.calibration.offset.tolist(),
                "raw_channels": list(raw.channels),
                "raw_units": list(raw.units),
            }
        return found

    def read(self, timeout_ms: float = 1000) -> NDArray[np.float32]:
        """The next sample that arrives after this call; errors as `wait_raw`."""
        return self._tared(self.wait_raw(self.latest_raw()[0], timeout_ms / 1e3)[2])

    def async_read(self, timeout_ms: float = 200) -> NDArray[np.float32]:
        """The newest sample that this method has not returned yet, waiting if need be; errors as `wait_raw`.

        With `reduce: mean` the mean up to it, as `read_latest` gives it.
        """
        deadline_s = time.perf_counter() + timeout_ms / 1e3
        after = self._returned
        while True:
            sample = self.wait_raw(after, deadline_s - time.perf_counter())
            if (time.perf_counter() - sample[1]) * 1e3 <= self.config.max_age_ms:
                break
            after = sample[0]  # it came before a long silence
        self._returned = sample[0]
        return self._reduced(sample, self.config.max_age_ms)

    def read_latest(self, max_age_ms: float | None = None) -> NDArray[np.float32]:
        """The newest sample, at once; with `reduce: mean` the mean of those since the last read by this reader.

        Args:
            max_age_ms: Largest age; the configuration's if None. Older samples are in no mean.

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
        return self._reduced(sample, allowed_ms)

    def recent(self, num: int) -> NDArray[np.float32]:
        """The newest samples, tared, for a curve or a check.

        Args:
            num: How many at most.

        Returns:
            (n, channels) float32, oldest first; n is smaller than `num` if so many were not kept or did not come.

        Raises:
            ConnectionError: Not connected, or the device is lost.
        """
        samples = self._newest_raw(num)
        return self._tared(samples) if len(samples) else np.empty((0, *self.spec.shape), np.float32)

    def tare(self, num_samples: int | None = None) -> NDArray[np.float32]:
        """Take the mean of fresh samples for zero. Nothing may touch the sensor meanwhile.

        Args:
            num_samples: How many at least; the configuration's (20) if None. They are taken over
                `tare_duration_s` at least.

        Returns:
            The new baseline, in the sensor's raw unit.

        Raises:
            TareRefused: The samples scatter or move: something touches it; the old baseline stays.
            ConnectionError: Not connected, lost, or fewer samples came; the old baseline stays.
        """
        samples = self._fresh_raw(num_samples or self.config.tare_samples, self.config.tare_duration_s)
        if (unrest := find_unrest(samples, self.tare_limits)) is not None:
            raw = self.raw_spec
            raise TareRefused(
                TOUCHED.format(
                    sensor=self,
                    channel=raw.channels[unrest.channel],
                    did=unrest.did,
                    found=unrest.found,
                    allowed=unrest.allowed,
                    unit=raw.units[unrest.channel],
                    setting=self.setting,
                )
            )
        mean = np.mean(samples, axis=0, dtype=np.float64)
        mean[np.isinf(self.tare_limits)] = 0
        self._baseline = mean.astype(np.float32)
        logger.debug("%s tared with %d samples: %s", self, len(samples), self._baseline.tolist())
        return self._baseline.copy()

    def drift(self) -> Drift | None:
        """How far zero has moved since `tare`, from the samples of the last `tare_duration_s`.

        Returns:
            None if it was not tared, too few samples came lately, or they are not those of a sensor at rest. A load
            that keeps still looks like drift: ask when nothing should touch the sensor.

        Raises:
            ConnectionError: Not connected, or the device is lost.
        """
        num = max(self.config.tare_samples, math.ceil(self.config.tare_duration_s * self.raw_spec.rate_hz))
        samples = self._newest_raw(num)
        fresh = self.age_ms <= self.config.max_age_ms
        if self._baseline is None or len(samples) < self.config.tare_samples or not fresh:
            return None
        if find_unrest(samples, self.tare_limits) is not None:
            return None
        tared = np.isfinite(self.tare_limits)
        moved = np.where(tared, samples.mean(axis=0, dtype=np.float64) - self._baseline, 0).astype(np.float32)
        limits = self.drift_limits
        if self.calibration is not None:
            moved, limits = self.calibration.apply(moved), self.calibration.spread(limits * tared)
            limits = np.maximum(limits, np.finfo(np.float32).tiny)  # a row of zeros
        return Drift.of(moved, limits, self.spec)

    def _fresh_raw(self, wanted: int, duration_s: float) -> NDArray[np.float32]:
        start_s = time.perf_counter()
        within_s = max(1.0, 2 * duration_s, 5 * wanted / self.raw_spec.rate_hz)
        number, samples = self.latest_raw()[0], []
        while len(samples) < wanted or time.perf_counter() - start_s < duration_s:
            try:
                self.wait_raw(number, start_s + within_s - time.perf_counter())
            except TimeoutError as error:
                text = FEW_SAMPLES.format(sensor=self, got=len(samples), wanted=wanted, within_s=within_s)
                raise ConnectionError(text) from error
            news = self.history_raw(number)
            samples += [raw for _, _, raw in news]
            number = news[-1][0]
        return np.stack(samples)

    def _newest_raw(self, num: int) -> NDArray[np.float32]:
        kept = self.history_raw(self.latest_raw()[0] - num)[-num:]
        return (
            np.stack([raw for _, _, raw in kept]) if kept else np.empty((0, *self.raw_spec.shape), np.float32)
        )

    def _reduced(self, newest: RawSample, max_age_ms: float) -> NDArray[np.float32]:
        raw = newest[2]
        if self.config.reduce == "mean":
            oldest_s = time.perf_counter() - max_age_ms / 1e3
            since = [s for s in self.history_raw(self._averaged) if s[1] >= oldest_s] or [newest]
            self._averaged = since[-1][0]
            raw = np.mean([sample for _, _, sample in since], axis=0, dtype=np.float64).astype(np.float32)
        return self._tared(raw)

    def _tared(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.calibration is None:
            return raw.copy() if self._baseline is None else raw - self._baseline
        zero = self.calibration.offset if self._baseline is None else self._baseline
        return self.calibration.apply(raw - zero)

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
