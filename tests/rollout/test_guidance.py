"""Guided denoising: LeRobot's numbers where it is LeRobot's, the paper's where it is the paper's, and no traces."""

import checkpoints
import pytest
import torch
from guidance_requests import DIM, SCHEDULES, STEPS, WIDTH, ask, finite_difference_gaps, lerobots_chunk, rand
from lerobot.configs import PreTrainedConfig
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.utils import prepare_observation_for_inference

from lerobot_ext.rollout.guidance import (
    BatchRTCProcessor,
    Guidance,
    check_guidance,
    guided,
    supports_guidance,
)
from simplify_work.wire.messages import Rtc


@pytest.fixture(scope="module")
def loaded(smolvla):
    config = PreTrainedConfig.from_pretrained(smolvla)
    policy = get_policy_class(config.type).from_pretrained(smolvla, config=config).eval()
    return policy, make_pre_post_processors(config, pretrained_path=str(smolvla))[0]


@pytest.fixture(scope="module")
def policy(loaded):
    return loaded[0]


@pytest.fixture
def batch_of(loaded):
    def make(*seeds):
        frames = [
            loaded[1](
                prepare_observation_for_inference(
                    checkpoints.observation(seed), torch.device("cpu"), "press", "so100"
                )
            )
            for seed in seeds
        ]
        return {
            key: torch.cat([frame[key] for frame in frames])
            for key, value in frames[0].items()
            if isinstance(value, torch.Tensor)
        }

    return make


def chunk(policy, batch, noise, *requests, **arguments):
    with torch.no_grad(), guided(policy, requests):
        return policy.predict_action_chunk(dict(batch), noise=noise, **arguments)


# One sample: LeRobot's numbers


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("rows", "horizon"), [(10, 7), (8, 7), (4, 7), (1, 10)])
def test_identity_for_one_sample_is_lerobots_own(policy, batch_of, schedule, rows, horizon):
    batch, noise = batch_of(1), rand(1, STEPS, WIDTH)
    request = ask(delay=2, horizon=horizon, schedule=schedule, rows=rows)
    expected = lerobots_chunk(policy, batch, noise, request)
    found = chunk(policy, batch, noise, request)
    assert (found - expected).abs().max() < 1e-6
    assert (found - chunk(policy, batch, noise, None)).abs().max() > 1e-3


# The Jacobian


def test_jacobian_of_smolvla_agrees_with_finite_differences_at_every_time(policy, batch_of, monkeypatch):
    """Also after earlier guided steps: the KV cache that they left behind must not leak into the gradient."""
    gaps = finite_difference_gaps(policy, batch_of(1), monkeypatch)
    assert len(gaps) == policy.config.num_steps
    assert max(gaps) < 2e-2, gaps


@pytest.mark.parametrize("guidance", ["identity", "jacobian"])
def test_guidance_brings_the_prefix_to_the_leftover(policy, batch_of, guidance):
    batch, noise = batch_of(1), rand(1, STEPS, WIDTH)
    request = ask(delay=3, horizon=8, guidance=guidance)
    free = chunk(policy, batch, noise, None)[0]
    bound = chunk(policy, batch, noise, request)[0]
    before = (free[:3] - request.left_over[:3]).abs().mean()
    after = (bound[:3] - request.left_over[:3]).abs().mean()
    assert after < 0.5 * before


# Batches


def test_each_sample_of_a_batch_is_guided_as_if_it_were_alone(policy, batch_of):
    requests = [
        ask(delay=2, horizon=7, seed=1),
        None,
        ask(delay=0, horizon=4, guidance="jacobian", schedule="exp", clamp=5.0, rows=5, seed=2),
        ask(delay=5, horizon=10, schedule="ones", clamp=1.0, rows=10, seed=3),
        Guidance(Rtc(2, 7), None),
    ]
    noise = rand(5, STEPS, WIDTH)
    together = chunk(policy, batch_of(*range(5)), noise, *requests)
    for sample, request in enumerate(requests):
        alone = chunk(policy, batch_of(sample), noise[sample : sample + 1], request)
        assert torch.allclose(together[sample], alone[0], atol=1e-5), sample


@pytest.mark.parametrize("guidance", ["identity", "jacobian"])
def test_unguided_samples_of_a_batch_come_out_unchanged(policy, batch_of, guidance):
    batch, noise = batch_of(0, 1, 2), rand(3, STEPS, WIDTH)
    without = chunk(policy, batch, noise, None, None, None)
    request = ask(guidance=guidance)
    mixed = chunk(policy, batch, noise, None, request, Guidance(request.rtc, torch.zeros(0, DIM)))
    assert torch.equal(mixed[[0, 2]], without[[0, 2]])
    assert not torch.allclose(mixed[1], without[1])


