"""What open-loop evaluation counts, keeps and refuses, with a recording that the test makes up."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lerobot_ext.errors import UserError
from lerobot_ext.robots.replay import FRAME, ReplayRobot, Sent
from lerobot_ext.rollout import open_loop
from lerobot_ext.rollout.open_loop import OpenLoop, Watching, check_rate, predict
from lerobot_ext.rollout.sources import Answer

NAMES = ("b.pos", "a.pos")
ROWS = {0: range(0, 6), 1: range(6, 16)}


class Recording:
    times_s = np.arange(16) / 10

    def actions(self, names):
        """Joint a is the row, b is 100 more."""
        return np.stack([np.arange(16) + (100 if name == "b.pos" else 0) for name in names], 1).astype(
            np.float32
        )

    def rows(self, episode):
        return ROWS[episode]


@pytest.fixture
def robot():
    robot = ReplayRobot.__new__(ReplayRobot)
    robot.config = SimpleNamespace(
        episodes=[1, 0, 1], stride=2, speed=1.0, root="there", repo_id=None, loop=False, start_frame=0
    )
    robot._recording = Recording()
    robot._meta = SimpleNamespace(fps=10, root="there")
    robot._features = SimpleNamespace(action={"a.pos": float, "b.pos": float})
    robot.sent, robot.mark_frames = [], False
    return robot


def test_what_was_executed_is_that_of_the_plays_in_the_policy_s_order(robot):
    loop = OpenLoop(robot, NAMES)
    robot.sent += [
        Sent(0.0, 3, np.array([3, 103], np.float32), True),
        Sent(0.1, 4, np.array([99, 99], np.float32), False),
        Sent(0.2, 5, np.array([7, 105], np.float32), True),
    ]
    rows, actions = loop.executed()
    assert rows.tolist() == [3, 5] and actions.tolist() == [[103, 3], [105, 7]]
    report = loop.report()
    assert report["executed"]["actions"] == 2 and report["episodes"] == [1, 0]
    assert (
        report["executed"]["by_joint"]["a.pos"]["max"] == 2
        and report["executed"]["by_joint"]["b.pos"]["max"] == 0
    )
    assert report["predicted"]["overall"] == {"mae": None, "rmse": None, "max": None}, (
        "there is nothing to compare"
    )
    assert report["round_trip_s"] == {"p50": None, "p95": None}
    json.dumps(report, allow_nan=False)


def test_so_many_chunks_are_kept_whole_and_all_are_counted(robot, monkeypatch):
    monkeypatch.setattr(open_loop, "SHOWN_CHUNKS", 3)
    loop = OpenLoop(robot, NAMES)
    chunk = np.zeros((4, 2), np.float32)
    for row in range(5):
        loop.add(row, chunk, {"round_trip_s": row / 10} if row else {})
    chunk += 1
    assert loop.chunks == 5 and [row for row, _ in loop.shown] == [0, 1, 2]
    assert not loop.shown[0][1].any(), "a copy"
    assert [len(actions) for _, actions in loop.shown] == [3, 3, 2], (
        "to the end of the episode, every second row"
    )
    assert loop.report()["round_trip_s"] == pytest.approx({"p50": 0.25, "p95": 0.385})


def test_a_step_of_the_loop_is_one_shown_frame(robot):
    check_rate(robot, 5.0)
    check_rate(robot, 5.04)
    for wrong in (4.9, 5.1, 10.0):
        with pytest.raises(UserError, match=r"but the replay shows 5 frames a second .* to 5\."):
            check_rate(robot, wrong)
    robot.config.speed = 2.0
    check_rate(robot, 10.0)
    robot.config.speed = 0
    check_rate(robot, 77.0)


def test_only_a_replay_is_watched_and_only_while_somebody_asks(robot):
    watching, source = Watching(), object()
    watching.meet(robot, NAMES, 5.0)
    assert watching.watched(source) is source
    with watching.session():
        watching.meet(SimpleNamespace(), NAMES, 5.0)
        assert watching.watched(source) is source and not robot.mark_frames
        watching.meet(SimpleNamespace(inner=robot), NAMES, 5.0)
        assert watching.watched(source) is watching.source is not source
        assert robot.mark_frames and watching.robot is robot
    assert watching.result is not None, "to be looked at afterwards"
    assert watching.watched(source) is source
    with watching.session():
        assert watching.result is None and watching.source is None, "of the run before"


class Source:
    """Notes what it is asked."""

    n_obs_steps, windows = 1, {}

    def __init__(self):
        self.asked, self.resets = [], 0

    def reset(self):
        self.resets += 1

    def infer(self, request):
        self.asked.append((request.observations[-1][FRAME], request.seed, self.resets))
        return Answer(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), {})


class Plays:
    """Five frames a play, two plays."""

    def __init__(self):
        self.play = -1

    @property
    def more(self):
        return self.play < 1

    def playing(self, at_end):
        from contextlib import nullcontext

        self.play, self.frame, self.at_end = self.play + 1, 0, at_end
        return nullcontext()

    def get_observation(self):
        self.frame += 1
        if self.frame == 5:
            self.at_end()
        return {FRAME: 10 * self.play + self.frame - 1}


def test_chunks_are_asked_for_at_every_nth_frame_of_each_play_with_seeds_of_their_own():
    source, seen = Source(), []
    predict(
        source,
        Plays(),
        every=2,
        seed=40,
        progress=lambda frames: (seen.append(each) or each for each in frames),
    )
    assert source.asked == [(0, 40, 1), (2, 41, 1), (4, 42, 1), (10, 43, 2), (12, 44, 2), (14, 45, 2)]
    assert len(seen) == 10
