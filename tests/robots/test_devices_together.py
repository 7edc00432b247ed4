"""A robot's cameras and sensors as a set, with stand-ins: what is opened, read and released in which order."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from lerobot_ext.robots import device_set
from lerobot_ext.robots.device_set import SENSOR_WARN_MS, DeviceSet
from lerobot_ext.sensors.zero import TareRefused


class Driver:
    def __init__(self, name, did, channels=(), fps=None, told=None):
        self.name, self.did, self.fps = name, did, fps
        self.spec = SimpleNamespace(channels=channels)
        self.is_connected, self.fails = False, {}
        if told is not None:
            self.metadata = lambda: told

    def _do(self, what):
        self.did.append(f"{what} {self.name}")
        if what in self.fails:
            raise self.fails[what]

    def connect(self):
        self._do("connect")
        self.is_connected = True

    def disconnect(self):
        self._do("disconnect")
        self.is_connected = False

    def tare(self, num_samples):
        self._do(f"tare {num_samples}")
        return np.zeros(len(self.spec.channels), np.float32)


@pytest.fixture
def did():
    return []


@pytest.fixture
def cameras(did):
    return {name: Driver(name, did, fps=50) for name in ("top", "side")}


@pytest.fixture
def sensors(did):
    return {"skin": Driver("skin", did, ("x", "y")), "wrist": Driver("wrist", did, ("z",))}


@pytest.fixture
def devices(cameras, sensors):
    return DeviceSet(cameras, sensors)


def test_they_are_opened_in_order_and_all_that_are_open_are_released(devices, cameras, sensors, did, caplog):
    devices.connect()
    assert did == ["connect top", "connect side", "connect skin", "connect wrist"]
    cameras["top"].is_connected = False
    sensors["skin"].fails["disconnect"] = RuntimeError("it\nis gone")
    cameras["side"].fails["disconnect"] = OSError("busy")
    del did[:]
    devices.release()
    assert did == ["disconnect skin", "disconnect wrist", "disconnect side"]
    assert "sensor 'skin': releasing it failed: it is gone" in caplog.text and "camera 'side'" in caplog.text


@pytest.mark.parametrize(
    "error", [RuntimeError("no\nframes"), ConnectionError("no frames"), TimeoutError("late")]
)
def test_a_camera_that_cannot_be_opened_is_named(devices, cameras, did, error):
    cameras["side"].fails["connect"] = error
    said = "camera 'side': no frames" if type(error) is RuntimeError else str(error)
    with pytest.raises((ConnectionError, TimeoutError), match=f"^{said}$"):
        devices.connect()
    assert did == ["connect top", "connect side"]


def test_all_sensors_are_tared_and_a_refusal_at_the_start_is_a_warning(devices, sensors, did, caplog):
    assert {name: len(zero) for name, zero in devices.tare(7).items()} == {"skin": 2, "wrist": 1}
    assert sorted(did) == ["tare 7 skin", "tare 7 wrist"]
    sensors["skin"].fails["tare None"] = TareRefused("it is touched.")
    with pytest.raises(TareRefused):
        devices.tare()
    devices.tare_for_now()
    assert "it is touched. It is tared again when an episode starts." in caplog.text
    assert DeviceSet({}, {}).tare() == {}


def test_force_is_that_of_all_sensors_in_their_order(devices):
    assert devices.force_features["force"].names == ["skin.x", "skin.y", "wrist.z"]
    assert DeviceSet({}, {}).force_features == {}


def test_who_fails_how_and_how_old_it_may_be_is_the_robot_s_to_say(devices, cameras):
    cameras["top"].config = SimpleNamespace(on_error="skip_frame")
    devices.start({"skin": "skip_frame"}, {"wrist": 7.0, "side": 0.0})
    assert {each.name: (each.on_error, each.warn_age_ms) for each in devices._devices} == {
        "top": ("skip_frame", 20.0),
        "side": ("stop", 0.0),
        "skin": ("skip_frame", SENSOR_WARN_MS),
        "wrist": ("stop", 7.0),
    }
    devices.start({"top": "stop"}, {})
    assert devices._devices[0].on_error == "stop"


class Shown:
    """A `Device` that shows what it is told to."""

    def __init__(self, name, is_camera, values, at_s):
        self.name, self.is_camera, self.values, self.at_s, self.ages = name, is_camera, values, at_s, []

    def read(self):
        return self.values, self.at_s

    def note_age(self, age_ms):
        self.ages.append(age_ms)


def test_an_observation_has_the_newest_of_all_and_how_old_it_was(devices):
    devices._devices = [
        Shown("top", True, {"top": 1, "top_depth": 2}, 9.98),
        Shown("side", True, {"side": 3}, None),
        Shown("skin", False, {"skin": np.array([1.0, 2.0])}, 10.0),
        Shown("wrist", False, {"wrist": np.array([3.0])}, 10.01),
    ]
    shown, ages_ms = devices.read(10.0)
    assert shown.pop("force").tolist() == [1, 2, 3]
    assert shown == {"top": 1, "top_depth": 2, "side": 3}
    assert ages_ms == pytest.approx({"top": 20.0, "skin": 0.0, "wrist": -10.0})
    assert [each.ages for each in devices._devices] == [
        [ages_ms["top"]],
        [],
        [ages_ms["skin"]],
        [ages_ms["wrist"]],
    ]


def test_what_they_tell_of_themselves(did):
    told = {"color": {"serial": "1"}, "depth": {"unit": "mm"}}
    cameras = {
        "top": Driver("top", did, told=told),
        "side": Driver("side", did, told={"color": None}),
        "x": Driver("x", did),
    }
    sensors = {"skin": Driver("skin", did, told={"serial": "2"}), "wrist": Driver("wrist", did)}
    assert DeviceSet(cameras, sensors).metadata() == {
        "observation.images.top": {"camera": {"serial": "1"}},
        "observation.images.top_depth": {"camera": {"unit": "mm"}},
        "observation.force": {"sensors": {"skin": {"serial": "2"}}},
    }
    assert DeviceSet({}, {}).metadata() == {}


def test_releasing_says_what_failed_and_goes_on(caplog):
    with caplog.at_level(logging.WARNING):
        device_set.attempt("arm", lambda: 1 / 0)
        device_set.attempt("other", lambda: None)
    assert [each.getMessage() for each in caplog.records] == ["arm: releasing it failed: division by zero"]
