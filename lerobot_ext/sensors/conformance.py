"""What every force sensor must do, as tests that the tests of a driver inherit.

The class needs no test framework: it has `test_*` methods, and a subclass says how to make a connectable sensor and,
if it can, how to make its device misbehave. What a subclass cannot do is skipped.
"""

from __future__ import annotations

import abc
import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import SkipTest

import numpy as np

from lerobot_ext.sensors.sensor import ForceSensor
from lerobot_ext.sensors.zero import TareRefused

METADATA = ("driver", "channels", "unit", "units", "rate_hz", "limit", "calibration", "layout_mm")
PATIENCE_S = 10.0  # on a busy computer


class ForceSensorConformance(abc.ABC):
    """Inherit as `class TestMyDriver(ForceSensorConformance)`, give `working_sensor`, and what faults there can be.

    The faults concern the device of the sensor that `working_sensor` made last. A subclass with `reconnect_s` small
    in its configuration has quick tests.
    """

    @abc.abstractmethod
    def working_sensor(self) -> AbstractContextManager[ForceSensor]:
        """A sensor that is not connected yet and will stream once it is; whatever feeds it ends with the block."""

    def disturb(self) -> None:
        """From now on something trembles on the sensor."""
        raise SkipTest("this driver's tests cannot touch the sensor")

    def garble(self) -> None:
        """Put bytes that mean nothing, and pieces of samples, among the samples, for a moment."""
        raise SkipTest("this driver's tests cannot spoil the stream")

    def silence(self, silent: bool) -> None:
        """Let the device stop sending, or send again."""
        raise SkipTest("this driver's tests cannot silence the device")

    def unplug(self) -> None:
        """Take the device away."""
        raise SkipTest("this driver's tests cannot unplug the device")

    def plug_in(self) -> None:
        """Bring the device back."""
        raise SkipTest("this driver's tests cannot plug the device in")

    def wrong_device(self) -> AbstractContextManager[ForceSensor]:
        """A sensor whose port or address belongs to something else that sends."""
        raise SkipTest("this driver's tests have no wrong device")

    # What it is.

    def test_spec_is_known_without_a_connection(self) -> None:
        """Names are unique, each has a unit, and the example fits."""
        with self.working_sensor() as sensor:
            spec = sensor.spec
            assert len(set(spec.channels)) == len(spec.channels) == len(spec.units) == len(spec.limits) > 0
            assert spec.unit and all(spec.units) and spec.rate_hz > 0
            assert spec.validate(spec.example()).dtype == np.float32
            assert not sensor.is_connected

    def test_metadata_say_what_the_samples_are(self) -> None:
        """They are plain JSON, also without a connection, and agree with the spec."""
        with self.working_sensor() as sensor:
            for _ in range(2):
                said = json.loads(json.dumps(sensor.metadata(), allow_nan=False))
                assert all(key in said for key in METADATA)
                assert said["driver"] == sensor.config.type
                assert tuple(said["channels"]) == sensor.spec.channels and said["unit"] == sensor.spec.unit
                if not sensor.is_connected:
                    sensor.connect()

    # Reading.

    def test_reads_are_valid_samples_of_the_caller(self) -> None:
        """Each read gives a sample that fits the spec, and changing it changes nothing else."""
        with self.working_sensor() as sensor, sensor:
            for read in (sensor.read, sensor.async_read, sensor.read_latest):
                sample = read()
                assert sensor.spec.validate(sample) is sample
                sample[:] = np.inf
            assert np.isfinite(sensor.read_latest()).all() and np.isfinite(sensor.recent(100)).all()

    def test_nothing_is_read_before_the_first_sample(self) -> None:
        """No zeros: an error, or a sample that came."""
        with self.working_sensor() as sensor:
            assert sensor.age_ms == math.inf
            sensor.connect(warmup=False)
            try:
                sensor.read_latest()
            except TimeoutError:
                assert len(sensor.recent(5)) == 0 or sensor.latest_raw()[0] > 0
            else:
                assert sensor.latest_raw()[0] > 0

    def test_async_read_waits_for_a_new_sample(self) -> None:
        """Reads of a second's tenth take about as long as their samples take to come."""
        with self.working_sensor() as sensor, sensor:
            sensor.async_read(timeout_ms=1000)
            number = sensor.latest_raw()[0]
            for _ in range(5):
                sensor.async_read(timeout_ms=1000)
            assert sensor.latest_raw()[0] >= number + 4

    def test_an_old_sample_is_refused(self) -> None:
        """`read_latest` raises TimeoutError rather than give what is too old."""
        with self.working_sensor() as sensor, sensor:
            _raises(TimeoutError, lambda: sensor.read_latest(max_age_ms=0))

    def test_the_age_is_that_of_the_newest_sample(self) -> None:
        """Milliseconds since it came, less than the largest age while the device sends."""
        with self.working_sensor() as sensor, sensor:
            sensor.read()
            assert 0 <= sensor.age_ms < sensor.config.max_age_ms
        assert sensor.age_ms == math.inf

    def test_counts_start_at_connect_and_only_grow(self) -> None:
        """Names and whole numbers; a second connection counts from zero."""
        with self.working_sensor() as sensor:
            for _ in range(2):
                with sensor:
                    before = sensor.counts
                    _eventually(lambda: sensor.latest_raw()[0] >= 3)
                    after = sensor.counts
                assert {"received", "dropped", "reconnects"} <= set(after)
                assert all(isinstance(n, int) and n >= before[name] >= 0 for name, n in after.items())
                assert after["received"] >= 3 and after["reconnects"] == 0

    def test_recent_has_the_newest_samples_tared(self) -> None:
        """As many as were asked for, if they came, oldest first."""
        with self.working_sensor() as sensor, sensor:
            sensor.tare()
            _eventually(lambda: len(sensor.recent(1000)) >= 20)
            some = sensor.recent(5)
            assert some.shape == (5, *sensor.spec.shape) and some.dtype == np.float32
            newest, raw = sensor.recent(1)[0], sensor.latest_raw()
            if sensor.counts["received"] == raw[0] and sensor.calibration is None:
                assert np.allclose(newest, raw[2] - sensor.baseline) or sensor.latest_raw()[0] > raw[0]

    def test_the_mean_is_that_of_all_samples_since_the_last_read(self) -> None:
        """With `reduce: mean` a read lies among the samples that came since, and is not merely the newest."""
        with self.working_sensor() as sensor:
            sensor.config.reduce = "mean"
            with sensor:
                sensor.read_latest()
                first = sensor.latest_raw()[0]
                _eventually(lambda: sensor.latest_raw()[0] >= first + 8)
                mean = sensor.read_latest()
                came = sensor.recent(sensor.latest_raw()[0] - first + 2)
                assert (mean >= came.min(axis=0) - 1e-3).all() and (mean <= came.max(axis=0) + 1e-3).all()
                assert not any(np.array_equal(mean, sample) for sample in came)

    # Zero.

    def test_tare_makes_the_present_zero(self) -> None:
        """After taring, samples are raw minus the baseline returned, which is in raw units."""
        with self.working_sensor() as sensor, sensor:
            assert sensor.baseline is None
            baseline = sensor.tare(20)
            assert sensor.raw_spec.validate(baseline) is baseline
            assert np.array_equal(baseline, sensor.baseline)
            number, _, raw = sensor.latest_raw()
            tared = sensor.read_latest()
            if sensor.latest_raw()[0] == number and sensor.calibration is None:
                assert np.array_equal(tared, raw - baseline)

    def test_a_tare_takes_the_time_that_it_was_told(self) -> None:
        """`tare_duration_s` at least, however fast samples come."""
        with self.working_sensor() as sensor, sensor:
            start_s = time.perf_counter()
            sensor.tare(2)
            assert time.perf_counter() - start_s >= sensor.config.tare_duration_s

    def test_a_sensor_at_rest_does_not_drift(self) -> None:
        """Right after taring zero is where it was."""
        with self.working_sensor() as sensor, sensor:
            assert sensor.drift() is None
            sensor.tare()
            drift = sensor.drift()
            assert drift is not None and not drift.exceeds
            assert drift.offsets.shape == sensor.spec.shape and drift.channel in sensor.spec.channels

    def test_a_tare_is_refused_while_something_touches(self) -> None:
        """It says which channel and what to do, the old baseline stays, and there is no drift to tell of."""
        with self.working_sensor() as sensor, sensor:
            old = sensor.tare()
            self.disturb()
            time.sleep(sensor.config.tare_duration_s)
            text = _raises(TareRefused, sensor.tare)
            assert str(sensor) in text and "let go" in text
            assert any(channel in text for channel in sensor.raw_spec.channels)
            assert np.array_equal(sensor.baseline, old)
            assert sensor.drift() is None

    # Connecting and losing.

    def test_reading_without_a_connection_is_an_error(self) -> None:
        """Not connected, or not any more: ConnectionError that names the sensor, from every read."""
        with self.working_sensor() as sensor:
            with sensor:
                pass
            assert not sensor.is_connected
            calls = (sensor.read, sensor.async_read, sensor.read_latest, sensor.tare, sensor.drift)
            for call in (*calls, lambda: sensor.recent(1)):
                assert str(sensor) in _raises(ConnectionError, call)

    def test_disconnecting_twice_and_connecting_again(self) -> None:
        """A second disconnect does nothing; a second connect works."""
        with self.working_sensor() as sensor:
            for _ in range(2):
                sensor.connect()
                assert sensor.is_connected
                _raises(ConnectionError, sensor.connect)
                sensor.read()
                sensor.disconnect()
                sensor.disconnect()
                assert not sensor.is_connected

    def test_no_thread_is_left_after_disconnecting(self) -> None:
        """Whatever reads ends with the connection."""
        with self.working_sensor() as sensor:
            before = set(threading.enumerate())
            with sensor:
                sensor.read()
            _eventually(lambda: not set(threading.enumerate()) - before)

    def test_garbage_between_the_samples_is_skipped(self) -> None:
        """The stream goes on, and no sample is made of pieces."""
        with self.working_sensor() as sensor, sensor:
            sensor.tare()
            self.garble()
            number = sensor.latest_raw()[0]
            _eventually(lambda: sensor.latest_raw()[0] > number + 20)
            limits = np.maximum(sensor.drift_limits, 6 * sensor.tare_limits)
            for _, _, raw in sensor.history_raw(number):
                assert (np.abs(raw - sensor.baseline) < limits).all(), raw - sensor.baseline

    def test_a_silent_device_is_an_error_and_speaks_again(self) -> None:
        """Reads fail, first for age, then as a lost connection; when the device sends again they go on."""
        with self.working_sensor() as sensor, sensor:
            baseline = sensor.tare()
            self.silence(True)
            _eventually(lambda: sensor.age_ms > sensor.config.max_age_ms)
            _raises((TimeoutError, ConnectionError), sensor.read_latest)
            assert str(sensor) in _raises(ConnectionError, lambda: sensor.read(timeout_ms=1e3 * PATIENCE_S))
            assert sensor.is_connected
            self.silence(False)
            _eventually(lambda: np.isfinite(sensor.read_latest()).all())
            assert np.array_equal(sensor.baseline, baseline)

    def test_an_unplugged_device_is_an_error_until_it_is_back(self) -> None:
        """Reads fail at once and go on by themselves; the baseline stays, and the reconnect is counted."""
        with self.working_sensor() as sensor, sensor:
            baseline = sensor.tare()
            name = str(sensor)
            self.unplug()
            text = _raises(
                ConnectionError, lambda: [sensor.read(timeout_ms=1e3 * PATIENCE_S) for _ in range(1000)]
            )
            assert name in text
            for read in (sensor.read_latest, sensor.async_read, sensor.tare):
                _raises(ConnectionError, read)
            assert sensor.age_ms == math.inf
            self.plug_in()
            _eventually(lambda: np.isfinite(sensor.read_latest()).all())
            assert np.isfinite(sensor.read()).all()
            assert sensor.counts["reconnects"] == 1 and np.array_equal(sensor.baseline, baseline)

    def test_a_device_that_was_silent_from_the_start_is_an_error_of_connect(self) -> None:
        """Within seconds, and nothing stays open."""
        with self.working_sensor() as sensor:
            self.silence(True)
            assert str(sensor) in _raises(ConnectionError, sensor.connect)
            assert not sensor.is_connected
            self.silence(False)
            with sensor:
                assert np.isfinite(sensor.read()).all()

    def test_a_wrong_device_is_an_error_of_connect(self) -> None:
        """It does not hang, and nothing it sent is taken for a sample."""
        with self.wrong_device() as sensor:
            assert str(sensor) in _raises(ConnectionError, sensor.connect)
            assert not sensor.is_connected


def _raises(error: type[Exception] | tuple[type[Exception], ...], call: Callable[[], object]) -> str:
    """The text of the error that `call` must raise."""
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"{getattr(call, '__name__', call)} did not raise {error}")


def _eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; ConnectionError and TimeoutError mean not yet."""
    give_up_s = time.perf_counter() + PATIENCE_S
    while True:
        try:
            if condition():
                return
            problem: object = "the condition does not hold"
        except (ConnectionError, TimeoutError) as error:
            problem = error
        if time.perf_counter() > give_up_s:
            raise AssertionError(f"after {PATIENCE_S:g} s: {problem}")
        time.sleep(0.01)
