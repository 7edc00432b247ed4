"""The dataset's depth range follows the cameras': LeRobot's 12 bits are spent where the cameras are asked to look.

What a camera's range is, its configuration knows; how depth becomes codes is LeRobot's (`datasets/depth_utils.py`).
Here the two are brought together before a dataset's first frame, and what it costs is said in the log.
"""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot_ext.recording import episodes
from lerobot_ext.recording.episodes import EpisodeListener, add_listener

if TYPE_CHECKING:
    from lerobot.configs.video import DepthEncoderConfig
    from lerobot.datasets import LeRobotDataset
    from lerobot.robots import Robot

logger = logging.getLogger(__name__)

# Code 0 is also what a pixel without depth becomes. Below the cameras' smallest depth by this much, nothing else does.
ROOM_M = 0.001
RANGE = ("depth_min", "depth_max", "shift", "use_log")

NARROWER = (
    "depth: %s, but dataset.depth_encoder keeps %.3g to %.3g m: what is outside is recorded as the nearest of the two. "
    "Leave depth_min and depth_max out of dataset.depth_encoder and the cameras' range is taken."
)
RESUMED = "depth: the dataset was begun with %s; goes on with that instead of %s"
CLIPPED = (
    "depth: %s was up to %.3g m in episode %d, but only %.3g to %.3g m are kept: what is farther is recorded as %.3g m. Give "
    "the camera a depth_max_m (what is farther is then no depth), or start a dataset with a wider range."
)


def step_m(encoder: DepthEncoderConfig, depth_m: float) -> float:
    """Distance of two depths with neighbouring codes, in metres, at `depth_m`.

    By `lerobot.datasets.depth_utils.quantize_depth`: linear codes are evenly spaced between `depth_min` and `depth_max`;
    logarithmic ones evenly in log(depth + shift), so that a step grows in proportion to depth + shift.
    """
    from lerobot.configs.video import DEPTH_QMAX

    if not encoder.use_log:
        return (encoder.depth_max - encoder.depth_min) / DEPTH_QMAX
    span = math.log((encoder.depth_max + encoder.shift) / (encoder.depth_min + encoder.shift))
    return (depth_m + encoder.shift) * span / DEPTH_QMAX


def describe(encoder: DepthEncoderConfig) -> str:
    """Range and steps in words: `0.1 to 1.1 m in steps of 0.24 mm (linear)`."""
    near, far = (1e3 * step_m(encoder, depth) for depth in (encoder.depth_min, encoder.depth_max))
    steps = (
        f"{far:.2g} mm (linear)" if not encoder.use_log else f"{near:.2g} mm near to {far:.2g} mm far (log)"
    )
    return f"{encoder.depth_min:.3g} to {encoder.depth_max:.3g} m in steps of {steps}"


def range_of(robot: Robot) -> tuple[float | None, float | None]:
    """Smallest and largest depth that any depth camera of `robot` gives, in metres; None where one has no limit."""
    cameras = [c for c in getattr(robot, "cameras", {}).values() if getattr(c, "use_depth", False)]
    lows = [getattr(camera.config, "depth_min_m", None) for camera in cameras]
    highs = [getattr(camera.config, "depth_max_m", None) for camera in cameras]
    return (
        min(lows) if lows and all(lows) else None,
        max(highs) if highs and all(highs) else None,
    )


class DepthRange:
    """Chooses the depth encoder's range at a dataset's first episode, and watches what is recorded with it."""

    def __init__(self) -> None:
        """No dataset was seen yet."""
        self._dataset: weakref.ref[LeRobotDataset] | None = None
        self._warned = False

    def start(self, robot: Robot) -> None:
        """Before the first frame of a dataset: take the cameras' range, or on resume the recorded one."""
        dataset = episodes.current().dataset
        if dataset is None or not dataset.meta.depth_keys:
            return
        if self._dataset is not None and self._dataset() is dataset:
            return
        self._dataset, self._warned = weakref.ref(dataset), False
        writer = dataset.writer
        given = writer.depth_encoder
        recorded = recorded_range(dataset)
        if recorded:
            wanted = replace(given, **recorded)
            if wanted != given:
                logger.warning(RESUMED, describe(wanted), describe(given))
        else:
            wanted = _fitted(given, *range_of(robot))
        if wanted != given:
            writer.depth_encoder = wanted
        self._warn_if_narrower(wanted, *range_of(robot))
        logger.info("depth is recorded from %s", describe(wanted))

    def _warn_if_narrower(self, encoder: DepthEncoderConfig, low: float | None, high: float | None) -> None:
        below = low is not None and encoder.depth_min > low
        above = high is not None and encoder.depth_max < high
        if below or above:
            cameras = f"the cameras give {low or 0:.3g} to {high or math.inf:.3g} m"
            logger.warning(NARROWER, cameras, encoder.depth_min, encoder.depth_max)
            self._warned = True

    def saved(self, root: Path, index: int) -> None:
        """Warn once if an episode has depth beyond what its codes can say."""
        dataset = self._dataset() if self._dataset is not None else None
        if dataset is None or self._warned or Path(dataset.root) != Path(root):
            return
        encoder = dataset.writer.depth_encoder
        for key in dataset.meta.depth_keys:
            statistics = (dataset.meta.stats or {}).get(key)
            if statistics is None:
                continue
            unit_m = 1e-3 if (dataset.meta.features[key].get("info") or {}).get("depth_unit") == "mm" else 1.0
            farthest_m = float(statistics["max"].max()) * unit_m
            if farthest_m > encoder.depth_max + step_m(encoder, encoder.depth_max):
                kept = (encoder.depth_min, encoder.depth_max, encoder.depth_max)
                logger.warning(CLIPPED, key, farthest_m, index, *kept)
                self._warned = True


def recorded_range(dataset: LeRobotDataset) -> dict[str, Any]:
    """The quantiser's parameters that saved episodes of `dataset` were recorded with; empty before the first."""
    for key in dataset.meta.depth_keys if dataset.num_episodes else ():
        info = dataset.meta.features[key].get("info") or {}
        found = {name: info[f"video.{name}"] for name in RANGE if info.get(f"video.{name}") is not None}
        if found:
            return found
    return {}


def _fitted(given: DepthEncoderConfig, low: float | None, high: float | None) -> DepthEncoderConfig:
    """`given` with the cameras' range, unless somebody chose one."""
    from lerobot.configs.video import DEFAULT_DEPTH_MAX, DEFAULT_DEPTH_MIN

    if (given.depth_min, given.depth_max) != (DEFAULT_DEPTH_MIN, DEFAULT_DEPTH_MAX):
        return given
    return replace(
        given,
        depth_min=given.depth_min if low is None else max(low - ROOM_M, 0.0),
        depth_max=given.depth_max if high is None else high,
    )


depth_range = DepthRange()


def install() -> None:
    """Fit the depth range of every dataset from now on."""
    add_listener(
        EpisodeListener(name="depth_range", on_start=depth_range.start, on_saved=depth_range.saved, order=6)
    )
