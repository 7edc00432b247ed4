"""An episode with two rates: what is sent, read, recorded, asked for and said; with real threads and a real clock."""

import logging
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.processor import make_default_processors
from lerobot.rollout.strategies.base import BaseStrategy
from lerobot.rollout.strategies.episodic import EpisodicStrategy
from lerobot.utils.process import ProcessSignalHandler
from scripted import NAMES, PATIENCE_S, chunk

from lerobot_ext.compat import loops
from lerobot_ext.errors import UserError
from lerobot_ext.rollout import paced
from lerobot_ext.rollout.checks import ActionChecks
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.engine import AsyncInferenceEngine
from lerobot_ext.rollout.loop import PacedLoop
from lerobot_ext.rollout.sources import Answer

FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": list(NAMES)},
    "action": {"dtype": "float32", "shape": (2,), "names": list(NAMES)},
}


class Arm:
    """A robot that is where it was sent; `number` counts what it was asked to show.

    Attributes:
        sent: Positions, as they came.
        on_read, on_send: Called with the count of either.
    """

    name = robot_type = "arm"

    def __init__(self):
        self.position = dict.fromkeys(NAMES, 0.0)
        self.reads, self.sent = 0, []
        self.read = threading.Condition()
        self.on_read = self.on_send = lambda count: None

    @property
    def inner(self):
        return self

    def get_observation(self):
        with self.read:
            self.reads += 1
            self.read.notify_all()
        self.on_read(self.reads)
        return self.position | {"number": self.reads}

    def send_action(self, action):
        self.position = dict(action)
        self.sent.append([action[name] for name in NAMES])
        self.on_send(len(self.sent))
        return action


class Ramps:
    """A source whose chunk for the observation of timestep t is (t, 0), (t + 1, 0), …; t is counted by the arm's reads.

    Attributes:
        asked: The requests so far.
        slow: An answer, but the first, takes until the arm has been read that many times more.
    """

    chunk_size = 10
    n_obs_steps = 1
    windows = {}
    patience_s = 1.0
    supports_rtc = True
    ensemble_coeff = None

    def __init__(self, arm, slow=0, first=0.0):
        self.arm, self.slow, self.first, self.asked, self.over = arm, slow, first, [], False

    def reset(self):
        pass

    def infer(self, request):
        self.asked.append(request)
        number = request.observations[-1]["number"]
        with self.arm.read:
            slow = self.slow if len(self.asked) > 1 else 0
            self.arm.read.wait_for(lambda: self.over or self.arm.reads >= number + slow, PATIENCE_S)
        actions = chunk(self.first + number - 1, self.chunk_size)
        return Answer(actions, 10 * actions)


class Cell:
    """An arm, its policy, and the engine between."""

    def __init__(self, *, merge="append", slow=0, first=0.0, warm_up=0, **options):
        self.arm = Arm()
        self.source = Ramps(self.arm, slow, first)
        self.shutdown = threading.Event()
        rates = {"policy_hz": 20, "control_hz": 100, "monitor_s": 0, "chunk_size_threshold": 0.5}
        self.engine = AsyncInferenceEngine(
            AsyncInferenceConfig(**rates | options),
            self.source,
            merge=merge,
            checks=ActionChecks.of(NAMES),
            fps=1,
            warm_up=warm_up,
            shutdown_event=self.shutdown,
        )

    def __enter__(self):
        self.engine.reset()
        self.engine.start()
        self.engine.resume()
        return self

    def __exit__(self, *exc_info):
        with self.arm.read:
            self.source.over = True
            self.arm.read.notify_all()
        self.engine.stop()

    def loop(self, stop=lambda: False, **more):
        """A loop that begins when the first chunk is there, so that the arm's reads count timesteps."""
        get_action = type(self.engine).get_action

        def when_there(frame):
            assert self.has_chunk()
            return get_action(self.engine, frame)

        self.engine.get_action = when_there
        return PacedLoop(self.engine, self.arm, stop=stop, keep_sends=True, **more)

    def has_chunk(self):
        with self.engine._wake:
            return self.engine._wake.wait_for(lambda: self.engine._log.counts.chunks, PATIENCE_S)

    def run(self, duration_s=PATIENCE_S, **more):
        return self.loop(**more).run(duration_s)

    def context(self, **runtime):
        """As much of LeRobot's context of a rollout as its strategies look at while they act."""
        teleop_action, robot_action, robot_observation = make_default_processors()
        cfg = SimpleNamespace(**{"duration": 0, "display_data": False, "use_torch_compile": False} | runtime)
        return SimpleNamespace(
            runtime=SimpleNamespace(cfg=cfg, shutdown_event=self.shutdown),
            hardware=SimpleNamespace(robot_wrapper=self.arm),
            processors=SimpleNamespace(
                robot_action_processor=robot_action, robot_observation_processor=robot_observation
            ),
        )


