"""The driver against a board on a pseudo-terminal: good streams, bad streams, none."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from skin_board import Board, running_board

from lerobot_ext.sensors import AnySkinConfig, make_force_sensors_from_configs
from lerobot_ext.sensors.anyskin import AnySkin
from lerobot_ext.sensors.conformance import ForceSensorConformance


class TestConformance(ForceSensorConformance):
    @contextmanager
    def working_sensor(self) -> Iterator[AnySkin]:
        with running_board() as board:
            sensor = AnySkin(AnySkinConfig(port=board.port))
            try:
                yield sensor
            finally:
                sensor.disconnect()


@pytest.fixture
def board() -> Iterator[Board]:
    with running_board() as running:
        yield running


@pytest.fixture
def skin(board) -> Iterator[AnySkin]:
    sensor = AnySkin(AnySkinConfig(port=board.port))
    yield sensor
    sensor.disconnect()


def eventually(condition, within_s: float = 10.0) -> bool:
    deadline = time.perf_counter() + within_s
    while time.perf_counter() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def error_of(call) -> str:
    with pytest.raises(ConnectionError) as caught:
        call()
    return str(caught.value)


def test_channels_are_the_fields_and_temperatures_are_kept_aside(board, skin):
    skin.connect()
    assert skin.spec.channels[:4] == ("m0_x", "m0_y", "m0_z", "m1_x") and len(skin.spec.channels) == 15
    assert np.allclose(skin.read(), board.field[:, 1:].reshape(-1), atol=1)
    assert np.allclose(skin.temperatures, board.field[:, 0], atol=1)


def test_the_registry_makes_the_driver(board):
    (made,) = make_force_sensors_from_configs({"skin": AnySkinConfig(port=board.port)}).values()
    assert type(made) is AnySkin and not made.is_connected


def test_tare_makes_the_field_of_now_zero(board, skin):
    skin.connect()
    baseline = skin.tare()
    assert np.allclose(baseline, board.field[:, 1:].reshape(-1), atol=0.2)
    assert np.abs(skin.read()).max() < 1
    board.field[3, 2] += 50
    assert eventually(lambda: skin.read()[10] > 45)


def test_tare_warns_when_the_samples_scatter(board, skin, caplog):
    skin.connect()
    skin.tare()
    assert "scatter" not in caplog.text
    board.noise = 50
    with caplog.at_level(logging.WARNING):
        skin.tare()
    assert "samples scatter by" in caplog.text and "let go" in caplog.text


def test_tare_refuses_too_few_samples_and_keeps_the_old_zero(board, skin):
    skin.connect()
    old = skin.tare()
    board.pause()
    text = error_of(lambda: skin.tare(num_samples=5))
    assert "no frame within 1 s" in text or "only 0 of 5 samples" in text
    assert np.array_equal(skin.baseline, old)


def test_the_rate_is_measured(skin):
    skin.connect()
    assert eventually(lambda: (skin.measured_rate_hz or 0) > 5)
    assert skin.measured_rate_hz < 1000


def test_a_sample_is_stamped_when_it_came_and_not_when_it_was_asked_for(board, skin):
    skin.connect()
    board.pause()
    time.sleep(0.3)
    _, at_s, _ = skin.latest_raw()
    assert time.perf_counter() - at_s > 0.25
    with pytest.raises(TimeoutError, match=r"ms old, more than 200 ms"):
        skin.read_latest(max_age_ms=200)


def test_frames_that_piled_up_before_connecting_are_not_taken_for_new(board, skin):
    board.streaming.clear()
    old = np.full((5, 4), 7, "<f4").tobytes() + b"\r\n"
    board.send(old * 20)
    board.streaming.set()
    skin.connect()
    assert not np.array_equal(skin.latest_raw()[2], np.full(15, 7, np.float32))


def test_garbage_and_cut_frames_are_skipped_and_the_stream_goes_on(board, skin):
    skin.connect()
    skin.tare()
    board.streaming.clear()
    time.sleep(0.05)
    for junk in (b"\x00\x01\x02\r\n\r\n\xff" * 30, board.frame()[:37], board.frame()[11:]):
        board.send(junk)
    board.streaming.set()
    number = skin.latest_raw()[0]
    assert eventually(lambda: skin.latest_raw()[0] > number + 20)
    assert skin.finder.lost_boundary >= 1
    assert np.abs(skin.read()).max() < 1


def test_not_finite_numbers_never_come_out(board, skin):
    skin.connect()
    board.field[1, 1] = np.nan
    time.sleep(0.2)
    assert np.isfinite(skin.latest_raw()[2]).all() and skin.finder.rejected > 0
    board.field[1, 1] = 1
    assert np.isfinite(skin.read()).all()


def test_no_port():
    text = error_of(AnySkin(AnySkinConfig(port="/dev/does_not_exist")).connect)
    assert "there is no port /dev/does_not_exist" in text


def test_a_port_that_is_no_serial_port(tmp_path):
    (tmp_path / "file").write_text("")
    text = error_of(AnySkin(AnySkinConfig(port=str(tmp_path / "file"))).connect)
    assert "cannot be opened as a serial port" in text


def test_no_permission(board, skin, monkeypatch):
    # Tests may run as root, whom no file mode keeps out: the refusal itself is made up.
    def refuse(*_, **__):
        import serial

        raise serial.SerialException(13, "could not open port: [Errno 13] Permission denied")

    monkeypatch.setattr("lerobot_ext.sensors.anyskin.serial.Serial", refuse)
    assert "sudo usermod -aG dialout $USER" in error_of(skin.connect)


def test_a_port_that_another_program_holds(board, skin):
    skin.connect()
    assert "another program holds the port" in error_of(AnySkin(AnySkinConfig(port=board.port)).connect)
    assert np.isfinite(skin.read()).all()


def test_a_silent_port_is_given_up_after_a_second(board, skin):
    board.pause()
    start_s = time.perf_counter()
    text = error_of(skin.connect)
    assert text.startswith(f"skin on {board.port}: no frame within 1 s at 115200 baud;")
    assert time.perf_counter() - start_s < 5
    assert not skin.is_connected


def test_a_port_that_sends_something_else(board, skin):
    board.pause()
    done = threading.Event()

    def chatter():
        while not done.wait(0.02):
            board.send(b"hello, I am a thermometer: 21.5\r\n")

    thread = threading.Thread(target=chatter, daemon=True)
    thread.start()
    try:
        assert "no frame of 5 magnetometers among them" in error_of(skin.connect)
    finally:
        done.set()
        thread.join()


def test_a_skin_that_goes_silent_is_an_error_of_the_reader(board, skin):
    skin.connect()
    board.pause()
    assert "no frame within 1 s" in error_of(lambda: [skin.read(timeout_ms=20_000) for _ in range(100)])
    assert "no frame within 1 s" in error_of(skin.read_latest)
    assert skin.is_connected


def test_a_cable_pulled_is_an_error_of_the_reader_and_plugging_in_mends_it(board, skin):
    skin.connect()
    board.vanish()
    assert "lost" in error_of(lambda: [skin.read(timeout_ms=20_000) for _ in range(100)])
    skin.disconnect()
    with running_board() as again:
        skin.config.port = again.port
        skin.connect()
        assert np.isfinite(skin.read()).all()
        skin.disconnect()


def test_a_failed_connect_releases_the_port(board, skin):
    board.pause()
    error_of(skin.connect)
    board.streaming.set()
    skin.connect()
    skin.disconnect()


@pytest.mark.parametrize(
    "wrong", [{"port": ""}, {"num_magnetometers": 0}, {"max_age_ms": 0}, {"tare_samples": -1}]
)
def test_a_config_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError, match="anyskin|force sensor"):
        AnySkinConfig(**({"port": "/dev/ttyACM2"} | wrong))
