"""The real driver on librealsense's real pipeline, fed by a publisher that speaks the lab's protocol."""

import builtins
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from camera_rig import make, threads
from fake_lab import FakeLab, H, W, camera_info
from lerobot.cameras.configs import ColorMode

from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera
from lerobot_ext.recording.episodes import episode

pytest.importorskip("pyrealsense2", exc_type=ImportError)


def test_color_and_depth_are_of_one_instant_metric_and_in_shape(lab):
    with make(lab.name) as camera:
        numbers = []
        for _ in range(30):
            color, depth = camera.async_read_combined(timeout_ms=3000)
            assert color.shape == (H, W, 3) and color.dtype == np.uint8
            assert depth.shape == (H, W, 1) and depth.dtype == np.uint16
            assert depth[H // 2, W // 2, 0] == 1000 + int(color[0, 0, 0])
            assert depth[0, 0, 0] == 0, "unknown depth stays unknown"
            numbers.append(int(color[0, 0, 0]))
        assert len(set(numbers)) == 30, "each frame comes once"


def test_every_read_is_served_and_what_it_returns_is_the_callers(lab):
    with make(lab.name) as camera:
        color, depth = camera.read_latest_combined(max_age_ms=3000)
        color[:], depth[:] = 0, 0
        assert camera.read_latest(3000)[0, 0, 2] == 7
        assert camera.read_latest_depth(3000)[5, 5, 0] >= 1000
        assert camera.async_read(3000).shape == (H, W, 3)
        assert camera.async_read_depth(3000).shape == (H, W, 1)
        assert camera.read().shape == (H, W, 3)
        assert camera.read_depth().shape == (H, W, 1)
        newest = camera.read_latest_frameset(3000)
        assert newest.frame_number % 256 == newest.color[0, 0, 0]
        assert abs(newest.timestamp_ms - time.time() * 1e3) < 3000
        assert 0 <= newest.age_ms < 3000


@pytest.mark.parametrize(("dtype", "expected"), [("uint16", 300), ("float32", np.float32(0.3004))])
def test_a_depth_unit_of_a_tenth_of_a_millimetre_is_applied(tmp_path, dtype, expected):
    with FakeLab(tmp_path, camera_info(unit_m=0.0001), base=3004, period_s=0.02) as lab:
        with make(lab.name, depth_dtype=dtype) as camera:
            color, depth = camera.async_read_combined(3000)
            counted = 3004 + int(color[0, 0, 0])
            assert camera.depth_unit_m == 0.0001
        metric = round(counted / 10) if dtype == "uint16" else np.float32(counted / 1e4)
        assert depth.dtype == dtype and depth[9, 9, 0] == metric
        assert abs(float(depth[9, 9, 0]) - float(expected)) < 256 * float(expected) / 3000


def test_depth_is_moved_into_the_color_cameras_pixels(tmp_path):
    # 50 px focal length, 1 m away, 0.1 m to the side: 5 pixels; the columns uncovered have no depth.
    with FakeLab(tmp_path, camera_info(baseline_m=0.1), base=1000) as lab:
        with make(lab.name) as camera:
            aligned = camera.async_read_combined(3000)[1][H // 2, :, 0]
        with make(lab.name, align="none") as camera:
            plain = camera.async_read_combined(3000)[1][H // 2, :, 0]
    assert np.count_nonzero(plain) == W
    assert not aligned[:3].any() and aligned[8:].all()


def test_streams_can_be_switched_off(lab):
    with make(lab.name, use_depth=False) as camera:
        color, depth = camera.async_read_combined(3000)
        assert color is not None and depth is None and camera.depth_unit_m is None
        with pytest.raises(RuntimeError, match="depth is switched off"):
            camera.read_latest_depth()
    with make(lab.name, use_rgb=False) as camera:
        color, depth = camera.async_read_combined(3000)
        assert color is None and depth.shape == (H, W, 1)
        with pytest.raises(RuntimeError, match="colour is switched off"):
            camera.async_read()


def test_bgr_and_defaults_of_the_device(lab):
    camera = make(lab.name, color_mode=ColorMode.BGR, fps=None, width=None, height=None)
    with camera:
        assert (camera.width, camera.height, camera.fps) == (W, H, 30)
        assert camera.async_read(3000)[0, 0, 0] == 7
        assert (camera.serial, camera.firmware) == ("f4k3", "1.2.3")
        assert camera.intrinsics.fx == 50 and camera.intrinsics.width == W


def test_episodes_are_announced_to_the_lab_while_the_camera_is_open(lab, caplog):
    caplog.set_level("INFO")
    with make(lab.name):
        with episode(robot=None):
            assert lab.requests[-1].op == "start_episode" and lab.requests[-1].operate
        assert lab.requests[-1].op == "end_episode"
    assert "lab's verdict on its episode 0: success (held)" in caplog.text
    count = len(lab.requests)
    with episode(robot=None):
        pass
    assert len(lab.requests) == count


def test_a_frozen_camera_is_an_error_not_an_old_picture(lab):
    with make(lab.name, max_age_ms=100) as camera:
        lab.silent = True
        time.sleep(0.3)
        with pytest.raises(TimeoutError, match=r"camera 'virtual:.*ms old, allowed are 100 ms"):
            camera.read_latest_combined()
        with pytest.raises(TimeoutError, match="no new frame within 50 ms .newest: number"):
            camera.async_read_combined(50)
        lab.silent = False
        assert camera.async_read_combined(3000)


def test_opening_and_closing_often_leaves_nothing_and_is_quick(lab):
    for _ in range(20):
        camera = make(lab.name)
        camera.connect()
        camera.async_read_combined(3000)
        before = time.perf_counter()
        camera.disconnect()
        assert time.perf_counter() - before < 2
        camera.disconnect()
        assert not camera.is_connected
    assert not threads()


def test_a_process_that_forgets_to_disconnect_ends_well(lab):
    code = (
        "import sys\n"
        "from lerobot_ext.cameras import RealSenseRGBDCameraConfig as C\n"
        "from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera as R\n"
        "camera = R(C(serial_number_or_name=sys.argv[1], warmup_s=0)); camera.connect(); camera.read()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, lab.name], timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def refused(camera, sentence):
    with pytest.raises(ConnectionError, match=sentence):
        camera.connect()
    assert not camera.is_connected and not threads()


def test_a_size_that_is_not_offered_is_refused_with_those_that_are(lab):
    refused(make(lab.name, width=640, height=480), f"640x480@30 is not offered by Fake D435.*{W}x{H}@30")
    refused(make(lab.name, fps=60), f"@60 is not offered .*serial f4k3.*offered at {W}x{H}: 30 fps")


def test_a_serial_that_is_not_there_lists_those_that_are(lab, monkeypatch):
    monkeypatch.setenv("LEROBOT_LAB_DIR", str(lab.directory))
    refused(
        make("987654"), r"'987654': no RealSense has this serial.*there are: .*virtual:.*side' \(Fake D435\)"
    )
    assert lab.name in [camera["id"] for camera in RealSenseRGBDCamera.find_cameras()]


def test_no_camera_and_no_lab_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LEROBOT_LAB_DIR", str(tmp_path))
    refused(make(f"virtual:{tmp_path}/side"), f"camera 'virtual:.*{Path(tmp_path).name}")
    refused(make("987654"), "no RealSense has this serial number")


def test_no_frame_within_the_warm_up_is_said(lab, monkeypatch):
    monkeypatch.setattr("lerobot_ext.cameras.realsense_rgbd.FIRST_FRAME_S", 0.3)
    lab.silent = True
    refused(make(lab.name), "is there .Fake D435. but gave no frame")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ModuleNotFoundError("No module named 'pyrealsense2'"),
            r"in the project's folder run: pip install -e '.\[realsense\]'",
        ),
        (ImportError("libusb-1.0.so.0: cannot open shared object file"), "apt-get install libusb-1.0-0"),
    ],
)
def test_missing_software_is_said(monkeypatch, error, sentence):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pyrealsense2":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(make("987654"), sentence)
