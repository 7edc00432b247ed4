"""LeRobot's policies beyond one observation and one chunk: histories, memories, guidance, what the Welcome tells."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference

from simplify_work.server.affine import affine_form
from simplify_work.server.protocol import Request
from simplify_work.server.runner import PolicyRunner
from simplify_work.wire.errors import FeatureMismatch, RemoteInferenceError
from simplify_work.wire.messages import PictureUse, Rtc
from simplify_work.wire.pictures import downscale

STATE, IMAGE, PUSHT_IMAGE = "observation.state", checkpoints.IMAGE, "observation.image"

DIFFUSION = {
    "n_obs_steps": 2, "horizon": 8, "n_action_steps": 6, "down_dims": (16, 32), "diffusion_step_embed_dim": 16,
    "spatial_softmax_num_keypoints": 4, "num_inference_steps": 3, "pretrained_backbone_weights": None,
}  # fmt: skip
VQBET = {
    "n_obs_steps": 3, "n_action_pred_token": 2, "action_chunk_size": 4, "gpt_n_layer": 1, "gpt_n_head": 2,
    "gpt_hidden_dim": 32, "gpt_input_dim": 32, "gpt_output_dim": 32, "vqvae_n_embed": 4, "vqvae_embedding_dim": 8,
    "vqvae_enc_hidden_dim": 8, "spatial_softmax_num_keypoints": 4, "pretrained_backbone_weights": None, "crop_shape": None,
}  # fmt: skip
TDMPC = {
    "latent_dim": 8, "mlp_dim": 16, "n_gaussian_samples": 16, "n_pi_samples": 4, "cem_iterations": 2,
    "q_ensemble_size": 2, "n_elites": 4, "n_action_repeats": 1, "n_action_steps": 1,
}  # fmt: skip


def served(path):
    runner = PolicyRunner(path, device="cpu")
    runner.warm_up()
    return runner


def lerobots_last_action(path, frames, seed):
    """The action that LeRobot's `select_action` gives at the last of several frames, each newly inferred."""
    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path, config=config)
    pre, post = make_pre_post_processors(config, pretrained_path=str(path))
    policy.reset()
    with torch.inference_mode():
        for frame in frames:
            policy._queues["action"].clear()
            torch.manual_seed(seed)
            batch = pre(prepare_observation_for_inference(dict(frame), torch.device("cpu"), "", ""))
            action = post(policy.select_action(batch))
    return action.numpy()


def stacked(frames):
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}


@pytest.mark.parametrize(("kind", "options"), [("diffusion", DIFFUSION), ("vqbet", VQBET)])
def test_a_history_of_observations_gives_what_lerobots_queues_give(kind, options, tmp_path):
    if kind == "diffusion":
        pytest.importorskip("diffusers")
    path = checkpoints.make_checkpoint(kind, tmp_path / kind, **options)
    runner = served(path)
    steps = options["n_obs_steps"]
    assert runner.served.n_obs_steps == steps
    histories = [[checkpoints.observation(10 * robot + step) for step in range(steps)] for robot in range(2)]
    sessions = [runner.open_session() for _ in histories]
    requests = [
        Request(session, stacked(frames), seed=7) for session, frames in zip(sessions, histories, strict=True)
    ]
    for frames, (_, result) in zip(histories, runner.infer(requests), strict=True):
        assert np.abs(result.actions[:1] - lerobots_last_action(path, frames, 7)).max() < 1e-5
    first = histories[0][:1]
    result = sessions[0].infer(stacked(first), seed=7)
    assert np.abs(result.actions[:1] - lerobots_last_action(path, first, 7)).max() < 1e-5
    # Without seeds its noise needs no generator of its own.
    requests = [
        Request(session, stacked(frames)) for session, frames in zip(sessions, histories, strict=True)
    ]
    assert [result.batch_size for _, result in runner.infer(requests)] == [2, 2]
    for wrong in (first[0], stacked([*histories[0], *first])):
        with pytest.raises(FeatureMismatch, match=f"leading axis of 1 to {steps} steps"):
            sessions[0].infer(wrong)


