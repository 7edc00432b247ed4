"""The robot `replay` gives what was recorded, when it is due, and ends when the recording does."""

import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.robots import make_robot_from_config

from lerobot_ext.errors import UserError
from lerobot_ext.features import VectorFeature
from lerobot_ext.robots import ReplayRobotConfig
from lerobot_ext.robots.read_ahead import ReadAhead
from lerobot_ext.robots.replay import ReplayRobot
from lerobot_ext.rollout.plays import playing

sys.path.insert(0, str(Path(__file__).parents[1] / "modality"))
from small_dataset import (
    EPISODES,
    FORCE_NAMES,
    FPS,
    FRAMES,
    HEIGHT,
    JOINTS,
    WIDTH,
    depth_frame,
    make_dataset,
)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("replay") / "dataset")


@pytest.fixture(scope="session")
def recorded(root):
    return LeRobotDataset("test/all", root=root, return_uint8=True, video_backend="pyav")


class Clock:
    """Seconds that only pass when told."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def replay(root):
    """Makes connected replays; `speed` is 0 unless said otherwise."""
    made = []

    def make(clock=None, **options):
        config = ReplayRobotConfig(**{"root": str(root), "speed": 0} | options)
        robot = ReplayRobot(config, clock) if clock else make_robot_from_config(config)
        robot.connect()
        made.append(robot)
        return robot

    yield make
    for robot in made:
        robot.disconnect()


def states_only(root, joints, action=None, episodes=1, frames=4):
    """A dataset without pictures."""
    features = {"observation.state": {"dtype": "float32", "shape": (len(joints),), "names": joints}}
    if action is not None:
        features["action"] = {"dtype": "float32", "shape": (len(action),), "names": action}
    dataset = LeRobotDataset.create("test/states", fps=FPS, features=features, root=root)
    for episode in range(episodes):
        for frame in range(frames):
            values = np.full(len(joints), 10 * episode + frame, np.float32)
            more = {} if action is None else {"action": np.full(len(action), frame, np.float32)}
            dataset.add_frame({"observation.state": values, "task": "move", **more})
        dataset.save_episode()
    dataset.finalize()
    return root


def places(robot, count):
    """(episode, frame) of so many observations; a row is counted through all episodes of the replay."""
    robot.mark_frames = True
    rows = [robot.get_observation()["replay_frame"] for _ in range(count)]
    played = sorted(set(robot.config.episodes))
    return [(played[row // FRAMES], row % FRAMES) for row in rows]


def test_it_has_the_features_of_the_recorded_robot(root):
    robot = make_robot_from_config(ReplayRobotConfig(root=str(root)))
    features = robot.observation_features
    assert features["force"] == VectorFeature(FORCE_NAMES) and features["force"].names == FORCE_NAMES
    assert {name: features[name] for name in ("side", "side_depth", "wrist")} == {
        "side": (HEIGHT, WIDTH, 3),
        "side_depth": (HEIGHT, WIDTH, 1),
        "wrist": (HEIGHT, WIDTH, 3),
    }
    assert [name for name, kind in features.items() if kind is float] == JOINTS
    assert robot.action_features == dict.fromkeys(JOINTS, float)
    assert not robot.is_connected and robot.is_calibrated


def test_an_observation_is_the_recorded_frame(replay, recorded):
    robot = replay(episode=1)
    assert robot.is_connected
    features = robot.observation_features
    for frame in range(FRAMES):
        observation = robot.get_observation()
        assert set(observation) == set(features)
        item = recorded[FRAMES + frame]
        state = np.array([observation[name] for name in JOINTS], np.float32)
        assert np.array_equal(state, item["observation.state"].numpy())
        assert np.array_equal(observation["force"], item["observation.force"].numpy())
        for camera in ("side", "wrist"):
            picture = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy()
            assert observation[camera].dtype == np.uint8 and np.array_equal(observation[camera], picture)


def test_depth_has_its_recorded_unit_and_nothing_where_nothing_was_measured(replay):
    depth = replay(episode=1).get_observation()["side_depth"]
    given = depth_frame(np.random.default_rng(0), episode=1, frame=0)
    assert depth.dtype == np.uint16 and depth.shape == (HEIGHT, WIDTH, 1)
    assert np.array_equal(depth == 0, given == 0)
    step_mm = 1000 * 1.0 / 4095  # of the encoder's 12 bits over 0.1 to 1.1 m
    assert np.abs(depth.astype(float) - given).max() <= step_mm + 0.5


def test_frames_are_skipped_at_the_start_and_in_between(replay):
    robot = replay(episode=2, start_frame=3, stride=5)
    assert places(robot, 5) == [(2, 3), (2, 8), (2, 13), (2, 18), (2, 18)]
    assert robot.shown_frames(2) == 4 and robot.frame_s == 5 / FPS


def test_episodes_follow_one_another_and_the_last_frame_stays(replay):
    seen = places(replay(episode=[2, 0]), 2 * FRAMES + 2)
    assert seen[FRAMES - 1 : FRAMES + 1] == [(2, FRAMES - 1), (0, 0)]
    assert seen[-3:] == [(0, FRAMES - 1)] * 3


def test_a_loop_begins_again(replay):
    seen = places(replay(episode=0, loop=True, stride=10), 5)
    assert seen == [(0, 0), (0, 10), (0, 0), (0, 10), (0, 0)]


def test_in_real_time_a_slow_loop_misses_frames_and_a_hasty_one_sees_them_twice(replay):
    clock = Clock()
    robot = replay(clock, speed=1)
    clock.now += 7  # the clock starts with the first observation, not with the connection
    seen = []
    for after_s in (0, 0.6 / FPS, 0.6 / FPS, 5 / FPS, 0.01, 10.0):
        clock.now += after_s
        seen += places(robot, 1)
    assert [frame for _, frame in seen] == [0, 1, 1, 6, 6, FRAMES - 1]


def test_frames_are_not_missed_while_the_first_one_is_decoded(replay):
    clock = Clock()
    robot = replay(clock, speed=1)
    decoded = robot._frames.get

    def slowly(position):
        clock.now += 0.3 if position == 0 else 0
        return decoded(position)

    robot._frames.get = slowly
    seen = places(robot, 1)
    clock.now += 1 / FPS
    assert [frame for _, frame in seen + places(robot, 1)] == [0, 1]


@pytest.mark.parametrize("speed", [1, 2])
def test_a_loop_that_is_a_little_early_or_late_sees_every_frame_once(replay, speed):
    clock = Clock()
    robot = replay(clock, speed=speed)
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, FRAMES) / FPS / speed
    jitter[0] = 0
    seen = []
    for frame in range(FRAMES):
        clock.now = 50 + frame / FPS / speed + jitter[frame]
        seen += places(robot, 1)
    assert [frame for _, frame in seen] == list(range(FRAMES))


def test_in_real_time_the_next_episode_begins_one_frame_after_the_last(replay):
    clock = Clock()
    robot = replay(clock, speed=1, episode=[0, 1])
    places(robot, 1)
    clock.now += (FRAMES - 1) / FPS
    assert places(robot, 1) == [(0, FRAMES - 1)]
    clock.now += 1 / FPS
    assert places(robot, 1) == [(1, 0)]


def test_a_play_ends_with_its_last_frame_and_the_next_begins_at_its_first(replay):
    robot = replay(episode=[1, 2], stride=10)
    places(robot, 1)  # what is seen before the first play does not count
    ends = []
    for episode in (1, 2):
        assert robot.more
        with robot.playing(lambda: ends.append(True)):
            assert places(robot, 1) == [(episode, 0)] and not ends
            assert places(robot, 2) == [(episode, 10)] * 2 and ends == [True]
        assert places(robot, 1) == [(episode, 10)]  # until somebody begins the next one
        ends.clear()
    assert not robot.more


def test_lerobots_events_end_the_episode_and_then_the_run(replay):
    robot = replay(episode=[0, 1], stride=FRAMES)
    events = {"exit_early": False, "stop_recording": False}
    with playing(robot, events):
        robot.get_observation()
    assert events == {"exit_early": True, "stop_recording": False}
    with playing(robot, events):
        robot.get_observation()
    assert events["stop_recording"]
    with playing(object(), events):  # any other robot
        pass


def test_what_would_have_been_sent_is_remembered(replay):
    clock = Clock()
    robot = replay(clock, speed=1, episode=1)
    action = dict(zip(JOINTS, range(6), strict=True))
    with robot.playing(lambda: None):
        robot.get_observation()
        assert robot.send_action(action) is action
        clock.now += 2 / FPS
        robot.get_observation()
        robot.send_action({JOINTS[0]: 1.0, "unknown": 2.0})
    robot.send_action(action)
    first, second, between = robot.sent
    assert (first.time_s, first.row, first.in_play) == (0, 0, True)
    assert first.action.tolist() == list(range(6))
    assert second.time_s == pytest.approx(2 / FPS) and second.row == 2
    assert second.action[0] == 1 and np.isnan(second.action[1:]).all()
    assert not between.in_play


def test_any_robots_recording_can_be_played(tmp_path):
    joints = [f"{side}_{joint}" for side in ("left", "right") for joint in ("waist", "gripper.pos")]
    root = states_only(tmp_path / "two_arms", joints, action=joints)
    robot = make_robot_from_config(ReplayRobotConfig(root=str(root), speed=0))
    named = ["left_waist.pos", "left_gripper.pos", "right_waist.pos", "right_gripper.pos"]
    assert list(robot.observation_features) == named == list(robot.action_features)
    with robot:
        robot.get_observation()
        assert robot.get_observation() == dict.fromkeys(named, 1.0)


def test_what_the_devices_told_is_told_again(root, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(root, copy)
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.force"]["info"] = {"sensors": {"skin": {"serial": "7"}}, "other": 1}
    (copy / "meta/info.json").write_text(json.dumps(info))
    robot = make_robot_from_config(ReplayRobotConfig(root=str(copy)))
    assert robot.feature_metadata() == {"observation.force": {"sensors": {"skin": {"serial": "7"}}}}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"root": "/nowhere/at/all"}, "there is no folder '/nowhere/at/all'"),
        ({"episode": 7}, f"no episode 7 in .*; it has {EPISODES}: 0 to {EPISODES - 1}"),
        ({"episode": [0, 1], "start_frame": 20}, "start_frame is 20, but episode 0 of .* has 20 frames"),
    ],
)
def test_what_is_not_there_is_one_sentence(root, options, sentence):
    robot = make_robot_from_config(ReplayRobotConfig(**{"root": str(root)} | options))
    with pytest.raises(UserError, match=sentence):
        robot.connect()
    assert not robot.is_connected


def test_a_recording_without_actions_is_no_robot(tmp_path):
    root = states_only(tmp_path / "states", ["a.pos"])
    with pytest.raises(UserError, match="has no action, so there is no robot to play"):
        _ = make_robot_from_config(ReplayRobotConfig(root=str(root))).action_features


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "robot.root"),
        ({"root": "x", "stride": 0}, "stride is 0; expected 1 or more"),
        ({"root": "x", "speed": -1}, "speed is -1; expected 1 for real time"),
        ({"root": "x", "episode": []}, r"episode is \[\]"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ReplayRobotConfig(**options)


def test_a_picture_that_cannot_be_decoded_is_an_error_and_not_invented(root, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(root, copy)
    for video in (copy / "videos" / "observation.images.wrist").rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:500])
    with (
        make_robot_from_config(ReplayRobotConfig(root=str(copy), speed=0)) as robot,
        pytest.raises(ConnectionError, match="replay: row 0 of .* cannot be decoded"),
    ):
        robot.get_observation()


@pytest.mark.parametrize("folder", ["videos/observation.images.wrist", "data"])
def test_a_file_that_is_missing_is_named_and_not_looked_for_on_the_hub(root, tmp_path, folder):
    copy = tmp_path / "dataset"
    shutil.copytree(root, copy)
    for file in (copy / folder).rglob("file-*"):
        file.rename(file.with_name("other.parquet"))
    robot = make_robot_from_config(ReplayRobotConfig(root=str(copy)))
    with pytest.raises(UserError, match=f"episode 0 of .* is not whole: there is no {folder}/.*; copy"):
        robot.connect()


def test_asking_before_connecting_is_an_error(root):
    robot = make_robot_from_config(ReplayRobotConfig(root=str(root)))
    with pytest.raises(ConnectionError):
        robot.get_observation()
    with pytest.raises(ConnectionError):
        robot.send_action({})


class Decoder:
    """Notes what is decoded."""

    def __init__(self):
        self.rows, self.entered = [], threading.Semaphore(0)

    def __call__(self, rows):
        self.rows += rows
        self.entered.release()
        return [{"side": row} for row in rows]


def test_no_more_is_decoded_than_one_block_ahead():
    decoder = Decoder()
    ahead = ReadAhead(range(100, 200), decoder, frame_bytes=8_000_000)  # 4 of them are a block
    try:
        assert ahead.get(0) == {"side": 100}
        assert all(decoder.entered.acquire(timeout=10) for _ in range(2))
        assert decoder.rows == list(range(100, 108))
        assert not decoder.entered.acquire(timeout=0.2)  # until something is taken
        assert ahead.get(50) == {"side": 150}  # what is skipped is not decoded
        assert 130 not in decoder.rows and decoder.rows[8] == 150
    finally:
        ahead.close()
