"""Depth as an image: the one function of metres that training and the robot share.

Depth arrives as LeRobot's reader gives it (floating, metres) or as a camera gives it (integer, millimetres). A pixel
without a measurement is 0 here; LeRobot's depth video cannot store 0 and gives back the encoder's lowest depth, so
both ends forget what is at or below that depth, and both stop at the encoder's highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

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


@dataclass(frozen=True)
class Pinhole:
    """The camera behind a depth map, in units of the picture: focal lengths and centre, each by width or height.

    Distortion is left out: over the few pixels that a normal is made from it does not matter.
    """

    fx: float
    fy: float
    ppx: float
    ppy: float

    @classmethod
    def of(cls, intrinsics: Mapping[str, Any]) -> Pinhole:
        """From intrinsics in pixels, with `width` and `height`, as they are recorded with a picture."""
        width, height = intrinsics["width"], intrinsics["height"]
        # librealsense counts from the middle of the first pixel, here it is from its edge.
        return cls(
            intrinsics["fx"] / width,
            intrinsics["fy"] / height,
            (intrinsics["ppx"] + 0.5) / width,
            (intrinsics["ppy"] + 0.5) / height,
        )

    def rays(self, height: int, width: int) -> Tensor:
        """(2, height, width) float32: x and y at one metre of depth, through the middle of each pixel."""
        u = ((torch.arange(width) + 0.5) / width - self.ppx) / self.fx
        v = ((torch.arange(height) + 0.5) / height - self.ppy) / self.fy
        return torch.stack([u.expand(height, width), v[:, None].expand(height, width)])


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


def turbo(metres: Tensor, near_m: float, far_m: float) -> Tensor:
    """Depth as Google's colour map Turbo, interpolated between its 256 colours.

    Args:
        metres: (..., 1, H, W) float32, 0 where there is no measurement.
        near_m: Shown in the map's first colour (dark blue), and what is nearer too.
        far_m: Shown in its last (dark red), and what is farther too.

    Returns:
        (..., 3, H, W) float32 in [0, 1]; black where there is no measurement, which is no colour of the map.
    """
    place = ((metres - near_m) / (far_m - near_m)).clamp(0.0, 1.0) * 255.0
    low = place.floor().clamp(max=254.0)
    table = _turbo().to(metres.device)
    colour = torch.lerp(table[low.long()], table[low.long() + 1], (place - low)[..., None])
    colour = torch.where((metres > 0)[..., None], colour, 0.0)
    return colour.squeeze(-4).movedim(-1, -3)


@cache
def _turbo() -> Tensor:
    """The 256 colours of Turbo, (256, 3) RGB in [0, 1]."""
    import cv2

    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)
    return torch.from_numpy(bgr[:, 0, ::-1].astype(np.float32) / 255.0)


def normals(metres: Tensor, near_m: float, far_m: float, camera: Pinhole) -> Tensor:
    """Which way the surface looks, from the depth of each pixel and of its neighbours.

    Args:
        metres: (..., 1, H, W) float32, 0 where there is no measurement.
        near_m: What is nearer has no normal here.
        far_m: What is farther has none either.
        camera: Behind the map.

    Returns:
        (..., 3, H, W) float32 in [0, 1]: x (right), y (down) and z of the normal that looks at the camera, each
        from -1..1 moved to 0..1; a wall seen straight is (0.5, 0.5, 0). All 0, which is no normal, where the pixel
        or one of its four neighbours has no depth in the range, and at the border.
    """
    height, width = metres.shape[-2:]
    rays = camera.rays(height, width).to(metres)
    points = torch.cat([rays * metres, metres], dim=-3)
    across = points[..., 1:-1, 2:] - points[..., 1:-1, :-2]
    down = points[..., 2:, 1:-1] - points[..., :-2, 1:-1]
    # across x down looks away from the camera (z forward); the other way round it looks at it.
    normal = functional.normalize(torch.linalg.cross(down, across, dim=-3), dim=-3)
    known = (metres >= near_m) & (metres <= far_m)
    whole = (
        known[..., 1:-1, 1:-1]
        & known[..., 1:-1, 2:]
        & known[..., 1:-1, :-2]
        & known[..., 2:, 1:-1]
        & known[..., :-2, 1:-1]
    )
    return functional.pad(torch.where(whole, (normal + 1.0) / 2.0, 0.0), (1, 1, 1, 1))


def depth_image(
    depth: Tensor | np.ndarray,
    selection: DepthSelection,
    limits: DepthRange,
    size: tuple[int, int] | None = None,
    camera: Pinhole | None = None,
) -> Tensor:
    """Depth as the network sees it.

    Args:
        depth: (..., 1, H, W); integer millimetres or floating metres.
        selection: Range and representation.
        limits: What the recording that the policy was trained on could hold.
        size: Height and width of the result; None: as given.
        camera: Behind the map; only normals need it.

    Returns:
        (..., 3, height, width) float32 in [0, 1].
    """
    metres = resize_depth(clean(to_metres(depth), limits), size)
    if selection.representation == "normals":
        return normals(metres, selection.near_m, selection.far_m, camera)
    draw = turbo if selection.representation == "turbo" else gray
    return draw(metres, selection.near_m, selection.far_m)
