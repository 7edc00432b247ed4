"""Requests for guided chunks, and noise, for the tests of guidance."""

import torch

from lerobot_ext.rollout.guidance import Guidance
from simplify_work.wire.messages import Rtc

STEPS, DIM, WIDTH = 10, 6, 32  # of the small SmolVLA: chunk, action, action inside the denoiser
SCHEDULES = ("zeros", "ones", "linear", "exp")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(delay=2, horizon=7, guidance="identity", schedule="linear", clamp=10.0, rows=8, dim=DIM, seed=5):
    rtc = Rtc(delay, horizon, guidance=guidance, schedule=schedule, max_guidance_weight=clamp)
    return Guidance(rtc, rand(rows, dim, seed=seed))
