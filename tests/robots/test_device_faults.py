"""Cameras and sensors that are old, silent or gone: what an observation says about them, and what it does."""

import logging
import signal
import threading
import time

import numpy as np
import pytest
from lerobot.cameras import Camera, CameraConfig
from lerobot.cameras.zmq import ZMQCameraConfig

from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.robots.devices import Device, DeviceError


class StampedCamera(Camera):
    """A camera like LeRobot's own: the picture is there at once, and `latest_timestamp` says when it was taken."""

    def __init__(self, age_ms: float | None = 0.0, on_error: str | None = None):
        self.config = CameraConfig(fps=30, width=8, height=6)
        super().__init__(self.config)
        if on_error:
            self.config.on_error = on_error
        self.age_ms, self.failure, self.metadata = age_ms, None, lambda: {"color": {"serial": "7"}}
        self.is_open = False

    @property
    def latest_timestamp(self):
        return None if self.age_ms is None else time.perf_counter() - self.age_ms / 1e3

    @property
    def is_connected(self):
        return self.is_open

    @staticmethod
    def find_cameras():
        return []

    def connect(self, warmup=True):
        self.is_open = True

    def read(self):
        return self.read_latest()

    def async_read(self, timeout_ms=200):
        return self.read_latest()

    def read_latest(self, max_age_ms=500):
        if self.failure:
            raise self.failure
        return np.full((6, 8, 3), 7, np.uint8)

    def disconnect(self):
        self.is_open = False


@pytest.fixture
def make_with(make):
    """A connected robot with that camera as `top`; settings that name it are set afterwards."""

    def make_one(camera: Camera, sensors: bool = False, **more):
        robot = make(sensors=sensors)
        robot.cameras["top"] = camera
        for key, value in more.items():
            setattr(robot.config, key, value)
        robot.connect()
        return robot

    return make_one


def warnings(caplog) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_the_age_of_a_picture_is_that_at_the_read_of_the_joints(make_with):
    robot = make_with(camera := StampedCamera(40.0))
    assert robot.last_report is None
    for age_ms in (40.0, 0.0, 400.0):
        camera.age_ms = age_ms
        assert robot.get_observation()["top"].shape == (6, 8, 3)
        assert robot.last_report.ages_ms["top"] == pytest.approx(age_ms, abs=15)


def test_an_age_that_is_not_known_is_absent(make_with):
    robot = make_with(StampedCamera(None))
    robot.get_observation()
    assert robot.last_report.ages_ms == {}


def test_ages_of_a_live_sensor_are_small_and_counted(make, caplog):
    robot = make()
    robot.connect()
    with caplog.at_level(logging.DEBUG, "lerobot_ext.robots"):
        ages = []
        for _ in range(20):
            robot.get_observation()
            ages.append(robot.last_report.ages_ms["skin"])
            time.sleep(0.005)
    assert -5 < np.median(ages) < 25
    assert "observation_ages_ms: {'skin': " in caplog.text
    assert robot.last_report.counts["skin.skipped"] == 0


def test_an_old_picture_is_warned_of_once_with_the_remedy(make_with, caplog):
    robot = make_with(camera := StampedCamera(0.0))
    robot.get_observation()
    assert not warnings(caplog)
    camera.age_ms = 50.0
    for _ in range(5):
        robot.get_observation()
    (text,) = warnings(caplog)
    assert "camera 'top'" in text and "more than 33 ms" in text and "USB 3 port" in text


def test_what_is_warned_of_can_be_set(make_with, caplog):
    robot = make_with(StampedCamera(50.0), warn_age_ms={"top": 300.0})
    robot.get_observation()
    assert not warnings(caplog)


def test_a_failing_camera_ends_the_run_and_is_named(make_with):
    robot = make_with(camera := StampedCamera())
    camera.failure = TimeoutError("latest frame is too old: 900 ms.")
    with pytest.raises(ConnectionError, match="^camera 'top': latest frame is too old: 900 ms$"):
        robot.get_observation()