# --- what is sent ---


def test_the_arm_is_read_at_policy_hz_and_sent_to_at_control_hz():
    with Cell(max_steps=8) as cell:
        tally = cell.run()
    assert (tally.sent, tally.steps, cell.arm.reads) == (40, 8, 8)
    # The line through (0, 0), (1, 0), …, (9, 0), with a tick of a fifth of a policy step.
    assert np.allclose(cell.arm.sent, [(tick / 5, 0) for tick in range(40)], atol=1e-6)


def test_rates_need_not_divide():
    with Cell(max_steps=8, policy_hz=20, control_hz=50) as cell:
        tally = cell.run()
    assert (tally.sent, tally.steps, cell.arm.reads) == (20, 8, 8)
    assert np.allclose(cell.arm.sent, [(tick * 0.4, 0) for tick in range(20)], atol=1e-6)


def test_at_equal_rates_the_policys_actions_are_sent_as_they_are():
    with Cell(max_steps=9, policy_hz=100, control_hz=100) as cell:
        assert cell.run().sent == 9
    assert cell.arm.sent == [[step, 0] for step in range(9)]


def test_no_position_is_further_than_max_step_from_the_one_before():
    with Cell(max_steps=6, max_step=0.5, first=7) as cell:
        cell.run()
    way = np.array([[0, 0], *cell.arm.sent])
    assert np.abs(np.diff(way, axis=0)).max() <= 0.5 + 1e-9
    assert cell.arm.sent[-1] == [pytest.approx(12.8), 0], "and it has caught up"


def test_max_step_wants_to_know_where_the_arm_is():
    with Cell(max_step=0.5) as cell, pytest.raises(UserError, match=r"does not tell where grip.pos is"):
        cell.arm.position.pop("grip.pos")
        cell.run()


@pytest.mark.parametrize("joint", ["grip.pos", "pan.pos"])
def test_an_arm_that_is_nowhere_does_not_make_every_position_so(joint):
    with Cell(max_steps=2) as cell:
        cell.arm.position[joint] = np.nan
        cell.run()
        assert np.isfinite(cell.arm.sent).all() and len(cell.arm.sent) == 10
    with Cell(max_steps=2, max_step=1) as cell, pytest.raises(UserError, match=f"not tell where {joint} is"):
        cell.arm.position[joint] = np.nan
        cell.run()


def test_while_no_chunk_comes_nothing_is_sent():
    with Cell(slow=10**6) as cell:
        cell.source.asked.append(None)  # so that the first is slow, too
        tally = PacedLoop(cell.engine, cell.arm).run(0.2)
    assert tally.sent == 0 and tally.ticks + tally.missed >= 20


# --- when ---


def test_deadlines_lie_on_a_grid_and_what_is_missed_is_not_made_up_for():
    with Cell(max_steps=8) as cell:
        late = threading.Event()
        cell.arm.on_read = lambda count: count == 4 and late.wait(0.055)
        loop = cell.loop()
        tally = loop.run()
    due = (np.array([send.deadline_ns for send in loop.sends]) / 1e9 - tally.started_s) * 100
    assert np.allclose(due, due.round(), atol=1e-3) and np.diff(due.round()).min() >= 1
    assert all(send.sent_ns >= send.deadline_ns for send in loop.sends)
    assert tally.missed >= 4 and tally.late >= tally.missed
    assert np.allclose(cell.arm.sent, [(tick / 5, 0) for tick in range(40)], atol=1e-6), "nothing is left out"


