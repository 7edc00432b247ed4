"""ACT's temporal ensembling: LeRobot's numbers from the class, from the queue's rule, and from the engine."""

import numpy as np
import pytest
import torch
from checkpoints import STATE, make_act
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler
from lerobot.policies.utils import prepare_observation_for_inference
from local_policy import JOINTS, TASK, frame, load, make, observation
from scripted import Rig, chunk

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.ensemble import TemporalEnsemble, newest_share
from lerobot_ext.rollout.factory import choose_merge
from lerobot_ext.rollout.merge import Ensemble, merge_rule, replace
from lerobot_ext.rollout.queue import ActionQueue

COEFFS = (0.01, 0.0, 0.5, -0.5)
WIDE = dict.fromkeys(JOINTS, (-1000000.0, 1000000.0))


def rows(rng, length=6, dim=2):
    return rng.normal(size=(length, dim)).astype(np.float32)


@pytest.mark.parametrize("coeff", COEFFS)
def test_one_chunk_a_step_is_lerobots(coeff):
    rng, steps = np.random.default_rng(0), 6
    theirs, ours = ACTTemporalEnsembler(coeff, steps), TemporalEnsemble(coeff)
    for episode in range(2):
        theirs.reset()
        ours.reset()
        for _ in range(25):
            chunk = rows(rng, steps)
            expected = theirs.update(torch.from_numpy(chunk)[None])[0].numpy()
            found = ours.add(chunk)
            assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-6, episode


@settings(deadline=None)
@given(st.sampled_from(COEFFS), st.integers(1, 12))
def test_the_shares_are_those_of_the_paper(coeff, votes):
    weights = np.exp(-coeff * np.arange(votes + 1))
    assert newest_share(coeff, np.array([votes]))[0] == pytest.approx(weights[-1] / weights.sum())


def test_an_episode_may_be_long_and_a_coefficient_steep():
    """No layout by step, and no overflow, whatever the weights."""
    for coeff in (300.0, -300.0, 0.01):
        ensemble = TemporalEnsemble(coeff)
        for step in range(1500):
            action = ensemble.add(np.full((4, 1), step))
            assert np.isfinite(action).all()
        oldest, newest = 1496, 1499
        assert {300.0: oldest, -300.0: newest}.get(coeff, action[0]) == action[0]


def test_chunks_may_differ_in_length():
    ensemble = TemporalEnsemble(0.0)
    assert ensemble.add([[1.0], [1.0]]) == 1
    assert ensemble.add([[3.0]]) == 2, "both speak for this step"
    assert ensemble.add([[7.0], [8.0]]) == 7, "nobody has spoken for it before"
    assert ensemble.add([[2.0]]) == 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(np.zeros((0, 2)), r"\(0, 2\)"), (np.zeros(2), r"\(2,\)"), (np.zeros((3, 4)), "4 entries")],
)
def test_what_is_no_chunk_is_refused(wrong, said):
    ensemble = TemporalEnsemble(0.1)
    ensemble.add(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=said):
        ensemble.add(wrong)


# The queue


@settings(deadline=None)
@given(
    st.sampled_from(COEFFS),
    st.lists(st.one_of(st.just("pop"), st.tuples(st.integers(0, 5), st.integers(1, 8))), max_size=40),
)
def test_an_action_is_the_weighted_mean_of_what_came_in_time(coeff, events):
    """Late chunks, gaps and all: by the formula, over every chunk that spoke for the timestep before it was executed."""
    queue, said, rng = ActionQueue(), {}, np.random.default_rng(1)
    for event in events:
        if event == "pop":
            timestep = queue.executed
            action = queue.pop()
            opinions = said.get(timestep, [])
            assert (action is None) == (not opinions)
            if action is not None:
                weights = np.exp(-coeff * np.arange(len(opinions)))
                assert np.allclose(action, weights @ np.array(opinions) / weights.sum(), atol=1e-5)
            continue
        age, length = event
        timestep, new = max(0, queue.executed - age), rows(rng, length)
        queue.merge(Ensemble(coeff), timestep, new, 3 * new)
        for step in range(queue.executed, timestep + length):
            said.setdefault(step, []).append(new[step - timestep])
        assert queue.left_over(queue.executed) is None or np.allclose(
            queue.left_over(queue.executed), 3 * queue.planned(queue.executed), atol=1e-4
        )


def test_what_another_rule_made_is_one_opinion():
    queue, rule = ActionQueue(), merge_rule("ensemble", "average", 0.0)
    for value in (0.0, 0.0, 0.0):
        queue.merge(rule, 0, np.full((3, 1), value, np.float32))
    queue.merge(replace, 0, np.full((3, 1), 1, np.float32))
    queue.merge(rule, 0, np.full((3, 1), 3, np.float32))
    assert [queue.pop() for _ in range(4)] == [2, 2, 2, None]
    queue.merge(rule, 3, np.full((3, 1), 9, np.float32))
    assert queue.pop() == 9


