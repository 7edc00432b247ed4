"""The noise of a policy that draws from torch's generators, made repeatable. When a seed is used is not decided here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """`torch.manual_seed(seed)` inside, the generators afterwards as they were before.

    Args:
        seed: 0 or more.
        device: Whose generator is drawn from, beside the CPU's.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