def test_an_episode_lasts_as_long_as_it_should():
    with Cell() as cell:
        tally = cell.run(0.3)
    # More where the last tick was late; what it is to the tick is in test_loop_clock.
    assert tally.ticks + tally.missed >= 30 and cell.arm.reads <= 6


def test_late_ticks_are_explained(caplog):
    with Cell(max_steps=4) as cell:
        cell.arm.on_read = lambda count: threading.Event().wait(0.03)
        cell.run()
    assert "reading an observation took up to " in caplog.text and "lower inference.control_hz" in caplog.text


# --- policy steps ---


def test_leftover_and_delay_are_in_policy_steps():
    with Cell(merge="rtc", slow=3, max_steps=14) as cell:
        delays = []
        cell.run(on_step=lambda seen, action: delays.append(cell.engine.state().delay))
        first, second, third = cell.source.asked[:3]
    assert first.rtc.inference_delay == 0 and first.left_over is None
    assert [request.observations[-1]["number"] - 1 for request in (second, third)] == [4, 8]
    assert np.array_equal(second.left_over, 10 * chunk(4, 6)), "half of the chunk was left after that step"
    assert third.rtc.inference_delay == delays[8] >= 3
    assert np.allclose(cell.arm.sent, [(tick / 5, 0) for tick in range(70)], atol=1e-6)


def test_a_merge_that_jumps_is_bridged():
    with Cell(slow=1, max_steps=12, max_step=0.5, merge="rtc") as cell:
        cell.arm.on_read = lambda count: setattr(cell.source, "first", 3.0 if count > 3 else 0.0)
        cell.run()
    way = np.array(cell.arm.sent)[:, 0]
    assert np.diff(way).max() > 0.2 + 1e-6 and np.diff(way).max() <= 0.5 + 1e-9
    assert way[-1] == pytest.approx(59 / 5 + 3)


def test_telemetry_counts_policy_steps(tmp_path):
    with Cell(max_steps=8, telemetry_dir=str(tmp_path)) as cell:
        cell.run()
    lines = (tmp_path / "episode_000000.jsonl").read_text().splitlines()
    assert sum('"tick"' in line for line in lines) == 8 and '"fps": 20' in lines[0]


# --- the end ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_what_was_sent(number, caplog):
    kept = {each: signal.getsignal(each) for each in map(signal.Signals, (1, 2, 3, 15))}
    try:
        with Cell() as cell, caplog.at_level(logging.INFO):
            cell.shutdown = ProcessSignalHandler(use_threads=True).shutdown_event
            cell.arm.on_send = lambda count: count == 7 and signal.raise_signal(number)
            strategy = SimpleNamespace(_engine=cell.engine, _log_telemetry=lambda *args: None)
            BaseStrategy.run(strategy, cell.context())
            before = threading.active_count()
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)
    assert len(cell.arm.sent) == 7
    assert "paced loop: over; 7 actions sent in " in caplog.text and "the arm holds" in caplog.text
    assert threading.active_count() == before - 1, "the engine's"


def test_an_observation_that_ends_the_episode_is_acted_on_first():
    """The last frame of a replay, as in LeRobot's loops; with nothing to read there is nothing to do."""
    with Cell() as cell:
        steps, over = [], threading.Event()
        cell.arm.on_read = lambda count: count == 4 and over.set()
        cell.run(stop=over.is_set, on_step=lambda seen, action: steps.append(seen["number"]))
        assert steps == [1, 2, 3, 4] and len(cell.arm.sent) == 3 * 5 + 1
        assert cell.run(stop=over.is_set).ticks == 0 and cell.arm.reads == 4


def test_an_arm_that_cannot_be_read_ends_the_episode(caplog):
    def fail(count):
        if count == 4:
            raise ConnectionError("the arm does not answer")

    with Cell() as cell, caplog.at_level(logging.INFO), pytest.raises(ConnectionError):
        cell.arm.on_read = fail
        cell.run()
    assert "paced loop: over; 15 actions sent" in caplog.text