def test_a_policy_that_remembers_remembers_each_robots_own_episode(tmp_path):
    """TD-MPC begins its search at its last plan."""

    def frame(seed):
        observation = checkpoints.observation(seed)
        return observation | {PUSHT_IMAGE: observation.pop(IMAGE)}

    inputs = {
        STATE: PolicyFeature(FeatureType.STATE, (6,)),
        PUSHT_IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    path = checkpoints.make_checkpoint("tdmpc", tmp_path / "tdmpc", inputs=inputs, **TDMPC)
    runner = served(path)
    episodes = [[frame(seed) for seed in seeds] for seeds in ((0, 1, 2), (5, 6, 7))]
    expected = [lerobots_last_action(path, frames, 3) for frames in episodes]
    sessions = [runner.open_session(), runner.open_session()]
    for frames in zip(*episodes, strict=True):
        requests = [Request(*pair, seed=3) for pair in zip(sessions, frames, strict=True)]
        results = [result for _, result in runner.infer(requests)]
    for result, action in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.actions[:1], action, atol=1e-5)
    assert np.abs(sessions[0].infer(episodes[0][2], seed=3).actions[:1] - expected[0]).max() > 1e-3
    sessions[0].reset()
    for each in episodes[0]:
        again = sessions[0].infer(each, seed=3)
    np.testing.assert_allclose(again.actions[:1], expected[0], atol=1e-5)


@pytest.fixture(scope="module")
def smolvla_runner(smolvla):
    return served(smolvla)


@pytest.mark.parametrize("guidance", ["identity", "jacobian"])
def test_a_guided_chunk_continues_the_last_one_alone_and_in_a_batch(smolvla_runner, guidance):
    runner = smolvla_runner
    assert runner.served.supports_rtc
    frame, other = checkpoints.observation(1), checkpoints.observation(2)
    last = next(iter(runner.infer([Request(runner.open_session(), frame, seed=1, model_actions=True)])))[1]
    left_over = last.model_actions[3:]

    def request(rtc):
        given = {"rtc": rtc, "left_over": left_over} if rtc else {}
        return Request(runner.open_session(), other, seed=2, model_actions=True, **given)

    def of(*rtcs):
        return [
            result for _, result in sorted(runner.infer([request(rtc) for rtc in rtcs]), key=lambda r: r[0])
        ]

    rtc = Rtc(inference_delay=3, execution_horizon=7, guidance=guidance)
    (plain,), (guided,) = of(None), of(rtc)
    jump = [np.abs(result.model_actions[:3] - left_over[:3]).mean() for result in (plain, guided)]
    assert jump[1] < 0.5 * jump[0]
    both = of(rtc, None, rtc)
    for found, expected in zip(both, (guided, plain, guided), strict=True):
        assert np.abs(found.actions - expected.actions).max() < 1e-5
    assert both[0].batch_size >= 2


def test_guidance_without_a_leftover_is_none(smolvla_runner):
    frame, session = checkpoints.observation(1), smolvla_runner.open_session()
    expected = session.infer(frame, seed=1).actions
    request = Request(session, frame, seed=1, rtc=Rtc(0, 5))
    ((_, found),) = smolvla_runner.infer([request])
    np.testing.assert_array_equal(found.actions, expected)


def test_guidance_that_cannot_be_gets_a_sentence(smolvla_runner, runner):
    frame, left_over = checkpoints.observation(), np.zeros((4, 6), np.float32)
    for served_by, rows, sentence in (
        (runner, left_over, "policy 'act' cannot continue a chunk"),
        (smolvla_runner, left_over[:, :5].copy(), r"float32 \(4, 5\), expected float32 \(n, 6\)"),
    ):
        request = Request(served_by.open_session(), frame, rtc=Rtc(1, 4), left_over=rows)
        ((_, outcome),) = served_by.infer([request])
        with pytest.raises(RemoteInferenceError, match=sentence):
            raise outcome


