"""From a LeRobot batch (float pictures, channels first, a batch dimension) back to the arrays a camera gave.

Works on NumPy arrays and on anything that turns into one by `.detach().cpu().numpy()`; torch itself is not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from simplify_work.wire.errors import FeatureMismatch
from simplify_work.wire.features import FeatureSpec, check_observation

# Pixels looked at to tell whether a float picture was uint8; prime, so that no row or column pattern hides others.
_STRIDE = 101


def observation_from_batch(
    batch: Mapping[str, Any], inputs: Iterable[FeatureSpec], policy: str
) -> dict[str, np.ndarray]:
    """The arrays that a policy wants, out of a batch of one observation.

    Pictures that are `uint8 / 255` become that uint8 again, exactly; other float pictures stay float32.

    Args:
        batch: LeRobot's keys; (1, …) or without the batch dimension; pictures (3, H, W) or (H, W, 3), depth
            (1, H, W), (H, W, 1) or (H, W).
        inputs: What the policy wants; other keys of the batch are left out.
        policy: What to call the policy in a message.

    Returns:
        Arrays as they go on the wire: pictures (H, W, 3), depth (H, W, 1), vectors (n,); of a vector with a history
        the window (history, n) if the batch has it, else the one sample (n,).

    Raises:
        FeatureMismatch: If something wanted is missing or has another shape.
    """
    inputs = tuple(inputs)
    found = {spec.name: _array(batch[spec.name], spec) for spec in inputs if spec.name in batch}
    check_observation(inputs, found, policy)
    return found


def task_of(batch: Mapping[str, Any]) -> str:
    """The task in a batch, which LeRobot keeps as a string or as a list of one."""
    task = batch.get("task") or ""
    if not isinstance(task, str):
        task = task[0] if len(task) else ""
    return task


def quantised(picture: np.ndarray) -> np.ndarray:
    """A float picture in [0, 1] as the uint8 it came from; itself if it did not come from one.

    Args:
        picture: Any shape, floating.
    """
    sample = picture.reshape(-1)[::_STRIDE] * np.float32(255)
    if (
        not (np.abs(sample - np.rint(sample)) < 1e-3).all()
        or sample.min(initial=0) < 0
        or sample.max(initial=0) > 255
    ):
        return picture.astype(np.float32, copy=False)
    scaled = np.multiply(picture, np.float32(255), dtype=np.float32)
    scaled += np.float32(0.5)  # k / 255 * 255 is off by less than 1e-4, and the cast below cuts off
    return scaled.astype(np.uint8)


def _array(value: Any, spec: FeatureSpec) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if spec.kind == "vector":
        if array.ndim in (2, 3) and len(array) == 1:
            array = array[0]
        return array.astype(np.float32, copy=False)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if spec.kind == "depth" and array.ndim == 2:
        array = array[..., None]
    channels = 1 if spec.kind == "depth" else 3
    if array.ndim != 3 or channels not in (array.shape[0], array.shape[-1]):
        raise FeatureMismatch(
            f"{spec.name} has shape {np.shape(value)}, expected one {spec.kind}: ({channels}, H, W) or "
            f"(H, W, {channels}), with or without a batch dimension of 1."
        )
    if spec.kind == "image" and np.issubdtype(array.dtype, np.floating):
        array = quantised(array)
    elif array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.shape[-1] != channels:
        array = np.moveaxis(array, 0, -1)
    return np.ascontiguousarray(array)
