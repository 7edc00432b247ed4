"""The formula of guidance on denoisers that can be solved by hand: LeRobot's weights, the paper's Jacobian."""

import math

import pytest
import torch
from guidance_requests import DIM, SCHEDULES, STEPS, WIDTH, ask, rand
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor

from lerobot_ext.rollout.guidance import BatchRTCProcessor, Guidance, guidance_weight, prefix_weights
from simplify_work.wire.messages import Rtc


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prefix_weights_are_lerobots(schedule):
    theirs = RTCProcessor(RTCConfig(prefix_attention_schedule=RTCAttentionSchedule(schedule.upper())))
    for delay in range(12):
        for horizon in range(11):
            expected = theirs.get_prefix_weights(delay, horizon, 10)
            found = prefix_weights(schedule, delay, horizon, 10)
            assert torch.allclose(found, expected, atol=1e-6), (delay, horizon)


def test_exponential_weights_are_the_papers_equation_5():
    delay, horizon, steps = 3, 8, 12
    expected = []
    for i in range(steps):
        c = (horizon - i) / (horizon - delay + 1)
        expected.append(1.0 if i < delay else 0.0 if i >= horizon else c * (math.exp(c) - 1) / (math.e - 1))
    assert torch.allclose(prefix_weights("exp", delay, horizon, steps), torch.tensor(expected), atol=1e-6)


def test_linear_weights_are_those_of_the_reference_implementations_example():
    expected = torch.tensor([1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0])
    assert torch.allclose(prefix_weights("linear", 2, 6, 10), expected)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="COSINE"):
        prefix_weights("cosine", 1, 2, 3)


@pytest.mark.parametrize("time", [1.0, 0.9, 0.5, 0.1, 0.0])
def test_guidance_weight_is_the_papers(time):
    tau = 1 - time
    if tau in (0, 1):
        assert guidance_weight(time) == math.inf
    else:
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        assert guidance_weight(time) == pytest.approx((1 - tau) / (tau * r2), rel=1e-5)


def test_a_sample_without_batch_dimension_is_lerobots_too():
    x_t, rate = rand(STEPS, WIDTH), rand(WIDTH, seed=1)
    request = ask()
    theirs = RTCProcessor(RTCConfig(max_guidance_weight=10.0))
    for time in (1.0, 0.7, 0.1):
        expected = theirs.denoise_step(
            x_t, request.left_over, 2, time, lambda x: x * rate, execution_horizon=7
        )
        found = BatchRTCProcessor([request]).denoise_step(x_t, None, None, time, lambda x: x * rate)
        assert found.shape == x_t.shape
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("time", [1.0, 0.6, 0.1])
def test_jacobian_of_a_linear_denoiser_is_its_transpose(time):
    """v(x) = A x + b gives D(x) = x - t (A x + b), so e^T dD/dx = (1 - t A)^T e, step by step."""
    matrix, bias, x_t = rand(WIDTH, WIDTH, seed=1) * 0.3, rand(WIDTH, seed=2), rand(1, STEPS, WIDTH)
    request = ask(guidance="jacobian", schedule="exp", clamp=5.0)

    def velocity(x):
        return x @ matrix.T + bias

    found = BatchRTCProcessor([request]).denoise_step(x_t, None, None, time, velocity)
    left_over = torch.zeros(1, STEPS, WIDTH)
    left_over[0, :8, :DIM] = request.left_over
    error = (left_over - (x_t - time * velocity(x_t))) * prefix_weights("exp", 2, 7, STEPS)[:, None]
    correction = error @ (torch.eye(WIDTH) - time * matrix)
    expected = velocity(x_t) - min(5.0, guidance_weight(time)) * correction
    assert torch.allclose(found, expected, atol=1e-5)


def test_jacobian_mixes_steps_where_the_denoiser_does():
    """A denoiser that looks at neighbouring steps passes the prefix's error on to the free steps; identity cannot."""
    x_t = rand(1, STEPS, DIM)

    def velocity(x):
        return x.cumsum(1) * 0.1

    def steered(guidance):
        request = ask(delay=2, horizon=2, guidance=guidance, clamp=1.0)
        return BatchRTCProcessor([request]).denoise_step(x_t, None, None, 0.5, velocity) - velocity(x_t)

    reverse = BatchRTCProcessor([ask(delay=0, horizon=0, guidance="jacobian")])
    assert torch.equal(reverse.denoise_step(x_t, None, None, 0.5, velocity), velocity(x_t))
    assert not steered("identity")[:, 2:].any()
    assert torch.allclose(
        steered("jacobian")[:, 2:], torch.zeros(1)
    )  # cumsum: error goes to earlier steps only
    assert not torch.allclose(steered("jacobian")[:, 0], steered("identity")[:, 0])


def test_the_clamp_is_each_samples_own():
    def plain(x):
        return torch.zeros_like(x)

    x_t = rand(2, STEPS, DIM)
    requests = [ask(clamp=1.0, seed=1), ask(clamp=4.0, seed=1)]
    steered = BatchRTCProcessor(requests).denoise_step(x_t[:1].repeat(2, 1, 1), None, None, 1.0, plain)
    assert torch.allclose(4 * steered[0], steered[1])


def test_half_precision_stays_half_precision():
    def plain(x):
        return (x * 0.5).to(torch.bfloat16)

    x_t = rand(2, STEPS, DIM).to(torch.bfloat16)
    for guidance in ("identity", "jacobian"):
        result = BatchRTCProcessor([ask(guidance=guidance), None]).denoise_step(x_t, None, None, 0.5, plain)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result[1], plain(x_t)[1])


def test_what_cannot_be_continued_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Guidance(Rtc(1, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="int64"):
        Guidance(Rtc(1, 2), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN"):
        Guidance(Rtc(1, 2), torch.tensor([[1.0, math.nan]]))