def test_gradients_of_earlier_steps_are_not_kept(policy, batch_of):
    """The answer carries no history, so ten steps cost the memory of one."""
    result = chunk(policy, batch_of(1), rand(1, STEPS, WIDTH), ask(guidance="jacobian"))
    assert not result.requires_grad
    answered = BatchRTCProcessor([ask(guidance="jacobian")]).denoise_step(
        rand(1, STEPS, WIDTH), None, None, 0.5, lambda x: x * policy.model.state_proj.weight.mean()
    )
    assert not answered.requires_grad


# What is refused


def test_a_leftover_wider_than_the_actions_is_refused(policy):
    with pytest.raises(ValueError, match="33 values"):
        check_guidance(policy, ask(dim=33))
    with pytest.raises(ValueError, match="33 values"), guided(policy, [ask(dim=33)]):
        pass


def test_a_batch_of_another_size_is_refused(policy, batch_of):
    with pytest.raises(ValueError, match="2 samples came with 1"):
        chunk(policy, batch_of(0, 1), rand(2, STEPS, WIDTH), ask())
    assert_untouched(policy)


def test_inference_mode_is_refused_where_gradients_are_needed(policy):
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="no_grad"),
        guided(policy, [ask(guidance="jacobian")]),
    ):
        pass
    with torch.inference_mode(), guided(policy, [ask(guidance="identity")]):
        pass


# Hooks


def assert_untouched(policy):
    assert policy.config.rtc_config is None
    assert policy.rtc_processor is None
    assert policy.model.rtc_processor is None
    assert "predict_action_chunk" not in vars(policy)


def test_afterwards_the_policy_is_as_it_was(policy, batch_of):
    batch, noise = batch_of(1), rand(1, STEPS, WIDTH)
    before = chunk(policy, batch, noise, None)
    chunk(policy, batch, noise, ask())
    assert_untouched(policy)
    assert torch.equal(chunk(policy, batch, noise, None), before)


def test_afterwards_the_policy_is_as_it_was_also_after_an_exception(policy):
    with pytest.raises(KeyboardInterrupt), guided(policy, [ask()]):
        assert policy.config.rtc_config.enabled
        raise KeyboardInterrupt
    assert_untouched(policy)


def test_a_policy_on_which_lerobot_had_switched_rtc_on_keeps_it(policy):
    policy.config.rtc_config = own = RTCConfig(enabled=False)
    policy.init_rtc_processor()
    processor = policy.rtc_processor
    try:
        with guided(policy, [ask()]):
            assert policy.model.rtc_processor is not processor
        assert policy.config.rtc_config is own
        assert policy.rtc_processor is policy.model.rtc_processor is processor
    finally:
        policy.config.rtc_config = policy.rtc_processor = policy.model.rtc_processor = None


def test_nothing_is_installed_where_nothing_is_guided(policy):
    with guided(policy, [None, Guidance(Rtc(2, 7), None)]):
        assert_untouched(policy)


def test_only_policies_with_lerobots_hooks_support_guidance(policy, act):
    config = PreTrainedConfig.from_pretrained(act)
    plain = get_policy_class(config.type).from_pretrained(act, config=config)
    assert supports_guidance(policy)
    assert not supports_guidance(plain)
    assert not supports_guidance(object())
    with pytest.raises(ValueError, match="ACTPolicy cannot guide"), guided(plain, [ask()]):
        pass


class OwnHooks(torch.nn.Module):
    """Hooks in the policy itself (MolmoAct2), looked at only with LeRobot's arguments (EVO1), other sign and time."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {})()
        self.config.rtc_config = None
        self.init_rtc_processor()

    def supports_rtc(self):
        return True

    def init_rtc_processor(self):
        self.rtc_processor = None

    def predict_action_chunk(self, batch, inference_delay=None, prev_chunk_left_over=None):
        enabled = self.config.rtc_config is not None and self.config.rtc_config.enabled
        if inference_delay is None and prev_chunk_left_over is None:
            enabled = False
        return euler_integrate(
            lambda x, time: x - batch,
            rand(*batch.shape),
            5,
            rtc_processor=self.rtc_processor,
            rtc_enabled=enabled,
        )


def test_hooks_in_the_policy_itself_are_found():
    policy = OwnHooks()
    assert supports_guidance(policy)
    batch = torch.zeros(1, STEPS, DIM)
    with torch.no_grad(), guided(policy, [ask()]):
        guided_chunk = policy.predict_action_chunk(batch)
    assert not torch.allclose(guided_chunk, policy.predict_action_chunk(batch))
    assert policy.rtc_processor is None
