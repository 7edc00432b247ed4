"""The driver against the sensor's emulator on a pseudo-terminal, and the bytes of both."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from benches import FT300Bench, chatter, eventually, running_ft300
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.sensors import RobotiqFT300Config, make_force_sensors_from_configs
from lerobot_ext.sensors.conformance import ForceSensorConformance
from lerobot_ext.sensors.ft300_frames import (
    FT300Finder,
    crc16,
    read_request,
    registers_in,
    with_crc,
    write_request,
)
from lerobot_ext.sensors.robotiq_ft300 import RobotiqFT300
from lerobot_ext.virtual.ft300 import FT300, modbus_crc
from lerobot_ext.virtual.wrench import LEVER_M


class TestConformance(ForceSensorConformance):
    @contextmanager
    def working_sensor(self) -> Iterator[RobotiqFT300]:
        with running_ft300() as self.bench:
            sensor = RobotiqFT300(RobotiqFT300Config(port=self.bench.port, reconnect_s=0.05))
            try:
                yield sensor
            finally:
                sensor.disconnect()

    def disturb(self) -> None:
        self.bench.tremble = 5.0

    def garble(self) -> None:
        faults = self.bench.device.faults
        faults.garbage = faults.cut = faults.spoilt = 0.4
        time.sleep(0.4)
        faults.garbage = faults.cut = faults.spoilt = 0.0

    def silence(self, silent: bool) -> None:
        self.bench.device.faults.silent = silent

    def unplug(self) -> None:
        self.bench.unplug()

    def plug_in(self) -> None:
        self.bench.plug()

    @contextmanager
    def wrong_device(self) -> Iterator[RobotiqFT300]:
        with self.working_sensor() as sensor:
            self.bench.device.faults.silent = True
            with chatter(self.bench.send):
                yield sensor


@pytest.fixture
def bench() -> Iterator[FT300Bench]:
    with running_ft300() as running:
        yield running


@pytest.fixture
def sensor(bench) -> Iterator[RobotiqFT300]:
    sensor = RobotiqFT300(RobotiqFT300Config(port=bench.port, reconnect_s=0.05))
    yield sensor
    sensor.disconnect()


def test_the_registry_makes_the_driver(bench):
    (made,) = make_force_sensors_from_configs({"wrist": RobotiqFT300Config(port=bench.port)}).values()
    assert type(made) is RobotiqFT300 and made.config.type == "robotiq_ft300"


def test_forces_are_newtons_and_torques_newton_metres(bench, sensor):
    sensor.connect()
    assert sensor.spec.units == ("N", "N", "N", "Nm", "Nm", "Nm") and sensor.spec.unit == "N, Nm"
    assert sensor.spec.limits == (300, 300, 300, 30, 30, 30)
    assert np.allclose(sensor.tare(), bench.device.sensor.source.offset, atol=0.15)
    bench.force[:] = 10, 2, -1
    expected = (2, -1, 10, LEVER_M, 2 * LEVER_M, 0)
    allowed = (0.4, 0.4, 0.4, 0.02, 0.02, 0.02)
    assert eventually(lambda: np.allclose(sensor.recent(5).mean(axis=0), expected, atol=allowed))


def test_the_stream_is_started_at_connect_and_stopped_at_disconnect(bench, sensor):
    assert not bench.device.sensor.streaming
    sensor.connect()
    assert bench.device.sensor.streaming
    sensor.disconnect()
    assert eventually(lambda: not bench.device.sensor.streaming)


def test_a_stream_that_goes_on_from_before_is_taken_over(bench, sensor):
    bench.device.sensor.streaming = True
    sensor.connect()
    assert np.isfinite(sensor.read()).all()


def test_a_stream_that_stops_is_started_again_without_anybody_noticing(bench, sensor):
    sensor.connect()
    with bench.lock:
        bench.device.sensor.streaming = False
    number = sensor.latest_raw()[0]
    assert eventually(lambda: sensor.latest_raw()[0] > number + 5)
    assert sensor.counts["reconnects"] == 0


def test_a_clean_stream_counts_nothing_wrong(sensor):
    sensor.connect()
    assert eventually(lambda: sensor.counts["received"] > 10)
    assert sensor.counts["dropped"] == sensor.counts["resynced"] == 0


def test_what_the_sensor_says_of_itself_is_in_the_metadata(sensor):
    sensor.connect()
    said = sensor.metadata()
    assert said["serial_number"] == "4654-532d-0000-0300" and said["production_year"] == "2021"


def test_frames_with_a_wrong_crc_are_counted_and_never_read(bench, sensor):
    sensor.connect()
    sensor.tare()
    bench.device.faults.spoilt = 0.5
    number = sensor.latest_raw()[0]
    assert eventually(lambda: sensor.latest_raw()[0] > number + 20)
    assert sensor.counts["dropped"] > 5
    assert np.abs(sensor.recent(20)).max() < 1


def test_a_port_that_sends_something_else(bench, sensor):
    bench.device.faults.silent = True
    with chatter(bench.send), pytest.raises(ConnectionError, match="no frame of an FT 300 with the Modbus"):
        sensor.connect()


def test_a_silent_port_says_what_to_look_at(bench, sensor):
    bench.device.faults.silent = True
    with pytest.raises(
        ConnectionError, match=r"^FT 300 on .*: no frame within 1 s at 19200 baud; is the sensor"
    ):
        sensor.connect()


@pytest.mark.parametrize(
    "wrong", [{"port": ""}, {"slave_id": 0}, {"baudrate": 0}, {"tare_max_torque_std": 0}]
)
def test_a_config_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError, match=r"robotiq_ft300|force sensor"):
        RobotiqFT300Config(**({"port": "/dev/ttyUSB0"} | wrong))


# Bytes.


def test_requests_and_crc_are_those_of_the_manual():
    assert read_request(9, 180, 1) == bytes.fromhex("09 03 00 B4 00 01 C5 64")
    assert crc16(b"123456789") == 0x4B37  # the check value of CRC-16/MODBUS


@given(st.binary(max_size=60))
def test_driver_and_emulator_agree_on_the_crc(data):
    assert crc16(data) == modbus_crc(data)


def frames_of(values: list[list[int]]) -> list[bytes]:
    return [with_crc(b"\x20\x4e" + np.array(v, "<i2").tobytes()) for v in values]


wrenches = st.lists(st.lists(st.integers(-32768, 32767), min_size=6, max_size=6), min_size=1, max_size=6)


@given(
    values=wrenches,
    garbage=st.lists(st.binary(max_size=40), min_size=7, max_size=7),
    cuts=st.lists(st.integers(0)),
)
def test_every_whole_frame_is_found_whatever_stands_between(values, garbage, cuts):
    sent = frames_of(values)
    stream = b"".join(junk + frame for junk, frame in zip(garbage, sent, strict=False)) + garbage[-1]
    finder, found = FT300Finder(), []
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in zip(edges, edges[1:], strict=False):
        found += finder.feed(stream[start:end])
    for frame in finder.feed(b"\0" * FT300Finder.size):
        found.append(frame)
    assert all(stream[f.start : f.start + 2] == b"\x20\x4e" for f in found)
    expected = np.array(values, np.float32) / (100, 100, 100, 1000, 1000, 1000)
    assert np.allclose([f.values for f in found], expected)


@given(values=wrenches, at=st.integers(0), bit=st.integers(0, 7))
def test_one_flipped_bit_loses_one_frame(values, at, bit):
    sent = frames_of(values)
    stream = bytearray(b"".join(sent))
    stream[at % len(stream)] ^= 1 << bit
    found = FT300Finder().feed(bytes(stream) + b"\0" * FT300Finder.size)
    assert len(found) == len(sent) - 1


def test_garbage_alone_is_not_hoarded():
    finder = FT300Finder()
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert finder.feed(rng.bytes(500)) == []
    assert len(finder._buffer) < 2 * finder.size


def test_an_answer_is_found_among_the_rest_of_a_stream():
    sensor = FT300()
    answer = sensor.feed(read_request(9, 510, 5))
    assert registers_in(b"\x20\x4e\x09\x03\x0a" + answer + b"\xff", 9, 5) == [0x4654, 0x532D, 0, 0x0300, 2021]
    assert registers_in(answer[:-1], 9, 5) is None
    assert sensor.feed(write_request(9, 410, 0x0200)) and sensor.streaming
