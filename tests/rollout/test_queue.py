"""The queue keeps its timesteps whatever arrives when, and the merge rules give the numbers they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.rollout.merge import WEIGHTS, aggregate, append, merge_rule, replace
from lerobot_ext.rollout.queue import ActionQueue

RULES = {"append": append, "rtc": replace} | {name: aggregate(name) for name in WEIGHTS}

# What happens: "pop" or (age of the observation in timesteps, length of the chunk).
events = st.lists(
    st.one_of(st.just("pop"), st.tuples(st.integers(0, 15), st.integers(1, 12))), min_size=1, max_size=60
)


def chunk_at(timestep: int, length: int, number: int = 0) -> np.ndarray:
    """Rows that say for which timestep and of which chunk they are."""
    rows = np.full((length, 2), number, np.float32)
    rows[:, 0] = timestep + np.arange(length)
    return rows


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(events=events)
def test_every_timestep_is_executed_once_and_in_order(rule, events):
    queue, executed = ActionQueue(), []
    for number, event in enumerate(events):
        before = len(queue)
        if event == "pop":
            action = queue.pop()
            assert (action is None) == (before == 0)
            if action is not None:
                executed.append(round(float(action[0]), 3))
        else:
            age, length = event
            timestep = max(0, queue.executed - age)
            late = queue.executed - timestep
            merged = queue.merge(rule, timestep, chunk_at(timestep, length, number))
            assert (merged.trimmed, merged.added) == (min(late, length), max(0, length - late))
            assert len(queue) >= (merged.added if rule is replace else max(before, merged.added))
            if merged.added == 0:
                assert len(queue) == before, "a chunk that is all too late changes nothing"
    assert executed == list(range(len(executed))) and queue.executed == len(executed)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(events=events, back=st.integers(0, 5))
def test_the_leftover_is_aligned_with_the_observation(rule, events, back):
    queue = ActionQueue()
    for event in events:
        if event == "pop":
            queue.pop()
        else:
            timestep = max(0, queue.executed - event[0])
            actions = chunk_at(timestep, event[1])
            queue.merge(rule, timestep, actions, 10 * actions)
        timestep = max(0, queue.executed - back)
        left = queue.left_over(timestep)
        if left is None:
            assert len(queue) == 0
            continue
        assert len(left) == queue.executed - timestep + len(queue)
        assert np.allclose(left[:, 0], 10 * (timestep + np.arange(len(left))))
        assert np.allclose(queue.planned(timestep), left / 10)


@pytest.mark.parametrize(("name", "weights"), WEIGHTS.items())
def test_aggregation_mixes_what_overlaps(name, weights):
    old, new = np.float32([[10, 0], [20, 0]]), np.float32([[100, 1], [200, 1], [300, 1]])
    mixed = merge_rule("aggregate", name)(old, new)
    assert np.allclose(mixed[:2, 0], weights[0] * old[:, 0] + weights[1] * new[:2, 0])
    assert mixed[2].tolist() == [300, 1] and mixed.dtype == np.float32


def test_the_weights_are_lerobots():
    from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS

    for name, function in AGGREGATE_FUNCTIONS.items():
        assert WEIGHTS[name] == pytest.approx((function(1.0, 0.0), function(0.0, 1.0)))


def test_append_keeps_what_is_queued():
    old, new = chunk_at(5, 3, 1), chunk_at(5, 5, 2)
    assert merge_rule("append", "average")(old, new).tolist() == [[5, 1], [6, 1], [7, 1], [8, 2], [9, 2]]


def test_rtc_replaces():
    old, new = chunk_at(5, 5, 1), chunk_at(5, 3, 2)
    assert merge_rule("rtc", "average")(old, new) is new


def test_the_jump_is_the_change_of_what_comes_next():
    queue = ActionQueue()
    assert queue.merge(replace, 0, np.float32([[1, 1], [2, 2], [3, 3]])).jump is None
    queue.pop()
    assert queue.merge(replace, 0, np.float32([[9, 9], [2.5, 0]])).jump == 2, "next was (2, 2)"
    queue.pop()
    assert queue.merge(replace, 2, np.float32([[3, 3]])).jump == 3, (
        "nothing was next; (2.5, 0) was executed last"
    )


def test_a_chunk_from_the_future_is_an_error():
    with pytest.raises(ValueError, match="timestep 1, but only 0"):
        ActionQueue().merge(replace, 1, chunk_at(1, 3))


def test_resetting_forgets_the_actions_and_the_count():
    queue = ActionQueue()
    queue.merge(replace, 0, chunk_at(0, 5))
    queue.pop()
    queue.reset()
    assert (len(queue), queue.executed) == (0, 0) and queue.left_over(0) is None


def test_an_action_is_the_callers_own():
    queue, actions = ActionQueue(), chunk_at(0, 3)
    queue.merge(append, 0, actions)
    queue.pop()[:] = 99
    assert queue.planned(0)[0].tolist() == [0, 0]
