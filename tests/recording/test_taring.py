"""An episode starts with sensors that nothing touches, and ends with a word if their zero has wandered."""

import logging
import threading
import time

import numpy as np
import pytest
from recording_rig import running_rig

from lerobot_ext.errors import UserError
from lerobot_ext.recording import episodes
from lerobot_ext.recording.taring import Taring


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with running_rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture(scope="module")
def robot(rig):
    with rig.robot() as robot:
        yield robot


@pytest.fixture
def taring(rig, robot):
    rig.touched, rig.shift_ut = False, 0.0
    time.sleep(0.3)  # the elastomer's lag, and what is still on its way
    return Taring(patience_s=5.0)


def test_the_baseline_is_kept_and_logged_in_one_line(taring, robot, caplog):
    with caplog.at_level(logging.INFO):
        taring.tare(robot)
    assert taring.baselines["skin"].shape == (15,)
    lines = [record.getMessage() for record in caplog.records if "baseline" in record.getMessage()]
    assert len(lines) == 1 and len(lines[0]) < 100 and "'skin'" in lines[0]


def test_a_touched_skin_is_waited_for_and_said_once(taring, rig, robot, caplog):
    rig.touched = True
    time.sleep(0.3)
    letting_go = threading.Timer(1.0, lambda: setattr(rig, "touched", False))
    letting_go.start()
    with caplog.at_level(logging.INFO):
        taring.tare(robot)
    letting_go.join()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "let go" in warnings[0] and "skin" in warnings[0]
    assert np.abs(robot.get_observation()["force"]).max() < 20, "the zero is that of a skin at rest"


def test_a_skin_that_stays_touched_ends_the_recording_with_one_sentence(taring, rig, robot):
    rig.touched, taring.patience_s = True, 0.5
    time.sleep(0.3)
    before = robot.force_sensors["skin"].baseline
    episodes.add_listener(episodes.EpisodeListener("only", on_start=taring.tare))
    started = []
    try:
        with pytest.raises(UserError, match=r"tried for 0 s|safe"), episodes.episode(robot):
            started.append(True)
    finally:
        episodes.remove_listener("only")
    assert not started, "no frame may be recorded with a wrong zero"
    assert np.array_equal(robot.force_sensors["skin"].baseline, before)


def test_drift_is_measured_and_warned_of_with_numbers(taring, rig, robot, caplog):
    taring.tare(robot)
    taring.check(robot)
    assert taring.drifts["skin"] < 5
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    rig.shift_ut = 60.0
    time.sleep(0.5)
    taring.check(robot)
    assert taring.drifts["skin"] == pytest.approx(60, abs=8)
    said = caplog.records[-1].getMessage()
    assert "'skin'" in said and "uT" in said and "warm up" in said


def test_a_skin_that_is_touched_at_the_end_has_no_drift(taring, rig, robot):
    taring.tare(robot)
    rig.touched = True
    time.sleep(0.5)
    taring.check(robot)
    assert taring.drifts == {}


def test_robots_without_sensors_are_left_alone(taring):
    taring.tare(object())
    taring.check(object())
    assert taring.baselines == {} == taring.drifts
