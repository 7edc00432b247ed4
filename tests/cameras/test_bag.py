"""Recordings by librealsense's own recorder, played through the real camera class; and files that are none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from camera_rig import error_of, make, threads, until
from fake_lab import FakeLab, H, W, camera_info

from lerobot_ext.cameras import RealSenseRGBDCameraConfig, bag

rs = pytest.importorskip("pyrealsense2", exc_type=ImportError)


def wall(number):
    """Raw depth of frame `number`: a wall that is tilted and comes nearer, with a hole in it."""
    depth = (4000 + 10 * np.arange(W)[np.newaxis, :] + 7 * np.arange(H)[:, np.newaxis] + 3 * number).astype(
        np.uint16
    )
    depth[10:14, 20:30] = 0
    return depth


def record(folder, path, seconds=1.5, unit_m=0.0001, **fields):
    """Record the fake lab into `path` while a camera runs."""
    lab = FakeLab(folder, camera_info(unit_m=unit_m), scene=wall, period_s=1 / 30)
    with lab, make(lab.name, record_bag=str(path), **fields):
        time.sleep(seconds)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags")
    record(folder, folder / "wall.bag")
    return folder / "wall.bag"


def test_a_recording_plays_through_the_real_camera_to_the_millimetre(recording):
    with make(str(recording), warmup_s=60) as camera:  # nothing of a recording is let pass
        assert (camera.serial, camera.firmware, camera.depth_unit_m) == ("f4k3", "1.2.3", 0.0001)
        first, begun = camera.async_read_frameset(3000), time.perf_counter()
        seen = [first]
        while not isinstance(
            error := error_of(lambda: seen.append(camera.async_read_frameset(1000))), ConnectionError
        ):
            assert error is None, error
        played_s = time.perf_counter() - begun
    assert len(seen) >= 20
    for frameset in seen:
        number = frameset.frame_number
        exact = wall(number) * 0.1
        assert int(frameset.color[0, 0, 0]) == number % 256, "colour and depth are of one frame"
        difference = np.abs(frameset.depth[..., 0].astype(float) - exact)
        assert difference.max() <= 0.5 and (frameset.depth[10:14, 20:30] == 0).all()
        assert frameset.age_ms < 60_000, "the day it was recorded is not the age"
    recorded_s = (seen[-1].timestamp_ms - seen[0].timestamp_ms) / 1e3
    assert played_s > 0.7 * recorded_s, "in real time"
    assert "is at its end" in str(error) and "bag_repeat: true" in str(error)


def test_tenths_of_a_millimetre_survive_in_metres(recording):
    with make(str(recording), depth_dtype="float32") as camera:
        frameset = camera.async_read_frameset(3000)
    np.testing.assert_allclose(
        frameset.depth[..., 0], wall(frameset.frame_number) * np.float32(1e-4), rtol=1e-6, atol=0
    )


def test_a_recording_that_repeats_never_mixes_its_end_with_its_beginning(recording):
    with make(str(recording), bag_repeat=True) as camera:
        numbers = []
        end = time.monotonic() + 30
        while time.monotonic() < end and sum(b < a for a, b in zip(numbers, numbers[1:], strict=False)) < 2:
            frameset = camera.async_read_frameset(3000)
            assert int(frameset.color[0, 0, 0]) == frameset.frame_number % 256
            assert frameset.depth[0, 0, 0] == pytest.approx(wall(frameset.frame_number)[0, 0] / 10, abs=0.51)
            numbers.append(frameset.frame_number)
        assert sum(b < a for a, b in zip(numbers, numbers[1:], strict=False)) == 2, "it began anew"
        assert camera.counts["reconnects"] == 0


def test_the_path_may_be_relative_or_begin_with_a_tilde(recording, monkeypatch):
    monkeypatch.chdir(recording.parent)
    monkeypatch.setenv("HOME", str(recording.parent))
    for name in ("wall.bag", "~/wall.bag"):
        with make(name, fps=None, width=None, height=None) as camera:
            assert (camera.width, camera.height, camera.fps) == (W, H, 30)


def refused(camera, sentence):
    with pytest.raises(ConnectionError, match=sentence):
        camera.connect()
    assert not threads()


def test_what_is_no_recording_is_said(recording, tmp_path):
    whole = recording.read_bytes()
    position = whole.index(b"index_pos=") + len(b"index_pos=")
    unclosed = whole[:position] + bytes(8) + whole[position + 8 :]
    for name, content, sentence in (
        ("text.bag", b"hello, this is no bag", "is no recording of librealsense: it begins with b'hello"),
        ("empty.bag", b"", "is no recording of librealsense"),
        ("killed.bag", unclosed, "has no index: the program that wrote it was killed"),
        ("cut.bag", whole[: len(whole) // 2], "cannot be played"),
        ("head.bag", whole[:20], "has no index"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(make(str(tmp_path / name)), f"{name} {sentence}")
    refused(make(str(tmp_path / "none.bag")), "there is no file .*none.bag")
    refused(make(str(recording), width=640, height=480), f"640x480@30 is not offered.*{W}x{H}")


def test_recording_writes_what_every_player_plays_and_overwrites_nothing(tmp_path, lab):
    path = tmp_path / "new folder" / "run.bag"
    with make(lab.name, record_bag=str(path)) as camera:
        camera.read()
        time.sleep(0.5)
    assert bag.index_position(path.read_bytes()[:4096]) > 0
    pipeline, config = rs.pipeline(), rs.config()
    config.enable_device_from_file(str(path), repeat_playback=False)
    pipeline.start(config)
    try:
        arrived, frames = pipeline.try_wait_for_frames(3000)
        assert arrived and frames.get_depth_frame().get_width() == W
    finally:
        pipeline.stop()
    refused(make(lab.name, record_bag=str(path)), "run.bag exists already.*never overwritten")


def test_a_recording_stops_before_the_disk_is_full_and_the_camera_goes_on(tmp_path, lab, monkeypatch, caplog):
    from lerobot_ext.cameras import keeper

    monkeypatch.setattr(keeper, "ROOM_S", 0.1)
    path = tmp_path / "run.bag"
    with make(lab.name, record_bag=str(path)) as camera:
        camera.read()
        monkeypatch.setattr(bag, "RESERVE_BYTES", 1 << 62)
        until(lambda: "run.bag stops here: only" in caplog.text)
        size = path.stat().st_size
        time.sleep(0.5)
        assert path.stat().st_size == size and camera.read().shape == (H, W, 3)
    bag.check_whole(path)
    assert caplog.text.count("stops here") == 1
    refused(make(lab.name, record_bag=str(tmp_path / "new" / "2.bag")), "only .* MB are free for .*2.bag")
    assert not (tmp_path / "new").exists()


def test_a_camera_that_came_back_records_into_another_file(tmp_path, lab, monkeypatch):
    from lerobot_ext.cameras import keeper

    monkeypatch.setattr(keeper, "SILENT_S", 0.3)
    path = tmp_path / "run.bag"
    with make(lab.name, record_bag=str(path)) as camera:
        camera.read()
        lab.unplugged = True
        until(lambda: isinstance(error_of(camera.read_latest), ConnectionError))
        lab.unplugged = False
        until(lambda: error_of(lambda: camera.read_latest(200)) is None)
        time.sleep(0.3)
    for name in ("run.bag", "run-2.bag"):
        bag.check_whole(tmp_path / name)


@pytest.mark.parametrize("ending", ["exception", "SIGINT"])
def test_a_recording_is_whole_however_the_program_ends(tmp_path, lab, ending):
    code = (
        "import sys, time\n"
        "from lerobot_ext.cameras import RealSenseRGBDCameraConfig as C\n"
        "from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera as R\n"
        "camera = R(C(serial_number_or_name=sys.argv[1], warmup_s=0, record_bag=sys.argv[2]))\n"
        "camera.connect(); camera.read(); print('ready', flush=True)\n"
        "time.sleep(1 if sys.argv[3] == 'exception' else 60)\n"
        "raise ValueError('something else')\n"
    )
    path = tmp_path / "run.bag"
    program = subprocess.Popen(
        [sys.executable, "-c", code, lab.name, str(path), ending],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with program:
        assert program.stdout.readline() == "ready\n", program.stderr.read()
        if ending == "SIGINT":
            time.sleep(1)
            os.kill(program.pid, signal.SIGINT)
        program.wait(30)
    bag.check_whole(path)
    with make(str(path)) as camera:
        assert camera.read().shape == (H, W, 3)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"record_bag": "x.mp4"}, "record_bag is 'x.mp4'; expected a file that ends in .bag"),
        ({"record_bag": "x.bag", "serial_number_or_name": "y.bag"}, "cannot record what is a recording"),
        ({"bag_repeat": True}, "bag_repeat is about a recording"),
    ],
)
def test_a_wrong_configuration_gets_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        RealSenseRGBDCameraConfig(**{"serial_number_or_name": "0123", **fields})


def test_the_index_of_a_bag_is_found_without_librealsense(recording):
    assert 0 < bag.index_position(recording.read_bytes()[:4096]) < Path(recording).stat().st_size
