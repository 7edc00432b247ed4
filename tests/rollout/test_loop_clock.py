"""The loop with two rates on a clock that the test sets: which deadlines are met, late or left out, and what it puts back."""

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lerobot_ext.rollout import loop as module
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.loop import PacedLoop
from lerobot_ext.rollout.monitor import EngineState

NAME = "pan.pos"
PERIOD_S = 0.01


class Engine:
    """Hands out 0, 1, 2, …, and is ready after so many observations."""

    action_names = (NAME,)

    def __init__(self, ready_after=0, **options):
        rates = {"policy_hz": 20, "control_hz": 100, "monitor_s": 0}
        self.config = AsyncInferenceConfig(**rates | options)
        self.ready_after, self.shown, self.taken, self.did = ready_after, [], 0, []
        self.waits = 0  # steps without an action, before the first

    @property
    def ready(self):
        return len(self.shown) >= self.ready_after

    def notify_observation(self, observation):
        self.shown.append(observation)

    def get_action(self, observation):
        if self.waits:
            self.waits -= 1
            return None
        self.taken += 1
        return torch.tensor([self.taken - 1.0])

    def ahead(self, count):
        return [[float(self.taken + i)] for i in range(count)]

    def state(self):
        return EngineState(0, None, False)

    def reset(self):
        self.did.append("reset")

    def resume(self):
        self.did.append("resume")


class Arm:
    """Notes when it was read and sent to, in ticks; `takes` says how long the n-th send takes."""

    def __init__(self, clock):
        self.clock, self.takes = clock, {}
        self.read, self.sent, self.commands = [], [], []

    def get_observation(self):
        self.read.append(self.clock.ticks)
        return {NAME: 0.0}

    def send_action(self, action):
        self.sent.append(self.clock.ticks)
        self.commands.append(action)
        self.clock.now += self.takes.get(len(self.sent), 0.0) * PERIOD_S


