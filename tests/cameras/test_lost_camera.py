"""A camera that is unplugged, stands still or is another one: said at once, mended by itself, never hidden."""

import re
import time

import msgspec
import pytest
from camera_rig import error_of, make, threads, until
from fake_lab import H, W

from lerobot_ext.cameras import keeper
from lerobot_ext.recording.episodes import episode

pytest.importorskip("pyrealsense2", exc_type=ImportError)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in (("SILENT_S", 0.3), ("RETRY_S", 0.1), ("WATCH_S", 0.02)):
        monkeypatch.setattr(keeper, name, value)


def lost(camera):
    return lambda: isinstance(error_of(camera.read_latest_combined), ConnectionError)


def well(camera):
    return lambda: error_of(lambda: camera.read_latest_frameset(200)) is None


def test_an_unplugged_camera_fails_with_a_sentence_and_comes_back_by_itself(lab, caplog):
    caplog.set_level("INFO")
    with make(lab.name, max_age_ms=200, depth_dtype="float32", filters=["temporal"]) as camera:
        before = camera.async_read_combined(3000)
        lab.unplugged = True
        until(lost(camera))
        said = re.compile(
            r"camera 'virtual:.*': lost since \d\d:\d\d:\d\d \(.* s ago\): the virtual camera f4k3 is unplugged.*"
            r"plug it in again.*for \d+ s more"
        )
        for read in (camera.read_latest, camera.read_latest_depth, lambda: camera.async_read(20)):
            assert said.match(str(error_of(read)))
        assert camera.is_connected, "it is not given up"
        lab.unplugged = False
        until(well(camera))
        after = camera.async_read_combined(3000)
        assert [a.dtype for a in after] == [b.dtype for b in before]
        assert camera.metadata()["depth"]["filters"], "what was configured is done again"
        counts = camera.counts
        assert counts["reconnects"] == 1 and counts["dropped"] < 10, counts
        with episode(robot=None):
            assert lab.requests[-1].op == "start_episode", "episodes are announced again"
    assert caplog.text.count("lost since") == 1 and caplog.text.count("is back after") == 1
    assert not threads()


def test_while_it_is_away_no_read_returns_anything(lab):
    with make(lab.name, max_age_ms=150) as camera:
        lab.unplugged = True
        pulled, returned = time.perf_counter(), []
        while time.perf_counter() - pulled < 1.5:
            for read in (camera.read_latest_frameset, lambda: camera.async_read_frameset(10)):
                if error_of(lambda read=read: returned.append(read())) is None:
                    returned[-1] = (time.perf_counter() - returned[-1].captured_s) * 1e3
            time.sleep(0.01)
    assert returned and max(returned) < 250, "nothing older than max_age_ms"


def test_another_camera_in_its_place_is_not_taken_for_it(lab):
    with make(lab.name) as camera:
        lab.unplugged = True
        until(lost(camera))
        own, lab.info = lab.info, msgspec.structs.replace(lab.info, serial="0th3r")
        lab.unplugged = False
        time.sleep(1.0)
        assert lost(camera)(), "serial 0th3r is not f4k3"
        lab.info = own
        until(well(camera))


def test_a_camera_that_does_not_come_back_is_given_up(lab):
    with make(lab.name, reconnect_s=0.5) as camera:
        lab.unplugged = True
        until(lambda: "did not come back within 0.5 s" in str(error_of(camera.read_latest)))
        lab.unplugged = False
        time.sleep(0.5)
        assert isinstance(error_of(camera.read), ConnectionError)
        camera.disconnect()
        camera.connect()
        assert camera.read().shape == (H, W, 3)


def test_disconnecting_while_it_is_away_is_quick(lab):
    camera = make(lab.name)
    camera.connect()
    lab.unplugged = True
    until(lost(camera))
    before = time.perf_counter()
    camera.disconnect()
    assert time.perf_counter() - before < 3 and not threads()


def test_a_frozen_camera_times_out_and_its_repetitions_are_counted(lab):
    with make(lab.name, max_age_ms=200) as camera:
        camera.read()
        lab.frozen = True
        error = until(lambda: error_of(camera.read_latest))
        assert isinstance(error, TimeoutError) and "the camera stands still" in str(error)
        assert isinstance(error_of(lambda: camera.async_read(50)), TimeoutError)
        until(lambda: camera.counts["repeated"] > 0)
        lab.frozen = False
        until(well(camera))
        assert camera.counts["reconnects"] == 0


def test_a_camera_that_stays_frozen_is_opened_again(lab, monkeypatch):
    monkeypatch.setattr(keeper, "FROZEN_S", 0.6)
    with make(lab.name, max_age_ms=200) as camera:
        lab.frozen = True
        error = until(lambda: isinstance(e := error_of(camera.read_latest), ConnectionError) and e)
        assert "it is there but gave no new frame" in str(error)
        time.sleep(0.5)
        assert error_of(camera.read_latest), "the same picture again is none"
        lab.frozen = False
        until(well(camera))
        assert camera.counts["reconnects"] == 1


def test_gaps_in_the_frame_numbers_are_counted(lab):
    with make(lab.name) as camera:
        camera.read()
        before = camera.counts
        assert before["received"] >= 1
        lab.skip = 5
        until(lambda: camera.counts["dropped"] >= before["dropped"] + 5)
        assert camera.counts["dropped"] < before["dropped"] + 10
        assert camera.counts["received"] > before["received"]


def test_a_lab_that_ends_is_a_camera_that_is_lost(lab):
    with make(lab.name, reconnect_s=30) as camera:
        camera.read()
        lab.silent = True
        (lab.directory / "control").unlink()
        error = until(lambda: isinstance(e := error_of(camera.read_latest), ConnectionError) and e)
        assert "no lab answers" in str(error)
