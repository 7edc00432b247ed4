"""Episodes are announced by LeRobot's own loops, and sensors are tared when one starts."""

import logging
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.rollout.strategies.episodic import EpisodicStrategy
from lerobot.scripts.lerobot_record import record_loop

from lerobot_ext.recording.episodes import EpisodeListener, add_listener, remove_listener
from lerobot_ext.recording.taring import Taring

META = SimpleNamespace(depth_keys=[], features={})


@pytest.fixture
def heard():
    """What listeners were told: ("start" | "end", robot)."""
    told = []
    add_listener(
        EpisodeListener(
            "test", lambda robot: told.append(("start", robot)), lambda robot: told.append(("end", robot)), 99
        )
    )
    yield told
    remove_listener("test")


def loop(robot, **more):
    events = {"exit_early": False}
    record_loop(robot, events, 30, None, None, None, control_time_s=0, **more)


def test_a_recorded_episode_is_announced(heard):
    robot = SimpleNamespace()
    loop(robot, dataset=SimpleNamespace(fps=30, meta=META))
    assert heard == [("start", robot), ("end", robot)]


def test_the_time_to_reset_the_scene_is_no_episode(heard):
    loop(SimpleNamespace())
    assert heard == []


def test_the_end_is_announced_when_the_loop_fails(heard):
    with pytest.raises(ValueError, match="fps"):
        loop(SimpleNamespace(), dataset=SimpleNamespace(fps=15, meta=META))
    assert [what for what, _ in heard] == ["start", "end"]


class Engine:
    """Notes what it is told; a real engine's thread would act on it."""

    def __init__(self, notes):
        self.notes = notes

    def pause(self):
        self.notes.append("pause")

    def resume(self):
        self.notes.append("resume")

    def reset(self):
        self.notes.append("reset")

    def notify_observation(self, observation):
        self.notes.append(("observation", observation))


class Dataset:
    """As much of a dataset as is looked at around an episode."""

    num_episodes = 7
    meta = META

    def __init__(self, frames):
        self.frames = frames

    def has_pending_frames(self):
        return self.frames > 0


def policy_loop(engine, robot, *, frames=1, shut_down=False):
    """LeRobot's loop of an episode that is over at once; the events that it leaves."""
    strategy = EpisodicStrategy.__new__(EpisodicStrategy)
    strategy._engine = engine
    strategy._interpolator = SimpleNamespace(get_control_interval=lambda fps: 1 / fps)
    shutdown_event = threading.Event()
    if shut_down:
        shutdown_event.set()
    events = {}
    strategy._policy_loop(
        ctx=SimpleNamespace(runtime=SimpleNamespace(shutdown_event=shutdown_event)),
        robot=SimpleNamespace(inner=robot),
        events=events,
        features={},
        fps=30,
        control_time_s=0,
        dataset=Dataset(frames),
        single_task="press",
    )
    return events


def test_a_policys_episode_is_announced_while_the_policy_waits(heard):
    robot = SimpleNamespace()
    assert policy_loop(Engine(heard), robot) == {}
    assert heard == [
        "pause",
        ("start", robot),
        ("observation", None),
        "reset",
        "resume",
        ("end", robot),
    ]


def test_an_engine_that_wants_to_know_is_told_the_episodes_number_and_end(heard):
    class Curious(Engine):
        def start_episode(self, index):
            self.notes.append(("episode", index))

        def end_episode(self):
            self.notes.append("over")

    robot = SimpleNamespace()
    policy_loop(Curious(heard), robot)
    assert heard == [
        "pause",
        ("start", robot),
        ("observation", None),
        "reset",
        ("episode", 7),
        "resume",
        "over",
        ("end", robot),
    ]


def test_an_episode_without_a_frame_is_recorded_again_instead_of_ending_the_run(caplog):
    assert policy_loop(Engine([]), SimpleNamespace(), frames=0) == {"rerecord_episode": True}
    assert "recorded again" in caplog.text


def test_at_a_shutdown_an_episode_without_a_frame_is_dropped():
    events = policy_loop(Engine([]), SimpleNamespace(), frames=0, shut_down=True)
    assert events == {"rerecord_episode": True, "stop_recording": True}


def test_sensors_are_tared_and_the_baseline_is_logged(caplog):
    tared = []

    class Robot:
        def tare(self):
            tared.append(self)
            return {"skin": np.array([1.25, -2], np.float32)}

    robot = Robot()
    with caplog.at_level(logging.INFO):
        Taring().tare(SimpleNamespace(inner=robot))
    assert tared == [robot]
    assert "tared 'skin'" in caplog.text and "[1.2, -2.0]" in caplog.text


def test_a_robot_without_sensors_is_left_alone():
    Taring().tare(SimpleNamespace())


def test_an_episode_does_not_start_on_a_sensor_that_cannot_be_tared():
    class Robot:
        def tare(self):
            raise ConnectionError("skin on /dev/ttyACM2: lost")

    with pytest.raises(ConnectionError, match="lost"):
        loop(Robot(), dataset=SimpleNamespace(fps=30, meta=META))