def test_the_postprocessors_form_gives_its_actions(smolvla_runner):
    scale, offset = smolvla_runner.served.postprocessor
    assert scale.dtype == offset.dtype == np.float64
    request = Request(smolvla_runner.open_session(), checkpoints.observation(), seed=1, model_actions=True)
    ((_, result),) = smolvla_runner.infer([request])
    np.testing.assert_allclose(result.model_actions * scale + offset, result.actions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "postprocess",
    [
        lambda actions: actions.clamp(-3, 3),
        lambda actions: actions.cumsum(dim=1),
        lambda actions: actions + actions.flip(-1),
        lambda actions: actions[..., :5],
        lambda actions: actions.tanh(),
        lambda actions: actions / 0,
    ],
)
def test_another_form_is_not_taken_for_that(postprocess):
    assert affine_form(postprocess, 6, torch.device("cpu")) is None


def test_a_scale_and_an_offset_are_found():
    scale, offset = torch.tensor([2.0, -3.0, 0.0]), torch.tensor([0.5, 100.0, -1.0])
    found = affine_form(lambda actions: actions * scale + offset, 3, torch.device("cpu"))
    np.testing.assert_allclose(found[0], scale, atol=1e-6)
    np.testing.assert_allclose(found[1], offset, atol=1e-6)


def test_smolvla_looks_at_a_smaller_picture_as_at_a_large_one(smolvla_runner):
    use = PictureUse(IMAGE, 64, 64, "pad")
    assert smolvla_runner.served.pictures == (use,)
    y, x = np.mgrid[:240, :320] / 40
    large = np.stack([128 + 100 * np.sin(x + k) * np.cos(y - k) for k in range(3)], axis=-1).astype(np.uint8)
    small = downscale(large, use)
    assert small.shape == (48, 64, 3)
    frame = checkpoints.observation()
    session = smolvla_runner.open_session()
    chunks = [
        session.infer(frame | {IMAGE: each}, seed=1).actions for each in (large, small, large[::-1].copy())
    ]
    spread = np.abs(chunks[0] - chunks[2]).max()
    assert np.abs(chunks[0] - chunks[1]).max() < 0.05 * spread


def test_a_policy_that_takes_any_picture_lists_none(runner):
    assert runner.served.pictures == ()
    assert not runner.served.supports_rtc


def test_a_policy_that_cannot_be_compiled_is_served_as_it_is(act, monkeypatch, caplog):
    def no_compiler(*_args, **_options):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    runner = PolicyRunner(act, device="cpu", compile_policy=True)
    runner.warm_up()
    assert not runner.compiled
    assert "torch.compile failed (RuntimeError: no C compiler); going on without it" in caplog.text
    frame = checkpoints.observation()
    expected = checkpoints.local_chunk(act, frame).numpy()
    assert np.abs(runner.open_session().infer(frame).actions - expected).max() < 1e-5


def test_what_was_compiled_and_fails_later_is_served_as_it_is(act, monkeypatch, caplog):
    def compiled(predict):
        calls = iter([predict, predict])  # those of the warm-up
        return lambda batch: next(calls)(batch)

    monkeypatch.setattr(torch, "compile", compiled)
    runner = PolicyRunner(act, device="cpu", compile_policy=True)
    runner.warm_up()
    assert runner.compiled
    assert len(runner.open_session().infer(checkpoints.observation()).actions) == 20
    assert not runner.compiled
    assert "torch.compile failed" in caplog.text


def test_half_precision_gives_nearly_the_same(act):
    frame = checkpoints.observation()
    expected = checkpoints.local_chunk(act, frame).numpy()
    runner = PolicyRunner(act, device="cpu", dtype="bfloat16")
    runner.warm_up()
    found = runner.open_session().infer(frame).actions
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.1
