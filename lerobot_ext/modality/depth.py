"""Depth as an image: the one function of metres that training and the robot share.

Depth arrives as LeRobot's reader gives it (floating, metres) or as a camera gives it (integer, millimetres). A pixel
without a measurement is 0 here; LeRobot's depth video cannot store 0 and gives back the encoder's lowest depth, so
both ends forget what is at or below that depth, and both stop at the encoder's highest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lerobot_ext.modality.selection import DepthSelection

NEAREST_GRAY = 0.05
"""Gray of what is at `near_m` or nearer; 0 is kept for pixels without a measurement."""

_ROUNDING_M = 2e-5
"""Decoded depth of the lowest code lies within this of the encoder's lowest depth (float32, logarithmic scale)."""


@dataclass(frozen=True)
class DepthRange:
    """What a recording can hold, in metres.

    Attributes:
        lowest_m: Pixels at or below it hold no measurement.
        highest_m: Pixels beyond it were recorded as it.
    """

    lowest_m: float = 0.0
    highest_m: float = math.inf


def to_metres(depth: Tensor | np.ndarray) -> Tensor:
    """Depth in metres by LeRobot's convention: integers are millimetres, floats are metres.

    Args:
        depth: Any shape; any integer or floating dtype, numpy or torch.

    Returns:
        Same shape, float32.
    """
    tensor = torch.as_tensor(depth)
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise ValueError(f"depth of dtype {tensor.dtype}: expected integer millimetres or floating metres.")
    metres = tensor.to(torch.float32)
    return metres if tensor.is_floating_point() else metres / 1000.0


def clean(metres: Tensor, limits: DepthRange) -> Tensor:
    """Metres with 0 for every pixel without a measurement, and nothing beyond what a recording can hold."""
    # Comparisons with NaN are false; two of them cost half of what isfinite does.
    valid = (metres > limits.lowest_m + _ROUNDING_M) & (metres < math.inf)
    return torch.where(valid, metres, 0.0).clamp(max=limits.highest_m)


def resize_depth(metres: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize depth, averaging measured pixels only.

    Args:
        metres: (..., 1, H, W) float32, 0 where there is no measurement.
        size: New height and width; None or the map's own size returns the map itself.

    Returns:
        (..., 1, height, width) float32; 0 where fewer than half of what a pixel covers was measured.
    """
    if size is None or tuple(metres.shape[-2:]) == tuple(size):
        return metres
    frames = metres.reshape(-1, *metres.shape[-3:])
    both = torch.cat([frames, (frames > 0).to(frames.dtype)], dim=-3)
    depth, measured = functional.interpolate(both, size=tuple(size), mode="bilinear", antialias=True).split(
        frames.shape[-3], dim=-3
    )
    mean = torch.where(measured >= 0.5, depth / measured.clamp(min=0.5), 0.0)
    return mean.reshape(*metres.shape[:-2], *size)


def gray(metres: Tensor, near_m: float, far_m: float) -> Tensor:
    """Depth as brightness.

    Args:
        metres: (..., 1, H, W) float32, 0 where there is no measurement.
        near_m: Shown as `NEAREST_GRAY`, and what is nearer too.
        far_m: Shown as 1, and what is farther too.

    Returns:
        (..., 3, H, W) float32 in [0, 1], three equal channels; 0 where there is no measurement.
    """
    value = gray_value(metres, near_m, far_m)
    value = torch.where(metres > 0, value, 0.0)
    return value.expand(*value.shape[:-3], 3, *value.shape[-2:])


def gray_value(metres: Tensor, near_m: float, far_m: float) -> Tensor:
    """The line from `near_m` to `far_m` that `gray` follows, clipped at its ends."""
    unit = ((metres - near_m) / (far_m - near_m)).clamp(0.0, 1.0)
    return NEAREST_GRAY + (1.0 - NEAREST_GRAY) * unit


def depth_image(
    depth: Tensor | np.ndarray,
    selection: DepthSelection,
    limits: DepthRange,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Depth as the network sees it.

    Args:
        depth: (..., 1, H, W); integer millimetres or floating metres.
        selection: Range and representation.
        limits: What the recording that the policy was trained on could hold.
        size: Height and width of the result; None: as given.

    Returns:
        (..., 3, height, width) float32 in [0, 1].
    """
    metres = resize_depth(clean(to_metres(depth), limits), size)
    return gray(metres, selection.near_m, selection.far_m)
