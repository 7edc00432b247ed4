"""LeRobot's live view with a robot of ours behind it, streamed to a file and read back."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import rerun as rr
import rrd
from described import SKIN
from lerobot.utils import rerun_visualization, visualization_utils
from press_dataset import CHANNELS

import lerobot_ext
from lerobot_ext.features import VectorFeature
from lerobot_ext.recording import live_view
from lerobot_ext.recording.episodes import episode
from lerobot_ext.robots.observation_report import ObservationReport

DEPTH = np.full((24, 32, 1), 700, np.uint16)
DEPTH[:2] = 0
FORCE = np.zeros(15, np.float32)
FORCE[:3] = (10, 0, -20)
OBSERVATION = {
    "pan.pos": 1.5,
    "side": np.zeros((24, 32, 3), np.uint8),
    "side_depth": DEPTH,
    "force": FORCE,
}
ACTION = {"pan.pos": 2.0}


class Robot:
    """What the live view asks a robot for."""

    observation_features = {"pan.pos": float, "force": VectorFeature(CHANNELS)}

    def __init__(self, **range_m):
        self.cameras = {"side": SimpleNamespace(config=SimpleNamespace(**range_m))}
        self.last_report = None

    def feature_metadata(self):
        return {"observation.force": {"sensors": {"skin": SKIN}}}


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Starts a session of LeRobot's view that goes to a file; gives what ends it and returns the file."""
    lerobot_ext.register()
    live_view.reset()
    path = tmp_path / "live.rrd"
    rr.init("live")
    rerun_visualization.log_rerun_data.blueprint = None
    rr.save(path)

    def end():
        rr.get_global_data_recording().flush()
        rr.disconnect()
        return path

    yield end
    live_view.reset()


def log(observation=OBSERVATION, mode="rerun"):
    visualization_utils.log_visualization_data(mode, observation=dict(observation), action=dict(ACTION))


def test_in_an_episode_the_pad_depth_force_ages_and_counts_are_shown(stream):
    robot = Robot(depth_min_m=0.2, depth_max_m=0.9)
    robot.last_report = ObservationReport(
        {"side": 21.5, "skin": 3.0}, {"arm.retries": 2, "side.received": 90}
    )
    with episode(robot):
        log()
    path = stream()
    assert rrd.values(path, "observation.force/skin", "SeriesLines:names") == [list(SKIN["channels"])]
    np.testing.assert_allclose(rrd.values(path, "observation.force/skin", "Scalars:scalars")[0], FORCE)
    arrows = np.array(rrd.values(path, "pad/skin/arrows", "Arrows2D:vectors")[0])
    assert arrows[0][0] == pytest.approx(0.95 * 7 * 10 / 20) and not arrows[1:].any()
    colors = rrd.values(path, "pad/skin/discs", "Points2D:colors")[0]
    assert colors[0] >> 24 < (colors[0] >> 8) & 0xFF, "against the normal is blue"
    assert rrd.values(path, "pad/skin/legend/arrow", "Arrows2D:labels")[-1] == ["20 µT along"]
    (ends,) = rrd.values(path, "observation.side_depth", "DepthImage:depth_range")[0]
    assert ends == [200, 900]
    assert sum(rrd.values(path, "observation.side_depth/unknown", "SegmentationImage:buffer")[0][0]) == 2 * 32
    assert rrd.values(path, "ages_ms", "Scalars:scalars") == [[21.5, 3.0]]
    text = rrd.values(path, "counts", "TextDocument:text")[0][0]
    assert "| arm | 2 |" in text and "received" not in text
    assert {"observation.pan.pos", "observation.side", "action.pan.pos"} <= rrd.entities(path), (
        "LeRobot's own"
    )
    assert "observation.force" not in rrd.entities(path)


def test_between_episodes_and_in_teleoperation_the_robot_is_known(stream):
    robot = Robot()
    log()
    live_view.watch(robot)
    log()
    path = stream()
    assert len(rrd.values(path, "observation.force", "Scalars:scalars")) == 1, "before: as LeRobot draws it"
    assert len(rrd.values(path, "observation.force/skin", "Scalars:scalars")) == 1
    (ends,) = rrd.values(path, "observation.side_depth", "DepthImage:depth_range")[-1]
    assert ends[0] < 700 < ends[1], "without a range in the configuration that of the first picture"


def test_pictures_are_drawn_ten_times_a_second_curves_always(stream):
    live_view.watch(robot := Robot())
    for _ in range(20):
        log()
    path = stream()
    assert len(rrd.values(path, "observation.force/skin", "Scalars:scalars")) == 20
    assert 1 <= len(rrd.values(path, "pad/skin/arrows", "Arrows2D:vectors")) < 15
    assert 1 <= len(rrd.values(path, "observation.side_depth", "DepthImage:buffer")) < 15
    assert robot.cameras


def test_a_view_that_fails_leaves_everything_to_lerobot(stream, caplog):
    robot = Robot()
    robot.last_report = SimpleNamespace(ages_ms={"side": object()}, counts={})
    live_view.watch(robot)
    with caplog.at_level(logging.WARNING):
        log()
        log()
    path = stream()
    assert caplog.text.count("from here on LeRobot's own view is shown") == 1
    assert len(rrd.values(path, "observation.force", "Scalars:scalars")) == 2


def test_others_views_and_robots_are_left_as_they_are(stream):
    assert live_view.show("foxglove", OBSERVATION) is OBSERVATION
    assert live_view.show("rerun", None) is None
    plain = Robot()
    plain.observation_features = {"pan.pos": float}
    for robot in (plain, SimpleNamespace(observation_features={}), object()):
        live_view.watch(robot)
        log({"pan.pos": 1.0, "force": FORCE})
    path = stream()
    assert len(rrd.values(path, "observation.force", "Scalars:scalars")) == 3


def test_a_robot_that_is_gone_is_forgotten(stream):
    live_view.watch(Robot())
    log()
    assert "pad/skin/arrows" not in rrd.entities(stream())


def test_the_teleoperation_loop_says_which_robot_it_drives(stream):
    from lerobot.scripts import lerobot_teleoperate

    class EndsError(Exception):
        pass

    class Ending(Robot):
        action_features = {"pan.pos": float}

        def get_observation(self):
            raise EndsError

    robot = Ending()
    with pytest.raises(EndsError):
        lerobot_teleoperate.teleop_loop(None, robot, 30, None, None, None)
    log()
    assert "pad/skin/arrows" in rrd.entities(stream())
