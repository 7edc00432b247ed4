"""The driver against a board on a pseudo-terminal: good streams, bad streams, none."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from benches import chatter, eventually
from skin_board import Board, running_board

from lerobot_ext.sensors import AnySkinConfig, TareRefused, make_force_sensors_from_configs
from lerobot_ext.sensors.anyskin import AnySkin
from lerobot_ext.sensors.conformance import ForceSensorConformance
from lerobot_ext.virtual.skin import AXES, POSITIONS


class TestConformance(ForceSensorConformance):
    @contextmanager
    def working_sensor(self) -> Iterator[AnySkin]:
        with running_board() as self.board:
            sensor = AnySkin(AnySkinConfig(port=self.board.port, reconnect_s=0.05))
            try:
                yield sensor
            finally:
                sensor.disconnect()

    def disturb(self) -> None:
        self.board.noise = 50

    def garble(self) -> None:
        self.board.pause()
        for junk in (b"\x00\x01\x02\r\n\r\n\xff" * 30, self.board.frame()[:37], self.board.frame()[11:]):
            self.board.send(junk)
        self.board.streaming.set()

    def silence(self, silent: bool) -> None:
        if silent:
            self.board.pause()
        else:
            self.board.streaming.set()

    def unplug(self) -> None:
        self.board.unplug()

    def plug_in(self) -> None:
        self.board.plug()

    @contextmanager
    def wrong_device(self) -> Iterator[AnySkin]:
        with self.working_sensor() as sensor:
            self.board.pause()
            with chatter(self.board.send):
                yield sensor


class TestConformanceCalibrated(TestConformance):
    """With temperatures, and a matrix that makes forces of all of it."""

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path):
        matrix = np.zeros((3, 20))
        matrix[0, 2] = matrix[1, 0] = matrix[2, 1] = 0.01
        self.file = tmp_path / "skin.json"
        given = {"matrix": matrix.tolist(), "channels": ["Fn", "Fx", "Fy"], "unit": "N"}
        self.file.write_text(json.dumps(given))

    @contextmanager
    def working_sensor(self) -> Iterator[AnySkin]:
        with running_board() as self.board:
            config = AnySkinConfig(
                port=self.board.port, reconnect_s=0.05, temperature=True, calibration=str(self.file)
            )
            sensor = AnySkin(config)
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


def test_a_refused_tare_says_channel_scatter_limit_and_what_to_do(board, skin):
    skin.connect()
    board.field = board.field.astype(float)
    board.noise = 50
    with pytest.raises(TareRefused) as refused:
        skin.tare()
    assert re.search(r"channel m\d_[xyz] scatters by \d\d.*uT, more than the 5 uT", str(refused.value))
    assert "let go of it" in str(refused.value) and "tare_max_std" in str(refused.value)
    assert skin.baseline is None


def test_a_tare_is_refused_while_the_field_moves_slowly(board, skin):
    skin.connect()
    stop = threading.Event()

    def press() -> None:
        while not stop.wait(0.01):
            board.field[2, 3] += 0.4

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    try:
        with pytest.raises(TareRefused, match=r"channel m2_z (moved|scatters) by"):
            skin.tare()
    finally:
        stop.set()
        thread.join()


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

    monkeypatch.setattr("lerobot_ext.sensors.serial_stream.serial.Serial", refuse)
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
    with chatter(board.send):
        assert "no frame of 5 magnetometers among them" in error_of(skin.connect)


def test_a_skin_that_goes_silent_is_an_error_of_the_reader(board, skin):
    skin.connect()
    board.pause()
    assert "no frame within 1 s" in error_of(lambda: [skin.read(timeout_ms=20_000) for _ in range(100)])
    assert "no frame within 1 s" in error_of(skin.read_latest)
    assert skin.is_connected


def test_a_skin_that_comes_back_under_another_name_is_found_by_its_serial_number(board):
    named = AnySkin(AnySkinConfig(port=board.port, reconnect_s=0.05))
    with named:
        board.unplug()
        assert "lost" in error_of(lambda: [named.read(timeout_ms=20_000) for _ in range(100)])
        board.plug()
        assert eventually(lambda: named.counts["reconnects"] == 1)
        assert np.isfinite(named.read()).all()
        assert str(named) == f"skin on {board.port}1"
    assert str(named) == f"skin on {board.port}"


def test_another_device_that_takes_the_name_is_left_alone(board, tmp_path):
    with AnySkin(AnySkinConfig(port=board.port, reconnect_s=0.05)) as skin, running_board() as other:
        board.unplug()
        error_of(lambda: [skin.read(timeout_ms=20_000) for _ in range(100)])
        os.symlink(os.path.realpath(other.port), board.port)
        time.sleep(0.3)
        error_of(skin.read_latest)
        assert not eventually(lambda: skin.counts["reconnects"], within_s=0.3)
        os.unlink(board.port)


def test_without_reconnecting_a_lost_skin_stays_lost_until_it_is_connected_again(board):
    skin = AnySkin(AnySkinConfig(port=board.port, reconnect_s=0))
    skin.connect()
    board.unplug()
    assert "plug it in again and reconnect" in error_of(
        lambda: [skin.read(timeout_ms=20_000) for _ in range(100)]
    )
    board.plug()
    time.sleep(0.2)
    error_of(skin.read_latest)
    skin.disconnect()
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
    "wrong",
    [
        {"port": ""},
        {"num_magnetometers": 0},
        {"max_age_ms": 0},
        {"tare_samples": -1},
        {"tare_samples": 1},
        {"tare_duration_s": 0},
        {"reduce": "median"},
        {"on_error": "ignore"},
        {"reconnect_s": -1},
        {"layout_mm": [[0, 0]]},
        {"max_drift": float("nan")},
    ],
)
def test_a_config_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError, match="anyskin|force sensor"):
        AnySkinConfig(**({"port": "/dev/ttyACM2"} | wrong))


def test_temperatures_can_be_channels_that_are_not_tared(board):
    with AnySkin(AnySkinConfig(port=board.port, temperature=True)) as skin:
        spec = skin.spec
        assert spec.channels[15:] == ("m0_t", "m1_t", "m2_t", "m3_t", "m4_t")
        assert spec.unit == "uT, °C" and spec.units[14:16] == ("uT", "°C")
        assert (skin.tare()[15:] == 0).all()
        sample = skin.read()
        assert np.allclose(sample[15:], board.field[:, 0], atol=1) and np.abs(sample[:15]).max() < 1


@pytest.mark.parametrize("magnetometers", [1, 5, 10])
def test_any_number_of_magnetometers(magnetometers):
    with running_board(magnetometers) as board:
        config = AnySkinConfig(port=board.port, num_magnetometers=magnetometers)
        with AnySkin(config) as skin:
            assert np.allclose(skin.read(), board.field[:, 1:].reshape(-1), atol=1)
            assert (skin.metadata()["layout_mm"] is None) == (magnetometers != 5)


def test_the_layout_is_the_lab_boards_and_can_be_given():
    said = AnySkin(AnySkinConfig(port="/dev/none")).metadata()
    assert np.array_equal(np.array(said["layout_mm"]) / 7, POSITIONS)
    assert np.array_equal(said["layout_axes"], AXES)
    mine = [[float(k), 1.0] for k in range(5)]
    said = AnySkin(AnySkinConfig(port="/dev/none", layout_mm=mine)).metadata()
    assert said["layout_mm"] == mine and said["layout_axes"] is None


def test_samples_older_than_max_age_are_in_no_mean(board):
    with AnySkin(AnySkinConfig(port=board.port, reduce="mean", max_age_ms=100)) as skin:
        skin.tare()
        skin.read_latest()
        time.sleep(0.3)
        board.field[:, 1:] += 100
        time.sleep(0.3)
        assert np.allclose(skin.read_latest(), 100, atol=1)


def test_async_read_does_not_return_what_came_before_a_long_silence(board):
    with AnySkin(AnySkinConfig(port=board.port, max_age_ms=100)) as skin:
        skin.tare()
        board.pause()
        time.sleep(0.2)
        with pytest.raises(TimeoutError):
            skin.async_read(timeout_ms=50)
        board.field[:, 1:] += 100
        board.streaming.set()
        assert np.allclose(skin.async_read(timeout_ms=5000), 100, atol=1)


def test_drift_is_the_offset_that_has_grown_since(board, skin):
    skin.connect()
    skin.tare()
    board.field[4, 2] += 30
    assert eventually(lambda: (drift := skin.drift()) is not None and drift.exceeds)
    drift = skin.drift()
    assert drift.channel == "m4_y" and drift.amount == pytest.approx(30, abs=1) and drift.allowed == 20
    assert drift.unit == "uT"
