"""The doctor at one serial port: who is there is told from what arrives, and the port is left as it was."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import termios
import threading
import time

import pytest
from ports import plugged, streaming

from lerobot_ext.commands import doctor_ports, doctor_servos
from lerobot_ext.commands.doctor_ports import look
from lerobot_ext.sensors.ft300_frames import with_crc
from lerobot_ext.virtual import feetech


def skin_frame(magnetometers: int) -> bytes:
    values = [25.0, -31.5, 412.25, 900.125] * magnetometers
    return struct.pack(f"<{len(values)}f", *values) + b"\r\n"


def ft300_frame() -> bytes:
    return with_crc(b"\x20\x4e" + struct.pack("<6h", 12, -400, 3055, 5, -6, 7))


def arm(far: int, ending: threading.Event) -> None:
    """Six servos, as the lab has them."""
    bus = feetech.ServoBus(feetech.FOLLOWER)
    os.set_blocking(far, False)
    while not ending.wait(0.001):
        try:
            os.write(far, bus.feed(os.read(far, 4096)))
        except BlockingIOError:
            continue


def parrot(far: int, ending: threading.Event) -> None:
    """An adapter that repeats what it is sent, with no servo behind it."""
    os.set_blocking(far, False)
    while not ending.wait(0.001):
        try:
            os.write(far, os.read(far, 4096))
        except BlockingIOError:
            continue


def test_an_arm_is_asked_and_nothing_is_written_to_its_servos():
    heard = []
    bus = feetech.ServoBus(feetech.FOLLOWER)
    before = [bytes(servo.memory) for servo in bus.servos]

    def listening(far: int, ending: threading.Event) -> None:
        os.set_blocking(far, False)
        while not ending.wait(0.001):
            try:
                heard.append(os.read(far, 4096))
                os.write(far, bus.feed(heard[-1]))
            except BlockingIOError:
                continue

    with plugged(listening) as (path, _):
        answer = look(path)
    assert answer.kind == "arm" and list(answer.servos) == [1, 2, 3, 4, 5, 6]
    assert answer.servos[2] == doctor_servos.Servo(
        **{"id": 2, "model": 777, "voltage_v": 12.1, "min_voltage_v": 4.0, "max_voltage_v": 14.0},
        **{"temperature_c": 31, "max_temperature_c": 70, "torque": False, "homing_offset": 412},
        **{"range_min": 907, "range_max": 3187, "max_torque": 1000, "protection_current": 0},
    )
    assert [bytes(servo.memory) for servo in bus.servos] == before
    instructions = {packet[2] for packet in b"".join(heard).split(b"\xff\xff")[1:]}
    assert instructions == {doctor_servos.PING, doctor_servos.READ}


def test_a_lossy_bus_is_asked_again():
    def lossy(far: int, ending: threading.Event) -> None:
        bus = feetech.ServoBus(feetech.FOLLOWER, feetech.Faults(drop=0.1, corrupt=0.1, seed=3))
        os.set_blocking(far, False)
        while not ending.wait(0.001):
            try:
                os.write(far, bus.feed(os.read(far, 4096)))
            except BlockingIOError:
                continue

    with plugged(lossy) as (path, _):
        assert sorted(look(path).servos) == [1, 2, 3, 4, 5, 6]


def test_a_silent_port_is_silent_within_the_time_stated():
    with plugged() as (path, far):
        start_s = time.monotonic()
        assert look(path).kind == "silent"
        took_s = time.monotonic() - start_s
        sent = os.read(far, 4096)
    budget_s = doctor_ports.LISTEN_S + 6 * (doctor_servos.FIRST_WAIT_S + doctor_servos.SECOND_WAIT_S)
    assert took_s < budget_s + doctor_ports.MODBUS_S + 1, "what a busy computer adds is allowed for"
    assert budget_s + doctor_ports.MODBUS_S < 1.5
    assert sent.startswith(bytes.fromhex("ffff010201fb")), "a ping of servo 1"


def test_a_parrot_is_no_arm():
    with plugged(parrot) as (path, _):
        assert look(path).kind == "silent"


@pytest.mark.parametrize("magnetometers", [1, 3, 5, 10])
def test_a_skin_is_told_by_the_length_of_its_frames(magnetometers):
    with plugged(streaming(lambda: skin_frame(magnetometers))) as (path, far):
        answer = look(path)
    assert (answer.kind, answer.magnetometers) == ("skin", magnetometers) and answer.rate_hz > 0


def test_a_stream_is_listened_to_and_never_written_to():
    with plugged(streaming(lambda: skin_frame(5))) as (path, far):
        look(path)
        with pytest.raises(BlockingIOError):
            os.read(far, 1)


def test_an_ft300_that_streams():
    with plugged(streaming(ft300_frame)) as (path, _):
        answer = look(path)
    assert answer.kind == "ft300" and answer.streaming and answer.rate_hz > 0


def test_garbage_is_unknown_with_its_first_bytes():
    luck = random.Random(1)
    with plugged(streaming(lambda: luck.randbytes(50))) as (path, _):
        answer = look(path)
    assert answer.kind == "unknown" and answer.received > 50 and answer.baudrate == 115200
    assert len(bytes.fromhex(answer.sample)) == 12


def test_text_is_shown_as_text_though_its_lines_have_a_frames_length():
    line = b"0000000000000001\r\n"  # 18 bytes: one magnetometer's frame
    with plugged(streaming(lambda: line)) as (path, _):
        answer = look(path)
    assert answer.kind == "unknown" and answer.sample.startswith("'0000000000000001")


def test_settings_are_put_back_and_the_lock_let_go():
    with plugged(arm) as (path, _):
        near = os.open(path, os.O_RDWR | os.O_NOCTTY)
        settings = termios.tcgetattr(near)
        settings[4] = settings[5] = termios.B9600
        termios.tcsetattr(near, termios.TCSANOW, settings)
        before = termios.tcgetattr(near)
        assert look(path).kind == "arm"
        assert termios.tcgetattr(near) == before
        fcntl.flock(near, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(near)


def test_a_locked_port_is_busy_and_not_written_to():
    with plugged() as (path, far):
        near = os.open(path, os.O_RDWR | os.O_NOCTTY)
        fcntl.flock(near, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert look(path).kind == "busy"
        os.set_blocking(far, False)
        with pytest.raises(BlockingIOError):
            os.read(far, 1)
        os.close(near)


def test_held_it_is_not_even_opened(tmp_path):
    assert look(str(tmp_path / "nowhere"), holders=("12 (lerobot-record)",)).holders == (
        "12 (lerobot-record)",
    )


def test_a_file_is_no_port(tmp_path):
    (tmp_path / "file").touch()
    answer = look(str(tmp_path / "file"))
    assert answer.kind == "broken" and "no serial port" in answer.error


def test_a_port_that_goes_away_meanwhile_is_broken_and_nothing_is_raised():
    far_end = []

    def leave(far: int, ending: threading.Event) -> None:
        far_end.append(far)

    with plugged(leave) as (path, far):
        timer = threading.Timer(0.1, lambda: os.dup2(os.open(os.devnull, os.O_RDWR), far))
        timer.start()
        answer = look(path)
        timer.join()
    assert answer.kind in ("broken", "silent")
