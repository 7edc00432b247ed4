"""What every force sensor must do, as tests that the tests of a driver inherit.

The class needs no test framework: it has `test_*` methods, and a subclass says how to make a connectable sensor.
"""

from __future__ import annotations

import abc
import time
from contextlib import AbstractContextManager

import numpy as np

from lerobot_ext.sensors.sensor import ForceSensor


class ForceSensorConformance(abc.ABC):
    """Inherit as `class TestMyDriver(ForceSensorConformance)` and give `working_sensor`."""

    @abc.abstractmethod
    def working_sensor(self) -> AbstractContextManager[ForceSensor]:
        """A sensor that is not connected yet and will stream once it is; whatever feeds it ends with the block."""

    def test_spec_is_known_without_a_connection(self) -> None:
        """Names are unique, and the example fits."""
        with self.working_sensor() as sensor:
            assert len(set(sensor.spec.channels)) == len(sensor.spec.channels) > 0
            assert sensor.spec.unit and sensor.spec.rate_hz > 0
            assert sensor.spec.validate(sensor.spec.example()).dtype == np.float32
            assert not sensor.is_connected

    def test_reads_are_valid_samples_of_the_caller(self) -> None:
        """Each read gives a sample that fits the spec, and changing it changes nothing else."""
        with self.working_sensor() as sensor, sensor:
            for read in (sensor.read, sensor.async_read, sensor.read_latest):
                sample = read()
                assert sensor.spec.validate(sample) is sample
                sample[:] = np.inf
            assert np.isfinite(sensor.read_latest()).all()

    def test_async_read_waits_for_a_new_sample(self) -> None:
        """Reads of a second's tenth take about as long as their samples take to come."""
        with self.working_sensor() as sensor, sensor:
            sensor.async_read(timeout_ms=1000)
            start_s = time.perf_counter()
            for _ in range(5):
                sensor.async_read(timeout_ms=1000)
            assert time.perf_counter() - start_s > 2 / sensor.spec.rate_hz

    def test_tare_makes_the_present_zero(self) -> None:
        """After taring, samples are raw minus the baseline returned."""
        with self.working_sensor() as sensor, sensor:
            assert sensor.baseline is None
            baseline = sensor.tare(20)
            assert sensor.spec.validate(baseline) is baseline
            assert np.array_equal(baseline, sensor.baseline)
            number, _, raw = sensor.latest_raw()
            tared = sensor.read_latest()
            if sensor.latest_raw()[0] == number:
                assert np.array_equal(tared, raw - baseline)

    def test_an_old_sample_is_refused(self) -> None:
        """`read_latest` raises TimeoutError rather than give what is too old."""
        with self.working_sensor() as sensor, sensor:
            try:
                sensor.read_latest(max_age_ms=0)
            except TimeoutError:
                return
            raise AssertionError("read_latest gave a sample older than max_age_ms")

    def test_reading_without_a_connection_is_an_error(self) -> None:
        """Not connected, or not any more: ConnectionError, from every read."""
        with self.working_sensor() as sensor:
            with sensor:
                pass
            assert not sensor.is_connected
            for call in (sensor.read, sensor.async_read, sensor.read_latest, sensor.tare):
                try:
                    call()
                except ConnectionError:
                    continue
                raise AssertionError(f"{call.__name__} did not raise ConnectionError")

    def test_disconnecting_twice_and_connecting_again(self) -> None:
        """A second disconnect does nothing; a second connect works."""
        with self.working_sensor() as sensor:
            for _ in range(2):
                sensor.connect()
                assert sensor.is_connected
                sensor.read()
                sensor.disconnect()
                sensor.disconnect()
                assert not sensor.is_connected
