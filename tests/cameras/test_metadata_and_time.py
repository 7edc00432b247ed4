"""What a camera tells of itself, and whose time its frames have."""

import json
import time

import pytest
from camera_rig import error_of, make
from fake_lab import FakeLab, H, W, camera_info

from lerobot_ext.cameras import Intrinsics
from lerobot_ext.cameras.librealsense import UsbSource
from lerobot_ext.virtual import realsense

rs = pytest.importorskip("pyrealsense2", exc_type=ImportError)


def test_the_metadata_is_all_that_is_needed_years_later(tmp_path):
    lab = FakeLab(tmp_path, camera_info(unit_m=0.0001, baseline_m=0.1))
    with lab, make(lab.name, depth_dtype="float32", depth_max_m=2.0, filters=["spatial"]) as camera:
        told = camera.metadata()
        facts = camera.intrinsics
    assert json.loads(json.dumps(told)) == told, "as JSON has it"
    color, depth = told["color"], told["depth"]
    for stream in (color, depth):
        assert (stream["serial"], stream["name"], stream["firmware"]) == ("f4k3", "Fake D435", "1.2.3")
        assert (stream["fps"], stream["clock"], stream["source"]) == (30, "system_time", lab.name)
        assert Intrinsics.from_metadata(stream) == facts, "aligned: both are the colour camera's"
        assert (stream["intrinsics"]["model"], stream["intrinsics"]["coeffs"]) == ("none", [0.0] * 5)
    assert (depth["depth_unit_m"], depth["dtype"], depth["depth_unit"]) == (0.0001, "float32", "m")
    assert (depth["align"], depth["depth_to_color"]) == ("color", None)
    assert (depth["depth_min_m"], depth["depth_max_m"]) == (None, 2.0)
    assert "spatial" in [step["name"] for step in depth["filters"]]


def test_depth_that_is_not_aligned_tells_where_its_camera_is(tmp_path):
    with FakeLab(tmp_path, camera_info(baseline_m=0.1)) as lab, make(lab.name, align="none") as camera:
        depth = camera.metadata()["depth"]
    assert depth["align"] == "none" and depth["depth_unit"] == "mm"
    assert depth["depth_to_color"]["translation_m"] == pytest.approx([0.1, 0, 0])
    assert depth["depth_to_color"]["rotation"] == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_only_what_is_switched_on_is_told(lab):
    with make(lab.name, use_depth=False) as camera:
        assert set(camera.metadata()) == {"color"}
    with make(lab.name, use_rgb=False) as camera:
        assert set(camera.metadata()) == {"depth"}
    for ask in (camera.metadata, lambda: camera.counts):
        assert "not connected" in str(error_of(ask))


def test_a_frameset_comes_with_its_time_and_number(lab):
    with make(lab.name) as camera:
        one, other = camera.async_read_frameset(3000), camera.async_read_frameset(3000)
        assert other.frame_number > one.frame_number and other.timestamp_ms > one.timestamp_ms
        assert one.color[0, 0, 0] == one.frame_number % 256 and one.clock == "system_time"
        assert abs(one.timestamp_ms / 1e3 - time.time()) < 5


def test_global_time_is_switched_on_where_a_sensor_offers_it():
    device, (depth, _) = realsense.software_device(camera_info())
    offered = rs.option_range()
    offered.min, offered.max, offered.step, offered.default = 0.0, 1.0, 1.0, 0.0
    depth.sensor.add_option(rs.option.global_time_enabled, offered, True)
    assert depth.sensor.get_option(rs.option.global_time_enabled) == 0
    UsbSource(device, "f4k3").attach(None, rs.config())
    assert depth.sensor.get_option(rs.option.global_time_enabled) == 1


class Restamped:
    """A software sensor whose frames have another time."""

    def __init__(self, sensor, domain, timestamp_ms):
        self._sensor, self._domain, self._timestamp_ms = sensor, domain, timestamp_ms

    def on_video_frame(self, frame):
        frame.domain, frame.timestamp = self._domain, self._timestamp_ms(frame.timestamp)
        self._sensor.on_video_frame(frame)


def restamp(monkeypatch, domain, timestamp_ms):
    original = realsense.software_device

    def software_device(info):
        device, feeds = original(info)
        for feed in feeds:
            object.__setattr__(feed, "sensor", Restamped(feed.sensor, domain, timestamp_ms))
        return device, feeds

    monkeypatch.setattr(realsense, "software_device", software_device)


@pytest.mark.parametrize("clock", ["global_time", "system_time"])
def test_on_the_hosts_clock_the_age_is_since_the_capture_not_since_the_read(lab, monkeypatch, clock):
    restamp(monkeypatch, getattr(rs.timestamp_domain, clock), lambda now_ms: now_ms - 300)
    with make(lab.name, max_age_ms=5000) as camera:
        frameset = camera.async_read_frameset(3000)
        assert frameset.clock == clock and frameset.age_ms >= 300
        assert isinstance(error_of(lambda: camera.read_latest(max_age_ms=250)), TimeoutError)


def test_on_the_devices_own_clock_a_frame_counts_from_its_arrival_and_says_so(lab, monkeypatch):
    restamp(monkeypatch, rs.timestamp_domain.hardware_clock, lambda now_ms: now_ms % 1e6)
    with make(lab.name, max_age_ms=5000) as camera:
        frameset = camera.async_read_frameset(3000)
        assert frameset.clock == "hardware_clock" and frameset.age_ms < 3000
        assert camera.metadata()["color"]["clock"] == "hardware_clock"
    assert frameset.color.shape == (H, W, 3)
