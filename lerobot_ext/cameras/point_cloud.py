"""Points in space from a depth image and the camera behind it: live, or from a dataset years later.

Needs numpy only. Which pixels have depth is decided here; where a pixel looks is in `intrinsics`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lerobot_ext.cameras.intrinsics import Intrinsics

MILLIMETRE = 0.001


def point_cloud(
    depth: ArrayLike,
    intrinsics: Intrinsics,
    color: ArrayLike | None = None,
    *,
    unit_m: float | None = None,
    depth_min_m: float = 0.0,
) -> NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Every pixel that has depth as a point in the camera's coordinates: x right, y down, z along the view.

    Args:
        depth: (H, W), (H, W, 1) or (1, H, W), integer or float; 0 is no depth.
        intrinsics: Of the camera in whose pixels `depth` is: the colour camera's once it is aligned.
        color: (H, W, 3) uint8, aligned with `depth`; or (3, H, W) floats from 0 to 1, as a dataset gives them.
        unit_m: Metres of one; None: millimetres for integers, metres for floats. A dataset's depth is float
            millimetres unless it was opened with `depth_output_unit="m"`: give 0.001.
        depth_min_m: Nothing up to here has depth. A pixel without depth comes back from a depth video as the
            encoder's `depth_min` (the feature's info `video.depth_min`); give that.

    Returns:
        (N, 3) float32 metres; with `color` a pair of that and (N, 3) uint8.

    Raises:
        ValueError: The shapes do not fit each other, or the distortion model is unknown.
    """
    z = _plane(depth)
    size = (intrinsics.height, intrinsics.width)
    if z.shape != size:
        raise ValueError(
            f"depth is {z.shape[1]}x{z.shape[0]}, the intrinsics are of {size[1]}x{size[0]}; a picture that was "
            "resized needs intrinsics that were resized with it."
        )
    if unit_m is None:
        unit_m = MILLIMETRE if np.issubdtype(z.dtype, np.integer) else 1.0
    metres = z.astype(np.float32) * np.float32(unit_m)
    # A dataset's millimetres are rounded, so that its smallest depth may come back half a millimetre larger.
    room_m = MILLIMETRE / 2 if depth_min_m > 0 else 0.0
    seen = metres > depth_min_m + room_m
    points = np.empty((int(np.count_nonzero(seen)), 3), np.float32)
    points[:, 2] = metres[seen]
    points[:, :2] = _rays(intrinsics)[seen] * points[:, 2:]
    if color is None:
        return points
    return points, _pixels(color, size)[seen]


@lru_cache(maxsize=8)
def _rays(intrinsics: Intrinsics) -> NDArray[np.float32]:
    rays = intrinsics.rays()
    rays.setflags(write=False)
    return rays


def _plane(depth: ArrayLike) -> NDArray:
    array = np.asarray(depth)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"depth has shape {array.shape}; expected (H, W), (H, W, 1) or (1, H, W).")
    return array


def _pixels(color: ArrayLike, size: tuple[int, int]) -> NDArray[np.uint8]:
    array: Any = np.asarray(color)
    if array.shape == (3, *size):
        array = array.transpose(1, 2, 0)
    if array.shape != (*size, 3):
        raise ValueError(
            f"color has shape {array.shape}; expected {(*size, 3)} or {(3, *size)} as depth has."
        )
    if np.issubdtype(array.dtype, np.floating):
        array = np.rint(array * 255).clip(0, 255)
    return array.astype(np.uint8)