# The engine


def test_a_chunk_is_asked_for_at_every_step_however_full_the_queue():
    with Rig(merge="ensemble", chunk_size_threshold=0.0, ensemble_coeff=0.0) as rig:
        rig.show()
        rig.chunk(0, chunk(0))
        assert rig.act() == [0, 0]
        rig.show()
        rig.chunk(1, chunk(3))
        assert rig.act() == [pytest.approx((1 + 3) / 2, abs=0.02), 0]
        rig.show()
        rig.source.wait_asked(3)


def test_a_late_chunk_counts_for_the_steps_that_are_still_to_come():
    with Rig(merge="ensemble", requests_in_flight=1) as rig:
        rig.show()
        rig.chunk(0, chunk(0))
        rig.act()
        rig.show()
        rig.source.wait_asked(2)
        assert rig.act() == [1, 0], "it does not wait for the second"
        rig.chunk(1, chunk(3))  # for timestep 1, at timestep 2
        assert rig.act() == [pytest.approx((2 + 4) / 2, abs=0.02), 0]


@pytest.mark.parametrize(
    ("wanted", "rtc", "ensembles", "chosen"),
    [
        ("auto", False, True, "ensemble"),
        ("auto", True, True, "rtc"),
        ("auto", False, False, "aggregate"),
        ("append", False, True, "append"),
        ("ensemble", False, False, "ensemble"),
    ],
)
def test_auto_takes_what_the_checkpoint_says(wanted, rtc, ensembles, chosen):
    assert choose_merge(wanted, rtc, "act", ensembles) == chosen


def test_the_options_coefficient_comes_before_the_checkpoints(act_ensembled):
    for given_coeff, used in ((None, 0.3), (0.7, 0.7)):
        engine = make(act_ensembled, AsyncInferenceConfig(ensemble_coeff=given_coeff))
        assert engine._rule == Ensemble(used)


def test_an_act_without_a_coefficient_gets_the_original_works(act):
    assert make(act, AsyncInferenceConfig(merge="ensemble"))._rule == Ensemble(0.01)


@pytest.fixture(scope="module")
def act_ensembled(tmp_path_factory):
    path = tmp_path_factory.mktemp("act") / "ensembled"
    return make_act(path, n_action_steps=1, temporal_ensemble_coeff=0.3)


def test_without_delay_it_is_acts_own_select_action(act_ensembled):
    seen = [observation(seed) for seed in range(25)]  # longer than a chunk
    policy, preprocessor, postprocessor = load(act_ensembled)
    policy.reset()
    engine = make(act_ensembled, AsyncInferenceConfig(action_limits=WIDE))
    assert engine._merge == "ensemble"
    engine.reset()
    engine.start()
    engine.resume()
    try:
        for number, each in enumerate(seen, 1):
            batch = preprocessor(prepare_observation_for_inference(frame(each), torch.device("cpu"), TASK))
            expected = postprocessor(policy.select_action(batch)).squeeze(0)
            engine.notify_observation(each)
            with engine._wake:
                assert engine._wake.wait_for(lambda number=number: engine._log.counts.chunks == number, 30)
            found = engine.get_action(None)
            assert found.shape == (STATE,) and (found - expected).abs().max() < 1e-5
    finally:
        engine.stop()


# Seeds


def test_the_nth_chunk_of_an_episode_is_asked_for_with_the_nth_seed():
    with Rig(merge="ensemble", seed=40) as rig:
        for number in range(4):
            rig.show()
            rig.chunk(number, chunk(number))
            rig.act()
        assert [request.seed for request in rig.source.asked] == [40, 41, 42, 43]
        rig.engine.reset()
        rig.show()
        assert rig.source.wait_asked(5).seed == 40, "an episode begins anew"
    with Rig() as rig:
        rig.show()
        assert rig.source.wait_asked(1).seed is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("seed", 2**70),
        ("ensemble_coeff", float("nan")),
        ("merge", "mean"),
        ("max_guidance_weight", float("inf")),
        ("rest_position.pan", float("nan")),
    ],
)
def test_an_option_that_cannot_be_is_named(option, value):
    with pytest.raises(ValueError, match=f"inference.{option} is {value}"):
        name, _, joint = option.partition(".")
        AsyncInferenceConfig(**{name: {joint: value} if joint else value})


def test_a_rest_position_that_would_never_be_gone_to_is_refused():
    with pytest.raises(ValueError, match=r"when_lost is hold.* set inference.when_lost=rest, or leave"):
        AsyncInferenceConfig(rest_position={"pan": 1.0})
