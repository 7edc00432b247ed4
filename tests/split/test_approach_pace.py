"""The pace of the way to the initial position, and how long is waited for its end, on a clock that the test sets."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lerobot_ext.errors import UserError
from lerobot_ext.rollout import approach as module
from lerobot_ext.rollout.approach import (
    RATE_HZ,
    Destination,
    Stopped,
    approach,
    destination,
    hold_when_released,
)

PAN = "pan.pos"


class Clock:
    def __init__(self):
        self.now = 50.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Arm:
    """Is where it was sent, `behind_s` later; the n-th send takes `takes[n]` seconds."""

    action_features = {PAN: float, "torque": float}

    def __init__(self, clock, behind_s=0.0):
        self.clock, self.behind_s, self.takes, self.sent = clock, behind_s, {}, []

    def get_observation(self):
        there = [value for at, value in self.sent if at + self.behind_s <= self.clock.now]
        return {PAN: there[-1] if there else 0.0}

    def send_action(self, action):
        assert set(action) == {PAN}
        self.sent.append((self.clock.now, action[PAN]))
        self.clock.now += self.takes.get(len(self.sent), 0.0)


def go(arm, **options):
    approach(arm, Destination({PAN: 40.0}, 20.0, 1.0), **options)


def test_a_step_that_was_late_is_not_made_up_for(clock):
    arm = Arm(clock)
    arm.takes[10] = 0.7
    go(arm)
    gaps = [later - at for (at, _), (later, _) in zip(arm.sent, arm.sent[1:], strict=False)]
    assert min(gaps) >= 1 / RATE_HZ - 1e-9 and gaps[9] == pytest.approx(0.7)
    assert gaps[0] == pytest.approx(1 / RATE_HZ) == pytest.approx(gaps[-1])


def test_what_is_left_is_told_once_a_second(clock):
    told = []
    arm = Arm(clock)
    go(arm, tell=told.append)
    seconds = len(arm.sent) / RATE_HZ
    assert seconds == pytest.approx(1.875 * 40 / 20, abs=0.05)
    assert told == ["3 s to go", "2 s to go", "1 s to go"]


def test_joints_that_are_behind_are_waited_for_so_long(clock):
    go(Arm(clock, behind_s=2.0))
    with pytest.raises(UserError, match="0.5 s after the last position"):
        go(Arm(clock, behind_s=2.0), arrive_s=0.5)


def test_also_that_wait_can_be_stopped(clock):
    arm = Arm(clock, behind_s=2.0)
    with pytest.raises(Stopped):
        go(arm, stopped=lambda: [value for at, value in arm.sent if at < clock.now - 0.5][-1:] == [40.0])
    assert clock.now < 50 + 1.875 * 40 / 20 + 1.0, "all was sent, and then it was not waited for"


def test_a_joint_whose_place_is_not_known_has_not_arrived(clock):
    arm = Arm(clock)
    places = iter([0.0])
    arm.get_observation = lambda: {PAN: next(places, math.nan)}
    with pytest.raises(UserError, match=r"pan.pos is at nan, wanted 40"):
        go(arm)


@pytest.mark.parametrize(
    ("value", "goes"), [(-20, True), (30, True), (-20.1, False), (30.1, False), (math.nan, False)]
)
def test_a_place_within_the_joint_s_limits(monkeypatch, value, goes):
    monkeypatch.setattr(module, "limits_of", lambda robot, slack: {PAN: (-20.0 - slack, 30.0 + slack)})
    with nullcontext() if goes else pytest.raises(ValueError, match=r"pan.pos is .* goes from -20 to 30"):
        assert destination(Arm(None), {"pan": value}, 1.0, 2.0) == Destination({PAN: value}, 1.0, 2.0)


def test_a_robot_of_one_arm_holds_too():
    arm = SimpleNamespace(config=SimpleNamespace(disable_torque_on_disconnect=True))
    assert hold_when_released(arm) and not arm.config.disable_torque_on_disconnect