@pytest.mark.parametrize("where", ["its own configuration", "the robot's"])
def test_a_camera_that_may_be_skipped_is_waited_for(make_with, caplog, where):
    own = where == "its own configuration"
    camera = StampedCamera(on_error="skip_frame" if own else None)
    robot = make_with(camera, **({} if own else {"on_error": {"top": "skip_frame"}}))
    camera.failure = RuntimeError("read thread is not running.")
    threading.Timer(0.3, setattr, [camera, "failure", None]).start()
    start_s = time.perf_counter()
    with caplog.at_level(logging.INFO, "lerobot_ext.robots"):
        observation = robot.get_observation()
    assert observation["top"].max() == 7 and time.perf_counter() - start_s > 0.25
    assert robot.last_report.counts["top.skipped"] == 1
    assert (
        caplog.text.count("read thread is not running") == 1 and "camera 'top' is back after" in caplog.text
    )


def test_the_robots_setting_overrides_the_devices_own(make_with):
    robot = make_with(camera := StampedCamera(on_error="skip_frame"), on_error={"top": "stop"})
    camera.failure = TimeoutError("too old")
    with pytest.raises(ConnectionError, match="camera 'top': too old"):
        robot.get_observation()


def test_waiting_has_an_end(make_with):
    robot = make_with(camera := StampedCamera(on_error="skip_frame"), skip_limit_s=0.2)
    camera.failure = TimeoutError("too old")
    with pytest.raises(ConnectionError, match=r"camera 'top': it has not come back within 0.2 s .*: too old"):
        robot.get_observation()


def test_ctrl_c_ends_the_wait_even_if_somebody_else_handles_it(make_with):
    robot = make_with(camera := StampedCamera(on_error="skip_frame"), skip_limit_s=60)
    camera.failure = TimeoutError("too old")
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))  # as LeRobot's rollout does
    try:
        threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            robot.get_observation()
        assert heard == [1]
        signal.raise_signal(signal.SIGINT)  # afterwards it is theirs again
        assert heard == [1, 1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_camera_whose_thread_gave_up_is_connected_again(make_with):
    camera = StampedCamera(on_error="skip_frame")
    robot = make_with(camera)
    camera.thread = threading.Thread(target=lambda: None)  # has ended, or never began
    camera.failure = RuntimeError("read thread is not running.")

    def connect(warmup=True):
        camera.is_open, camera.failure = True, None

    camera.connect = connect
    robot.get_observation()
    assert robot.last_report.counts["top.skipped"] == 1 and robot.is_connected


def test_a_skin_that_falls_silent_is_waited_for_too(bench, make):
    robot = make()
    robot.force_sensors["skin"].config.on_error = "skip_frame"
    robot.connect()
    bench.skin_streams = False
    time.sleep(0.6)  # older than max_age_ms
    threading.Timer(0.2, setattr, [bench, "skin_streams", True]).start()
    assert robot.get_observation()["force"].shape == (15,)
    assert robot.last_report.counts["skin.skipped"] == 1


def test_a_picture_seen_twice_is_counted():
    camera = StampedCamera()
    device = Device("top", camera, "stop", 33.0)
    device.read()
    device.read()
    assert device.counts()["top.repeated"] == 0
    type(camera).latest_timestamp, before = 5.0, type(camera).latest_timestamp
    try:
        device.read()
        device.read()
    finally:
        type(camera).latest_timestamp = before
    assert device.counts()["top.repeated"] == 1


def test_an_error_is_not_labelled_twice():
    device = Device("top", StampedCamera(), "stop", 33.0)
    assert str(DeviceError(device, TimeoutError("camera 'top': it hangs."))) == "camera 'top': it hangs"


def test_what_devices_know_of_themselves_belongs_to_the_features(make_with):
    robot = make_with(StampedCamera(), sensors=True)
    found = robot.feature_metadata()
    assert found["observation.images.top"] == {"camera": {"serial": "7"}}
    assert "observation.images.top_depth" not in found
    assert found["observation.force"]["sensors"]["skin"]["channels"][0] == "m0_x"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"on_error": {"side": "stop"}}, "on_error names 'side', but there is no such camera or sensor.*top"),
        ({"on_error": {"top": "wait"}}, "on_error of 'top' is 'wait'; expected stop or skip_frame"),
        ({"warn_age_ms": {"top": 0}}, "warn_age_ms of 'top' is 0"),
        ({"skip_limit_s": -1}, "skip_limit_s is -1"),
        ({"num_read_retries": -1}, "num_read_retries is -1"),
    ],
)
def test_settings_that_cannot_be_meant(given, complaint):
    camera = ZMQCameraConfig(server_address="127.0.0.1", port=9, fps=30, width=8, height=8)
    with pytest.raises(ValueError, match=complaint):
        SO101FollowerExtConfig(port="/dev/null", cameras={"top": camera}, **given)