class Clock:
    """Seconds that pass while somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    @property
    def ticks(self):
        return round((self.now - 1000.0) / PERIOD_S, 3)

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += max(0.0, seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "precise_sleep", clock.sleep)
    return clock


@pytest.fixture
def arm(clock):
    return Arm(clock)


def test_an_episode_has_the_ticks_and_reads_of_its_time_and_no_more(arm):
    tally = PacedLoop(Engine(), arm).run(0.3)
    assert arm.sent == list(range(30))
    assert arm.read == [0, 4, 9, 14, 19, 24], "before the first, then right after a step's last send"
    assert (tally.ticks, tally.missed, tally.late, tally.steps) == (30, 0, 0, 6)


def test_a_time_that_is_no_whole_number_of_ticks_is_had_to_its_end(arm):
    assert PacedLoop(Engine(), arm).run(0.295).ticks == 30
    assert PacedLoop(Engine(), arm).run(29.000000001 * PERIOD_S).ticks == 29, "but for what rounding leaves"


def test_after_the_last_policy_step_nothing_is_read(arm):
    tally = PacedLoop(Engine(max_steps=2), arm).run()
    assert tally.ticks == 10 and arm.read == [0, 4]


def test_steps_without_an_action_are_none_of_the_policys_and_are_told(arm):
    engine, told = Engine(max_steps=2), []
    engine.waits = 2
    tally = PacedLoop(engine, arm, on_step=lambda seen, action: told.append((len(arm.sent), action))).run()
    assert (tally.steps, tally.ticks, tally.sent) == (2, 20, 10) and arm.sent == list(range(10, 20))
    assert told == [(0, None), (0, None), (1, {NAME: 0.0}), (6, {NAME: 1.0})], "after a step's first send"


@pytest.mark.parametrize(("takes", "late", "missed"), [(1.4, 0, 0), (1.6, 1, 0), (2.2, 1, 1), (3.9, 3, 2)])
def test_half_a_period_is_late_and_a_whole_one_is_missed(arm, takes, late, missed):
    """The third send takes so many ticks."""
    arm.takes[3] = takes
    tally = PacedLoop(Engine(), arm, keep_sends=True).run(0.1)
    assert (tally.late, tally.missed, tally.ticks) == (late, missed, 10 - missed)
    after = 2 + takes
    assert arm.sent == [0, 1, 2, after, *range(int(after) + 1, 10)], "the grid stays, and there is no burst"


def test_what_takes_longer_than_the_episode_has_left_ends_it(arm):
    arm.takes[9] = 50
    tally = PacedLoop(Engine(), arm).run(0.1)
    assert arm.sent == [*range(9), 58] and tally.missed == 49


@pytest.mark.parametrize(("late", "told"), [(1, False), (2, True)])
def test_one_tick_in_a_hundred_late_is_told(arm, caplog, late, told):
    for number in range(late):
        arm.takes[50 + 20 * number] = 1.6
    PacedLoop(Engine(), arm).run(1.5)
    assert ("sending a position took up to 16.0 ms" in caplog.text) is told


def test_each_episode_is_counted_and_approached_anew(arm):
    engine = Engine(max_step=0.1)
    loop = PacedLoop(engine, arm, keep_sends=True)
    loop.run(0.2)
    engine.taken = 0
    assert loop.run(0.1).ticks == 10 and len(loop.sends) == 10
    assert arm.commands[20] == {NAME: 0.0}, "from where the arm is said to be, not from where it was sent"


def test_a_robots_own_processor_gets_what_the_robot_gave(arm):
    got = []
    PacedLoop(
        Engine(),
        arm,
        process_observation=lambda raw: raw | {"more": 1},
        process_action=lambda action, seen: got.append(seen) or action,
    ).run(0.05)
    assert got == 5 * [{NAME: 0.0}]


def test_what_was_made_while_the_policy_got_warm_is_thrown_away(arm):
    engine = Engine(ready_after=3)
    assert PacedLoop(engine, arm).warm_up()
    assert arm.read == [0, 5, 10], "at the policy's rate"
    assert engine.did == ["reset", "resume"]
    assert PacedLoop(engine, arm).warm_up() and len(arm.read) == 3 and len(engine.did) == 2, "it is warm"


def test_an_episode_may_end_before_the_policy_is_warm(arm):
    engine = Engine(ready_after=100)
    assert not PacedLoop(engine, arm, stop=lambda: len(arm.read) == 2).warm_up()
    assert engine.did == [] and arm.sent == []


@pytest.mark.parametrize("interval", [0.004, 0.0001])
def test_the_interpreter_is_left_as_it_was_also_by_an_error(arm, interval):
    during = []

    def fail(action):
        during.append((sys.getswitchinterval(), gc.get_freeze_count() > 0))
        raise ConnectionError("gone")

    arm.send_action = fail
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        with pytest.raises(ConnectionError):
            PacedLoop(Engine(), arm).run(0.1)
        assert sys.getswitchinterval() == pytest.approx(interval, rel=0.02) and not gc.get_freeze_count()
    finally:
        sys.setswitchinterval(before)
    ((shortened, frozen),) = during
    assert shortened == pytest.approx(min(interval, 0.0005), rel=0.02) and frozen


def test_a_cubic_way_knows_what_follows_the_next_action(arm):
    """It does not come to a halt at each action."""
    PacedLoop(Engine(resample="cubic"), arm).run(0.3)
    steps = np.diff([command[NAME] for command in arm.commands])
    assert steps[5:] == pytest.approx(np.full(24, 0.2))


def test_stop_is_asked_at_every_tick(arm):
    tally = PacedLoop(Engine(), arm, stop=lambda: len(arm.sent) == 7).run()
    assert tally.sent == 7


def test_the_end_is_counted_from_the_first_deadline(arm, clock):
    slow = SimpleNamespace(
        get_observation=lambda: clock.sleep(1.0) or {NAME: 0.0}, send_action=arm.send_action
    )
    engine = Engine(max_steps=1)
    tally = PacedLoop(engine, slow).run()
    assert tally.seconds == pytest.approx(4 * PERIOD_S) and tally.late == 0
