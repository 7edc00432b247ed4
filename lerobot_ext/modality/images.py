"""Resizing colour images: one function for the dataset view, its cache and the step in the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def resize_image(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize by antialiased bilinear interpolation, which averages over what a new pixel covers.

    Args:
        image: (..., C, H, W); uint8 stays uint8 (rounded: within 1/255 of the floating result), floating stays.
        size: New height and width; None or the image's own size returns the image itself.

    Returns:
        (..., C, height, width), dtype as given.
    """
    if size is None or tuple(image.shape[-2:]) == tuple(size):
        return image
    frames = image.reshape(-1, *image.shape[-3:])
    resized = functional.interpolate(frames, size=tuple(size), mode="bilinear", antialias=True)
    return resized.reshape(*image.shape[:-2], *size)


def as_uint8(image: Tensor) -> Tensor:
    """(…) in [0, 1] or uint8 as uint8, rounded to the nearest."""
    return image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255).to(torch.uint8)
