"""Real small policies in this process behind the engine, in real time."""

import json
import time

import numpy as np
import pytest
import torch
from checkpoints import DEFAULT_INPUTS, local_chunk, make_checkpoint
from lerobot.policies.utils import populate_queues, prepare_observation_for_inference
from lerobot.policies.vqbet.modeling_vqbet import VQBeTPolicy
from lerobot.processor import RelativeActionsProcessorStep
from local_policy import FEATURES, JOINTS, TASK, frame, load, make, observation

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.sources import LocalSource, Request
from simplify_work.wire.messages import Rtc


def source(path, parts=None):
    policy, preprocessor, postprocessor = parts or load(path)
    return LocalSource(
        policy,
        preprocessor,
        postprocessor,
        features=FEATURES,
        action_names=JOINTS,
        task=TASK,
        robot_type="so100",
        device="cpu",
    )


def drive(engine, ticks, fps=30):
    """A control loop; the actions it got."""
    actions = []
    for tick in range(ticks):
        began = time.perf_counter()
        engine.notify_observation(observation(tick))
        actions.append(engine.get_action(None))
        time.sleep(max(0.0, 1 / fps - (time.perf_counter() - began)))
    return actions


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_chunk_is_what_lerobot_computes(kind, request):
    path = request.getfixturevalue(kind)
    seen = observation()
    made = source(path)
    torch.manual_seed(3)
    answer = made.infer(Request((seen,)))
    expected = local_chunk(path, frame(seen), TASK, seed=3).numpy()
    assert np.abs(answer.actions - expected).max() < 1e-5
    assert answer.actions.dtype == answer.model_actions.dtype == np.float32
    assert answer.model_actions.shape == answer.actions.shape
    assert not np.allclose(answer.model_actions, answer.actions), "before postprocessing"
    assert answer.figures["round_trip_s"] >= answer.figures["infer_s"] > 0


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_seed_gives_the_noise_that_lerobot_has_after_it(kind, request):
    path = request.getfixturevalue(kind)
    seen, made = observation(), source(path)
    found = [made.infer(Request((seen,), seed=seed)).actions for seed in (3, 3, 4)]
    expected = local_chunk(path, frame(seen), TASK, seed=3).numpy()
    assert np.array_equal(found[0], found[1]) and np.abs(found[0] - expected).max() < 1e-5
    assert np.array_equal(found[0], found[2]) == (kind == "act"), "ACT draws none"


@pytest.mark.parametrize("kind", ["act", "smolvla"])
@pytest.mark.parametrize("merge", ["auto", "aggregate", "append"])
def test_it_runs_in_real_time(kind, merge, request, tmp_path):
    config = AsyncInferenceConfig(merge=merge, telemetry_dir=str(tmp_path), requests_in_flight=2)
    engine = make(request.getfixturevalue(kind), config)
    engine.reset()
    engine.start()
    engine.resume()
    try:
        actions = []
        while sum(action is not None for action in actions) < 30 and len(actions) < 600:
            actions += drive(engine, 10)
        engine.reset()
        assert engine.get_action(None) is None, "nothing is left of the last episode"
        drive(engine, 5)
    finally:
        engine.stop()
    got = [action for action in actions if action is not None]
    assert len(got) >= 30 and all(action.shape == (6,) and action.dtype == torch.float32 for action in got)
    lines = [json.loads(line) for line in (tmp_path / "episode_000000.jsonl").open()]
    chosen = {"auto": "rtc" if kind == "smolvla" else "aggregate"}.get(merge, merge)
    assert lines[0]["merge"] == chosen and lines[0]["action_names"] == JOINTS
    end = lines[-1]
    assert end["event"] == "end" and end["chunks"] >= 2 and (end["faults"], end["refused"]) == (0, 0)
    assert end["ticks"] - end["starved"] == len(got)
    for line in lines:
        if line["event"] == "chunk":
            assert line["delay"] == line["arrived"] - line["timestep"] and line["infer_s"] > 0
    assert (tmp_path / "episode_000001.jsonl").exists()


def test_guidance_makes_the_new_chunk_begin_like_the_leftover(smolvla):
    parts = source(smolvla)
    first = parts.infer(Request((observation(0),)))
    left = first.model_actions[3:]
    rtc = Rtc(inference_delay=4, execution_horizon=len(left))
    distances = []
    for request in (
        Request((observation(1),), rtc, left, first.actions[3:]),
        Request((observation(1),), rtc, None, None),
    ):
        torch.manual_seed(7)
        answer = parts.infer(request)
        distances.append(np.abs(answer.model_actions[:4] - left[:4]).mean())
    assert distances[0] < 0.5 * distances[1]


