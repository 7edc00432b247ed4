"""Positions between a policy's actions where what was to follow changes: no jump, no jerk, nothing that nobody asked for."""

import numpy as np
import pytest
from scripted import NAMES

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.resample import Resampler


def way(steps, policy_hz=10, control_hz=50, start=(0, 0), **options):
    """The positions at each tick; `steps` are (action, what is thought to follow)."""
    made = Resampler(NAMES, AsyncInferenceConfig(policy_hz=policy_hz, control_hz=control_hz, **options))
    made.reset(start)
    found = []
    for action, ahead in steps:
        made.step(action, ahead)
        found.append(made.tick())
        while not made.begins_step:
            found.append(made.tick())
    return found


def pan(found):
    return [None if position is None else round(float(position[0]), 6) for position in found]


def test_a_bridge_that_is_not_over_when_the_next_begins_goes_on():
    """At 2.5 ticks a step the last tick of a step is before the bridge's end."""
    found = way([((0, 0), [(0, 0)]), ((10, 0), [(10, 0)]), ((20, 0), [])], control_hz=25)
    assert pan(found) == [0, 0, 0, 4, 8, 12.8, 17.6, 20]


def test_a_held_joint_keeps_its_action_when_no_other_comes():
    found = way([((0, 0), [(5, 1)]), (None, []), (None, [])], hold_joints=["grip"])
    assert pan(found) == [0, 1, 2, 3, 4, 5, *9 * [None]], "the way is finished"
    assert all(position[1] == 0 for position in found if position is not None), "nobody said 1 yet"


def test_a_held_joint_has_no_bridge():
    found = way([((0, 3), []), ((0, 9), [])], hold_joints=["grip"])
    assert [position[1] for position in found] == 5 * [3] + 5 * [9]


def test_a_cubic_bridge_sets_off_and_arrives_slowly():
    steps = np.diff([0, *pan(way([((10, 0), [])], control_hz=100, resample="cubic"))])
    assert steps[0] == pytest.approx(10 * (3 * 0.1**2 - 2 * 0.1**3)) and steps[-1] == pytest.approx(steps[0])
    assert steps.max() == pytest.approx(steps[4]) and steps[4] > 1.4


def test_a_cubic_way_sets_off_slowly_after_a_wait():
    before = [((0, 0), [(1, 0), (2, 0)]), ((1, 0), [(2, 0), (3, 0)]), (None, []), (None, [])]
    found = pan(way([*before, ((2, 0), [(3, 0), (4, 0)])], resample="cubic"))[-5:]
    assert found[0] == 2 and found[1] - found[0] < 0.1, "a step at its speed before the wait is 0.2"


def test_a_cubic_way_stays_between_actions_also_when_the_next_is_another():
    found = pan(way([((0, 0), [(5, 0), (10, 0)]), ((5, 0), [(5.5, 0)])], resample="cubic"))
    assert max(found[5:]) <= 5.5 and found[5:] == sorted(found[5:])


def test_an_episode_knows_nothing_of_the_one_before():
    made = Resampler(NAMES, AsyncInferenceConfig(policy_hz=10, control_hz=50, resample="cubic"))
    ways = []
    for start in (0, 100):
        made.reset((start, 0))
        made.step((start + 10, 0), [(start + 20, 0), (start + 30, 0)])
        ways.append([made.tick()[0] - start for _ in range(3)])
    assert ways[0] == pytest.approx(ways[1])
    made.reset(None)
    made.step((7, 0))
    assert made.tick()[0] == 7


def test_what_is_handed_out_and_taken_in_belongs_to_who_has_it():
    made = Resampler(NAMES, AsyncInferenceConfig(policy_hz=10, control_hz=50, max_step=1.0))
    start = np.zeros(2)
    made.reset(start)
    start += 50
    made.step((5, 0))
    first = made.tick()
    first += 50
    assert made.tick()[0] == 2
