"""Dataset statistics of what the network sees, derived from those of what was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import IMAGENET_STATS

from lerobot_ext.features import OBS_FORCE
from lerobot_ext.modality.depth import NEAREST_GRAY, DepthRange, Pinhole, depth_image, gray_value
from lerobot_ext.modality.plan import DEPTH, FORCE, OBS_STATE, Use
from lerobot_ext.modality.selection import DepthSelection, Selection

Stats = dict[str, dict[str, Any]]

_SPREAD = ("std",)
_COUNT = ("count",)
_LEAST_STD = 1e-2  # of gray: a stream of one flat distance must not be blown up by its normalisation


def network_stats(stats: Stats | None, plan: Iterable[Use], selection: Selection, metres_per: float) -> Stats:
    """Statistics by the network's keys.

    Args:
        stats: `meta.stats` as recorded, or None.
        plan: What happens to each feature.
        selection: What the plan was made from.
        metres_per: Metres in one unit of the depth statistics (0.001 if they are in millimetres).

    Returns:
        State and force joined where they are fused, else force (n,) for each sample of its window; depth on the
        line of `depth.gray` and with three channels; the rest unchanged.
        Pixels without a measurement count as the lowest depth, as in LeRobot's own statistics. Depth in colours or
        as normals, which follows from no statistics of metres, is left out (see `depth_stats`).
    """
    plan = list(plan)
    stats = stats or {}
    result: Stats = {}
    for use in plan:
        if use.seen_as != use.key or use.key not in stats:
            continue
        if use.kind == DEPTH and selection.depth.representation != "gray":
            continue
        values = dict(stats[use.key])
        result[use.key] = _gray_stats(values, selection.depth, metres_per) if use.kind == DEPTH else values
    fused = any(use.kind == FORCE and use.seen_as == OBS_STATE for use in plan)
    if fused and {OBS_STATE, OBS_FORCE} <= set(stats):
        result[OBS_STATE] = _joined(stats[OBS_STATE], stats[OBS_FORCE])
    return result


def depth_stats(maps: Iterable[Any], entry: Mapping[str, Any], depth: DepthSelection) -> dict[str, Any]:
    """Statistics of depth as the network sees it, measured on some of its maps.

    Args:
        maps: (..., 1, H, W), as a dataset view gives them.
        entry: What is recorded of the stream (see `plan.raw_observation`).
        depth: How it is shown.

    Returns:
        As LeRobot's statistics of an image: mean, std, min, max and quantiles, (3, 1, 1) each.
    """
    from lerobot.datasets.compute_stats import get_feature_stats

    limits = DepthRange(entry["lowest_m"], entry["highest_m"])
    camera = Pinhole.of(entry["intrinsics"]) if "intrinsics" in entry else None
    images = [depth_image(one, depth, limits, None, camera) for one in maps]
    stacked = torch.cat([image.reshape(-1, *image.shape[-3:]) for image in images]).numpy()
    stats = get_feature_stats(stacked, axis=(0, 2, 3), keepdims=True)
    return {name: value if name in _COUNT else np.squeeze(value, axis=0) for name, value in stats.items()}


def use_imagenet(stats: Stats, keys: Iterable[str]) -> None:
    """Give these images the statistics of ImageNet, as `dataset.use_imagenet_stats` does in LeRobot."""
    for key in keys:
        named = {name: torch.tensor(value, dtype=torch.float32) for name, value in IMAGENET_STATS.items()}
        stats[key] = {**stats.get(key, {}), **named}


def _joined(state: Mapping[str, Any], force: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if name in _COUNT else np.concatenate([np.atleast_1d(value), np.atleast_1d(force[name])])
        for name, value in state.items()
        if name in _COUNT or name in force
    }


def _gray_stats(values: Mapping[str, Any], depth: DepthSelection, metres_per: float) -> dict[str, Any]:
    result = {}
    for name, value in values.items():
        if name in _COUNT:
            result[name] = value
            continue
        metres = torch.as_tensor(np.asarray(value, dtype=np.float32)) * metres_per
        if name in _SPREAD:
            scale = (1.0 - NEAREST_GRAY) / (depth.far_m - depth.near_m)
            gray = (metres * scale).clamp(_LEAST_STD, 0.5)
        else:
            gray = gray_value(metres, depth.near_m, depth.far_m)
        result[name] = gray.reshape(1, 1, 1).expand(3, 1, 1).numpy().copy()
    return result