def test_the_monitor_tells_how_it_is_going(caplog):
    with Cell(monitor_s=0.1, max_steps=8) as cell, caplog.at_level(logging.INFO):
        cell.run()
    lines = [record.message for record in caplog.records if "queue" in record.message]
    assert len(lines) >= 2 and "Hz, queue " in lines[-1] and "policy steps, delay " in lines[-1]


def test_it_waits_until_a_compiled_policy_is_warm():
    with Cell(warm_up=2, max_steps=3) as cell:
        strategy = SimpleNamespace(_engine=cell.engine, _log_telemetry=lambda *args: None)
        paced.run_base(strategy, cell.context(use_torch_compile=True))
        assert cell.engine.ready
        # What was asked for while it was cold is not executed: this episode began with a later observation.
        assert cell.arm.sent[-1][0] >= cell.source.asked[2].observations[-1]["number"]


# --- recording ---


def episode(cell, dataset, seconds=PATIENCE_S):
    """One of LeRobot's, as its strategy runs it."""
    strategy = EpisodicStrategy.__new__(EpisodicStrategy)
    strategy._engine = cell.engine
    events = {"exit_early": False}
    strategy._policy_loop(cell.context(), cell.arm, events, FEATURES, 30, seconds, dataset, "press")
    return events


@pytest.fixture
def dataset(tmp_path):
    return LeRobotDataset.create("lab/rollout_press", 20, FEATURES, root=tmp_path / "d", use_videos=False)


def test_a_frame_is_recorded_at_each_policy_step_with_the_policys_action(dataset):
    with Cell(max_steps=6) as cell:
        episode(cell, dataset)
        dataset.save_episode()
        dataset.finalize()
    read = LeRobotDataset(dataset.repo_id, root=dataset.root)
    actions = np.stack([frame["action"].numpy() for frame in read])
    states = np.stack([frame["observation.state"].numpy() for frame in read])
    assert read.fps == 20 and len(read) == 6 and len(cell.arm.sent) == 30
    assert np.allclose([frame["timestamp"] for frame in read], np.arange(6) / 20)
    start = actions[0, 0]  # the first steps may have had no chunk yet
    assert np.array_equal(actions[:, 0], start + np.arange(6))
    # A step's observation was read before its first send: where the last one led.
    assert np.allclose(states[2:, 0], actions[2:, 0] - 0.2, atol=1e-5)


def test_a_key_ends_the_episode_and_is_used_up(dataset):
    with Cell() as cell:
        events = {"exit_early": False}
        cell.arm.on_send = lambda count: events.update(exit_early=count == 12)
        strategy = EpisodicStrategy.__new__(EpisodicStrategy)
        strategy._engine = cell.engine
        strategy._policy_loop(cell.context(), cell.arm, events, FEATURES, 30, PATIENCE_S, dataset, "press")
    assert len(cell.arm.sent) == 12 and not events["exit_early"] and dataset.has_pending_frames()


def test_what_ends_an_episode_that_ends_by_itself_does_not_end_the_next(dataset):
    with Cell(max_steps=3) as cell:
        ctx, events = cell.context(), {"exit_early": False}
        strategy = SimpleNamespace(_engine=cell.engine)

        def lerobots(self, ctx, robot, events, features, fps, control_time_s, dataset, single_task):
            events["exit_early"] = True  # a key, or a replay's end, after it was looked at for the last time
            dataset.add_frame(
                {"observation.state": np.zeros(2, "f4"), "action": np.zeros(2, "f4"), "task": "press"}
            )

        cell.engine.config = None  # not ours: LeRobot's own loop
        loops._policy_loop(lerobots)(strategy, ctx, cell.arm, events, FEATURES, 20, 1, dataset, "press")
    assert not events["exit_early"]


def test_a_dataset_of_another_rate_is_not_continued(dataset):
    with Cell(policy_hz=10) as cell, pytest.raises(UserError, match=r"has 20 frames a second.* 10"):
        episode(cell, dataset)