def test_a_leftover_of_relative_actions_is_seen_from_the_new_state(smolvla, monkeypatch):
    """As LeRobot's RTC engine does it: the same absolute targets, relative to where the arm is now."""
    policy, preprocessor, postprocessor = load(smolvla)
    step = RelativeActionsProcessorStep(enabled=True)
    preprocessor.steps.insert(0, step)
    made = source(None, (policy, preprocessor, postprocessor))
    assert step.action_names == JOINTS
    given = []
    original = type(policy).predict_action_chunk

    def predict(self, batch, **kwargs):
        given.append(self.rtc_processor._requests[0].left_over)
        return original(self, batch, **kwargs)

    monkeypatch.setattr(type(policy), "predict_action_chunk", predict)
    seen = observation(1)
    planned = np.tile(frame(seen)["observation.state"], (5, 1)).astype(np.float32)
    made.infer(Request((seen,), Rtc(1, 5), np.full((5, 6), 9, np.float32), planned))
    stats = next(s for s in preprocessor.steps if hasattr(s, "stats") and s.stats).stats["action"]
    expected = (0 - np.asarray(stats["mean"])) / np.asarray(stats["std"])
    assert np.allclose(given[0].numpy(), expected, atol=1e-3), "where the arm is: no way to go"


def test_a_policy_that_looks_back_gets_the_last_observations(tmp_path):
    path = make_checkpoint(
        "vqbet",
        tmp_path / "vqbet",
        n_obs_steps=3,
        action_chunk_size=4,
        crop_shape=None,
        pretrained_backbone_weights=None,
        gpt_n_layer=1,
        gpt_n_head=2,
        gpt_hidden_dim=32,
        gpt_input_dim=32,
        gpt_output_dim=32,
        vqvae_enc_hidden_dim=16,
        vqvae_embedding_dim=16,
    )
    made = source(path)
    assert made.n_obs_steps == 3
    policy, preprocessor, postprocessor = load(path)
    assert isinstance(policy, VQBeTPolicy)
    policy.reset()
    shown = [observation(seed) for seed in range(5)]

    with torch.no_grad():
        for seen in shown:
            batch = preprocessor(
                prepare_observation_for_inference(frame(seen), torch.device("cpu"), TASK, "")
            )
            del batch["action"]
            batch["observation.images"] = torch.stack([batch["observation.images.side"]], dim=-4)
            populate_queues(policy._queues, batch, exclude_keys=["action"])
        torch.manual_seed(5)
        expected = postprocessor(policy.predict_action_chunk(batch)).squeeze(0).numpy()
    torch.manual_seed(5)
    answer = made.infer(Request(tuple(shown[-3:])))
    assert np.abs(answer.actions - expected).max() < 1e-5
    assert len(made.infer(Request((shown[0],))).actions) == 4, "at an episode's start there is only one"


def test_a_policy_whose_chunks_have_time_first_is_no_exception(tmp_path):
    """TD-MPC's are (n, 1, dim)."""
    small = {"latent_dim": 8, "mlp_dim": 16, "q_ensemble_size": 2, "cem_iterations": 2}
    searched = {"n_gaussian_samples": 16, "n_pi_samples": 4, "n_elites": 4}
    steps = {"n_action_repeats": 1, "n_action_steps": 1, "horizon": 5}
    inputs = dict(DEFAULT_INPUTS)
    inputs["observation.image"] = inputs.pop("observation.images.side")  # as LeRobot's TD-MPC wants it named

    def renamed(preprocessor, postprocessor):
        preprocessor.steps[0].rename_map = {"observation.images.side": "observation.image"}

    path = make_checkpoint(
        "tdmpc", tmp_path / "tdmpc", inputs=inputs, change=renamed, **small, **searched, **steps
    )
    made = source(path)
    answer = made.infer(Request((observation(),)))
    assert answer.actions.shape == answer.model_actions.shape == (5, 6)


def test_rtc_of_a_policy_that_cannot_is_refused_in_a_sentence(act):
    with pytest.raises(ValueError, match="inference.merge is rtc, but policy 'act' cannot") as caught:
        make(act, AsyncInferenceConfig(merge="rtc"))
    assert "aggregate or append" in str(caught.value)


def test_limits_and_rest_position_name_the_robots_joints(act):
    engine = make(
        act,
        AsyncInferenceConfig(
            action_limits={"joint_2": (-1.0, 1.0)}, when_lost="rest", rest_position={"joint_0": 5.0}
        ),
    )
    assert (engine._checks.low[2], engine._checks.high[2]) == (-1, 1) and np.isinf(engine._checks.low[0])
    for option in ("action_limits", "rest_position"):
        value = (-1.0, 1.0) if option == "action_limits" else 1.0
        with pytest.raises(ValueError, match=f"inference.{option} names 'elbow'"):
            make(act, AsyncInferenceConfig(when_lost="rest", **{option: {"elbow": value}}))
    beyond = AsyncInferenceConfig(
        action_limits={"joint_2": (-1.0, 1.0)}, when_lost="rest", rest_position={"joint_2": 3.0}
    )
    with pytest.raises(ValueError, match=r"rest_position has joint_2.pos at 3, allowed is -1 to 1: choose"):
        make(act, beyond)
