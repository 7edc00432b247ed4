"""Whether a checkpoint's postprocessor is `model * scale + offset`, found out by running it and not by its steps' names.

A robot's side that has the two vectors can postprocess by itself, as LeRobot's RTC engine wants it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_POINTS = 64
_TOLERANCE = 1e-5  # of float32's arithmetic inside the steps


def affine_form(
    postprocess: Callable[[Tensor], Tensor], action_dim: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset of a postprocessor.

    Args:
        postprocess: Takes (1, n, action_dim) actions of the model.
        action_dim: Width of an action.
        device: Where the model's actions are.

    Returns:
        Two (action_dim,) float64 vectors; None if it is of another form, or fails.
    """

    def run(points: np.ndarray) -> np.ndarray:
        actions = postprocess(torch.from_numpy(points[None]).to(device))
        return actions.detach().to("cpu", torch.float64).numpy()[0]

    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-2, 2, (_POINTS, 1))
    points = rng.standard_normal((_POINTS, action_dim)) * sizes
    try:
        offset, one = run(np.zeros((1, action_dim)))[0], run(np.ones((1, action_dim)))[0]
        scale = one - offset
        found = run(points)
    except Exception:  # a step that needs an observation, or another width
        return None
    if offset.shape != (action_dim,) or found.shape != points.shape:
        return None
    expected = points * scale + offset
    near = np.abs(found - expected) <= _TOLERANCE * (1 + np.abs(offset) + np.abs(points * scale))
    return (scale, offset) if near.all() and np.isfinite(expected).all() else None
