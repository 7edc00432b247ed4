"""Positions between a policy's actions: at any ratio, never a step too large, nothing beyond what was asked for."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted import NAMES

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.resample import Resampler

RATES = st.one_of(
    st.sampled_from([(10, 100), (10, 25), (30, 100), (60, 60), (29.97, 100), (1 / 3, 7)]),
    st.tuples(st.floats(0.5, 50), st.floats(1, 12)).map(lambda rate: (rate[0], rate[0] * rate[1])),
)
VALUES = st.floats(-180, 180, width=32)
ROWS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)


def resampler(policy_hz, control_hz, *, start=None, names=NAMES, **options):
    made = Resampler(names, AsyncInferenceConfig(policy_hz=policy_hz, control_hz=control_hz, **options))
    made.reset(start)
    return made


def positions(made, actions, ahead=None):
    """What is commanded at each tick until `actions` are over; None is a step without one.

    `ahead` is what is thought at each step to follow; by default it is what does follow.
    """
    actions = [None if action is None else np.array(action, np.float32) for action in actions]
    commanded = []
    for step, action in enumerate(actions):
        following = actions[step + 1 : step + 3] if ahead is None else ahead[step]
        assert made.begins_step
        made.step(action, [row for row in following if row is not None])
        commanded.append(made.tick())
        while not made.begins_step:
            commanded.append(made.tick())
    return commanded


def firsts(commanded):
    return [None if position is None else round(float(position[0]), 4) for position in commanded]


# --- where it goes ---


@settings(deadline=None)
@given(RATES, ROWS)
def test_linear_is_the_line_through_the_actions_at_any_ratio(rates, rows):
    policy_hz, control_hz = rates
    commanded = np.array(positions(resampler(*rates, start=rows[0]), rows))
    times = np.arange(len(commanded)) * policy_hz / control_hz
    expected = [np.interp(times, range(len(rows)), column) for column in np.array(rows, np.float32).T]
    assert np.allclose(commanded, np.stack(expected, 1), atol=1e-6)


@settings(deadline=None)
@given(RATES, st.integers(1, 60))
def test_steps_begin_as_often_as_they_should_and_it_is_known_before(rates, ticks):
    made = resampler(*rates)
    begun, foreseen = 0, True
    for _ in range(ticks):
        assert made.begins_step == foreseen
        begun, foreseen = begun + made.begins_step, made.step_begins_in(1)
        made.tick()
    assert abs(begun - 1 - (ticks - 1) * rates[0] / rates[1]) <= 1


@settings(deadline=None)
@given(ROWS, st.lists(st.none() | st.tuples(VALUES, VALUES), min_size=12, max_size=12))
def test_at_equal_rates_each_action_is_commanded_as_it_is(rows, ahead):
    """Whatever was thought to follow, and wherever the arm was."""
    thought = [[] if row is None else [row] for row in ahead]
    commanded = positions(resampler(60, 60, start=(7, 7)), rows, thought)
    assert np.array_equal(commanded, np.array(rows, np.float32))


def test_held_joints_keep_each_action_until_the_next():
    commanded = positions(resampler(10, 40, hold_joints=["grip"], start=(0, 0)), [(0, 0), (4, 1), (8, 0)])
    assert [list(position) for position in commanded[:8]] == [
        *([i, 0] for i in range(4)),
        *([i, 1] for i in range(4, 8)),
    ]


def test_hold_holds_every_joint():
    commanded = positions(resampler(10, 30, resample="hold"), [(0, 5), (4, 1)])
    assert [list(position) for position in commanded] == 3 * [[0, 5]] + 3 * [[4, 1]]


def test_joints_that_are_not_there_are_named():
    with pytest.raises(
        ValueError, match=r"inference.hold_joints names 'thumb'; the robot's action has pan.pos"
    ):
        resampler(10, 100, hold_joints=["thumb"])


# --- bridges ---


def test_the_first_action_is_approached_from_where_the_arm_is_during_one_policy_period():
    commanded = positions(resampler(10, 50, start=(0, 0)), [(10, 0), (10, 0)])
    assert firsts(commanded) == [2, 4, 6, 8, 10, 10, 10, 10, 10, 10]


def test_without_a_measured_position_the_first_action_is_commanded_as_it_is():
    assert firsts(positions(resampler(10, 50), [(10, 0)])) == 5 * [10]


def test_a_merge_that_changes_the_next_action_is_bridged_during_one_policy_period():
    made = resampler(10, 50, start=(0, 0))
    commanded = positions(made, [(0, 0), (15, 0), (20, 0)], [[(5, 0)], [(20, 0)], []])
    # The way led to 5; from there on it is 10 beside the new one, and less and less so.
    assert firsts(commanded) == [0, 1, 2, 3, 4, 15 - 8, 16 - 6, 17 - 4, 18 - 2, 19, 20, 20, 20, 20, 20]


def test_without_an_action_the_way_is_finished_and_then_nothing_is_sent():
    made = resampler(10, 25, start=(0, 0))
    commanded = positions(made, [(0, 0), (5, 0), None, None], [[(5, 0)], [(10, 0)], [], []])
    # Ticks are 0.4 steps apart: the last of step 1 is at 1.6, and at 2.0 the way has ended.
    assert firsts(commanded) == [0, 2, 4, 6, 8, 10, None, None, None, None]


def test_after_a_wait_the_way_goes_on_from_what_was_commanded_last():
    made = resampler(10, 50, start=(0, 0))
    actions = [(0, 0), (5, 0), None, (10, 0)]
    commanded = positions(made, actions, [[(5, 0)], [], [], []])
    assert firsts(commanded) == [0, 1, 2, 3, 4, *5 * [5], *5 * [None], 6, 7, 8, 9, 10]


def test_nothing_is_commanded_before_the_first_action():
    commanded = positions(resampler(10, 50, start=(3, 0)), [None, (3, 0)])
    assert firsts(commanded) == 5 * [None] + 5 * [3]


@settings(deadline=None)
@given(
    RATES,
    st.sampled_from(["linear", "hold", "cubic"]),
    st.lists(st.sampled_from(NAMES), unique=True),
    st.floats(0.01, 20),
    st.lists(st.none() | st.tuples(VALUES, VALUES), min_size=1, max_size=12),
    st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=3), min_size=12, max_size=12),
)
def test_no_position_is_further_than_max_step_from_the_one_before(
    rates, resample, held, max_step, actions, ahead
):
    """From the measured position on, with waits, and with merges that change what was thought to follow."""
    made = resampler(*rates, start=(0, 0), resample=resample, hold_joints=held, max_step=max_step)
    sent = [position for position in positions(made, actions, ahead) if position is not None]
    way = np.array([np.zeros(2), *sent])
    assert np.abs(np.diff(way, axis=0)).max(initial=0) <= max_step + 1e-9


@settings(deadline=None)
@given(
    RATES,
    st.sampled_from(["linear", "cubic"]),
    st.none() | st.floats(0.01, 20),
    st.lists(st.none() | st.tuples(VALUES, VALUES), min_size=1, max_size=12),
    st.lists(st.lists(st.tuples(VALUES, VALUES), max_size=3), min_size=12, max_size=12),
)
@example((10, 25), "linear", None, [(0, 0), (50, 0), (99, 0)], [[(100, 0)], [(100, 0)], [], *9 * [[]]])
@example((10, 100), "cubic", None, [(0, 0), (50, 0)], [[(100, 0)], [(100, 0)], *10 * [[]]])
def test_no_position_is_beyond_where_the_arm_was_sent_and_where_it_goes(
    rates, resample, max_step, actions, ahead
):
    """Also where a bridge meets another one, or a bent way."""
    made = resampler(*rates, start=(0, 0), resample=resample, max_step=max_step)
    sent = led_to = np.zeros(2)
    for action, following in zip(actions, ahead, strict=False):
        rows = [] if action is None else [np.float32(action), *np.float32(following)[:1]]
        ends = [sent, led_to, *rows]
        made.step(None if action is None else rows[0], rows[1:])
        while True:
            position = made.tick()
            if position is not None:
                assert (position >= np.min(ends, 0) - 1e-6).all()
                assert (position <= np.max(ends, 0) + 1e-6).all()
                sent = position
            if made.begins_step:
                break
        led_to = ends[-1] if rows else led_to


def test_an_arm_that_had_to_go_slowly_arrives():
    commanded = positions(resampler(10, 50, start=(0, 0), max_step=1), 3 * [(12, 0)])
    assert firsts(commanded) == [*range(1, 13), 12, 12, 12]


def test_with_nothing_to_follow_it_still_arrives_slowly():
    commanded = positions(resampler(10, 50, start=(0, 0), max_step=1), [(7, 0), None, None])
    assert firsts(commanded) == [*range(1, 8), *8 * [None]]


# --- cubic ---


@settings(deadline=None)
@given(RATES, ROWS)
def test_a_cubic_way_stays_between_the_actions_that_it_connects(rates, rows):
    policy_hz, control_hz = rates
    rows = np.array(rows, np.float32).astype(float)
    commanded = np.array(positions(resampler(*rates, resample="cubic", start=rows[0]), rows))
    for tick, position in enumerate(commanded):
        step = int(tick * policy_hz / control_hz + 1e-9)
        ends = rows[step : step + 2]
        assert (position >= ends.min(0) - 1e-6).all() and (position <= ends.max(0) + 1e-6).all()


def test_a_cubic_way_goes_through_the_actions():
    rows = [(0, 1), (5, 2), (3, 8), (9, 8)]
    commanded = positions(resampler(10, 50, resample="cubic", start=rows[0]), rows)
    assert np.allclose(commanded[::5], rows)


@pytest.mark.parametrize("noise", [0, 0.5])
def test_a_cubic_way_has_a_fifth_of_the_jerk_of_straight_lines(noise):
    """On swings as arms make them, 10 Hz to 100 Hz; its fastest step is at most half larger."""
    times = np.arange(80) / 10
    swings = np.stack([30 * np.sin(2.5 * times), 20 * np.sin(5.7 * times + 1)], 1)
    rows = swings + np.random.default_rng(0).normal(0, noise, swings.shape)
    jerk, step = {}, {}
    for resample in ("linear", "cubic"):
        way = np.array(positions(resampler(10, 100, resample=resample, start=rows[0]), rows))
        jerk[resample] = np.sqrt((np.diff(way, 3, axis=0) ** 2).mean())
        step[resample] = np.abs(np.diff(way, axis=0)).max()
    assert jerk["cubic"] < 0.2 * jerk["linear"] and step["cubic"] < 1.5 * step["linear"]
