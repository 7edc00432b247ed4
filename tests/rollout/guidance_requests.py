"""Requests for guided chunks, and what their answers are compared with, for the tests of guidance."""

import math

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from lerobot_ext.rollout.guidance import BatchRTCProcessor, Guidance, guidance_weight, guided, prefix_weights
from simplify_work.wire.messages import Rtc

STEPS, DIM, WIDTH = 10, 6, 32  # of the small policies: chunk, action, action inside the denoiser
SCHEDULES = ("zeros", "ones", "linear", "exp")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(delay=2, horizon=7, guidance="identity", schedule="linear", clamp=10.0, rows=8, dim=DIM, seed=5):
    rtc = Rtc(delay, horizon, guidance=guidance, schedule=schedule, max_guidance_weight=clamp)
    return Guidance(rtc, rand(rows, dim, seed=seed))


def lerobots_chunk(policy, batch, noise, request):
    """By LeRobot's own processor, switched on as lerobot-rollout does it."""
    rtc = request.rtc
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule(rtc.schedule.upper()),
        max_guidance_weight=rtc.max_guidance_weight,
        execution_horizon=rtc.execution_horizon,
    )
    policy.init_rtc_processor()
    try:
        return policy.predict_action_chunk(
            dict(batch),
            noise=noise,
            inference_delay=rtc.inference_delay,
            prev_chunk_left_over=request.left_over,
        )
    finally:
        policy.config.rtc_config = None
        policy.init_rtc_processor()
        policy.model.rtc_processor = None


class Recorder(BatchRTCProcessor):
    """Keeps what it was called with, step by step, and what it answered."""

    def __init__(self, requests):
        super().__init__(requests)
        self.calls = []

    def denoise_step(self, x_t, time, original_denoise_step_partial, **ignored):
        denoise = original_denoise_step_partial
        result = super().denoise_step(x_t, None, None, time, denoise)
        self.calls.append((x_t.clone(), time, denoise, result.clone()))
        return result


def finite_difference_gaps(policy, batch, monkeypatch):
    """How far `jacobian` is from central differences, relatively, at each time of a chunk's denoising."""
    made = []
    monkeypatch.setattr(
        "lerobot_ext.rollout.guidance.BatchRTCProcessor",
        lambda requests: made.append(Recorder(requests)) or made[-1],
    )
    request = ask(guidance="jacobian", schedule="exp", clamp=5.0)
    gaps = []
    with torch.no_grad(), guided(policy, [request]):
        euler = policy.model.sample_actions

        def check_then_return(*args, **kwargs):
            actions = euler(*args, **kwargs)
            for x_t, time, denoise, answered in made[0].calls:
                gaps.append(_gap(x_t, time, denoise, answered, request))
            return actions

        monkeypatch.setattr(policy.model, "sample_actions", check_then_return)
        policy.predict_action_chunk(dict(batch), noise=rand(1, STEPS, WIDTH))
    return gaps


def _gap(x_t, time, denoise, answered, request):
    """Relative distance between the correction along random directions and central differences of e . D(x)."""
    left_over = torch.zeros(1, STEPS, WIDTH)
    left_over[0, :8, :DIM] = request.left_over
    weights = prefix_weights("exp", 2, 7, STEPS)[:, None]
    velocity = denoise(x_t)
    error = (left_over - (x_t - time * velocity)) * weights
    correction = (velocity - answered) / min(5.0, guidance_weight(time))
    gaps = []
    for seed in range(4):
        direction = rand(1, STEPS, WIDTH, seed=seed)
        by = 1e-2
        ahead, behind = (x_t + sign * by * direction for sign in (1, -1))
        clean = [(x - time * denoise(x)) for x in (ahead, behind)]
        expected = ((clean[0] - clean[1]) * error).sum() / (2 * by)
        found = (correction * direction).sum()
        scale = correction.norm() * direction.norm() / math.sqrt(direction.numel())
        gaps.append(float((found - expected).abs() / scale))
    # The denoiser does depend on x, or there would be nothing to test.
    assert (correction - error).norm() > 1e-2 * error.norm()
    return max(gaps)
