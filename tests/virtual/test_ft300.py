"""The FT 300's registers and stream, as its manual has them."""

import time

import numpy as np
import pytest
import serial

from lerobot_ext.virtual.ft300 import FT300, STOPS, FT300Port, StreamFaults, modbus_crc
from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.wrench import LEVER_M, NOISE, WrenchSource

START = bytes.fromhex("09 10 01 9A 00 01 02 02 00 CD CA")
FORCES = bytes.fromhex("09 03 00 B4 00 06 84 A6")


def crc_fits(data):
    return modbus_crc(data[:-2]) == int.from_bytes(data[-2:], "little")


def test_the_manuals_requests_have_a_crc_that_fits():
    assert crc_fits(FORCES) and crc_fits(bytes.fromhex("09 03 00 B4 00 01 C5 64")) and crc_fits(START)


def test_forces_can_be_read_from_registers():
    sensor = FT300(seed=1)
    sensor.step(np.array([50.0, 0, 0]))
    answer = sensor.feed(FORCES)
    assert answer[:3] == bytes([9, 3, 12]) and crc_fits(answer)
    numbers = np.frombuffer(answer[3:-2], ">i2") / (100, 100, 100, 1000, 1000, 1000)
    assert np.allclose(numbers, sensor.source.offset + (0, 0, 50, 0, 0, 0), atol=0.6)


def test_a_stream_is_started_by_its_register_and_stopped_by_ff():
    sensor = FT300()
    assert sensor.step(np.zeros(3)) == b""
    assert sensor.feed(START) == START[:6] + sensor_crc(START[:6])
    frame = sensor.step(np.zeros(3))
    assert len(frame) == 16 and frame[:2] == b"\x20\x4e" and crc_fits(frame)
    assert sensor.feed(FORCES) == b"" and sensor.streaming  # it hears nothing but the end
    sensor.feed(b"\xff" * (STOPS - 1) + b"\x00")
    assert sensor.streaming
    sensor.feed(b"\xff" * STOPS)
    assert not sensor.streaming and sensor.step(np.zeros(3)) == b""
    assert sensor.feed(FORCES)


def sensor_crc(data):
    return modbus_crc(data).to_bytes(2, "little")


def test_requests_are_found_among_garbage_and_in_pieces():
    sensor = FT300()
    assert sensor.feed(b"\x09\x03hello" + FORCES[:5]) == b""
    assert sensor.feed(FORCES[5:])[:3] == bytes([9, 3, 12])


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        ("09 03 27 10 00 01", "09 83 02"),
        ("09 10 00 01 00 01 02 02 00", "09 90 02"),
        ("09 10 01 9A 00 01 02 01 00", "09 90 03"),
    ],
)
def test_what_there_is_not_is_refused(request_, refusal):
    request_ = bytes.fromhex(request_)
    answer = FT300().feed(request_ + sensor_crc(request_))
    assert answer[:-2] == bytes.fromhex(refusal) and crc_fits(answer)


def test_the_wrench_is_the_force_at_a_lever_with_the_stated_noise():
    source = WrenchSource(seed=2)
    force = np.array([10.0, 2, -1])
    wrenches = np.array([source.measure(force) for _ in range(2000)]) - source.offset
    assert np.allclose(wrenches.std(axis=0), NOISE, rtol=0.1)
    arm, pushed = np.array([0, 0, LEVER_M]), np.array([2, -1, 10])
    assert np.allclose(wrenches.mean(axis=0), [*pushed, *np.cross(arm, pushed)], atol=0.02)


def test_faults_come_in_the_share_that_was_asked_for():
    frame = bytes(range(16))
    for name in ("garbage", "cut", "spoilt"):
        faults = StreamFaults(**{name: 0.3})
        changed = sum(faults.strike(frame) != frame for _ in range(1000))
        assert 230 < changed < 370


def test_nobody_reads_nothing_is_sent_and_a_reader_gets_fresh_frames(tmp_path):
    terminal = Terminal(tmp_path / "ft300", keep_open=False)
    port = FT300Port(terminal)
    try:
        port.tick(np.zeros(3))
        with serial.Serial(str(terminal.link), 19200, timeout=1) as reader:
            reader.write(START)
            for _ in range(5):
                port.tick(np.zeros(3))
            heard = reader.read(8 + 16)
            assert heard[:6] == START[:6] and heard[8:10] == b"\x20\x4e"
            reader.write(b"\xff" * 50)
            reader.flush()
        time.sleep(0.01)
        port.tick(np.zeros(3))  # what was said before leaving is heard
        assert not port.sensor.streaming
        terminal.unplug()
        port.tick(np.zeros(3))
    finally:
        terminal.close()
