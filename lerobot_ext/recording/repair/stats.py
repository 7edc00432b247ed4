"""Statistics of episodes that are rebuilt, with LeRobot's own functions and its choice of frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lerobot_ext.recording.repair import videos

Stats = dict[str, dict[str, NDArray]]


def numeric(rows: pa.Table, features: dict[str, dict], fps: float) -> Stats:
    """Statistics of every feature that is numbers.

    Args:
        rows: The episode's rows.
        features: The dataset's, shapes as tuples.
        fps: Frames per second.
    """
    from lerobot.datasets.compute_stats import compute_episode_stats

    numbers = {
        key: feature
        for key, feature in features.items()
        if feature["dtype"] not in ("video", "image", "string", "language") and key in rows.column_names
    }
    data = {
        key: np.asarray(rows[key].to_pylist(), dtype=feature["dtype"]) for key, feature in numbers.items()
    }
    if "timestamp" in data:
        # LeRobot takes them before they are rounded to float32.
        exact = data["frame_index"] / fps
        if np.abs(exact - data["timestamp"]).max() < 1e-4:
            data["timestamp"] = exact
    return compute_episode_stats(data, numbers)


def images(rows: pa.Table, key: str) -> dict[str, NDArray]:
    """Statistics of a feature of pictures that are stored among the rows."""
    from lerobot.datasets.compute_stats import sample_indices
    from PIL import Image

    column = rows[key]
    pictures = []
    for i in sample_indices(len(column)):
        with Image.open(io.BytesIO(column[i].as_py()["bytes"])) as image:
            pixels = np.asarray(image if image.mode[0] in "IF" else image.convert("RGB"))
        pictures.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    return _of_pictures(pictures, 255.0 if len(pictures[0]) == 3 else 1.0)


def video(path: Path, times_s: NDArray[np.float64], feature: dict[str, Any]) -> dict[str, NDArray]:
    """Statistics of an episode's frames in a video.

    Args:
        path: The file.
        times_s: Times of all of the episode's frames in it.
        feature: The camera's feature; depth maps are measured in the unit they were recorded in.
    """
    from lerobot.configs import DepthEncoderConfig
    from lerobot.datasets.compute_stats import sample_indices
    from lerobot.datasets.depth_utils import dequantize_depth

    info = feature.get("info") or {}
    wanted = times_s[sample_indices(len(times_s))]
    if not info.get("is_depth_map"):
        frames = videos.frames(path, wanted, "rgb24")
        return _of_pictures([frame.transpose(2, 0, 1) for frame in frames], 255.0)
    config = DepthEncoderConfig.from_video_info(info)
    depths = [
        dequantize_depth(
            frame[None],
            depth_min=config.depth_min,
            depth_max=config.depth_max,
            shift=config.shift,
            use_log=config.use_log,
            output_unit=info.get("depth_unit") or "mm",
            output_tensor=False,
        )
        for frame in videos.frames(path, wanted, "gray12le")
    ]
    return _of_pictures(depths, 1.0)


def _of_pictures(pictures: list[NDArray], divisor: float) -> dict[str, NDArray]:
    """As `compute_episode_stats` does for pictures in files: shapes (channels, 1, 1), colour from 0 to 1."""
    from lerobot.datasets.compute_stats import auto_downsample_height_width, get_feature_stats

    array = np.stack([auto_downsample_height_width(picture) for picture in pictures])
    stats = get_feature_stats(array, axis=(0, 2, 3), keepdims=True)
    return {
        name: value if name == "count" else np.squeeze(value / divisor, axis=0)
        for name, value in stats.items()
    }


def to_columns(stats: Stats) -> dict[str, Any]:
    """As columns of meta/episodes: `stats/<feature>/<statistic>` -> nested lists."""
    return {
        f"stats/{key}/{name}": value.tolist()
        for key, values in stats.items()
        for name, value in values.items()
    }


def from_columns(row: dict[str, Any]) -> Stats:
    """The statistics in a row of meta/episodes; those that it has not are left out."""
    stats: Stats = {}
    for column, value in row.items():
        if column.startswith("stats/") and value is not None:
            key, _, name = column.removeprefix("stats/").rpartition("/")
            stats.setdefault(key, {})[name] = np.atleast_1d(np.asarray(value))
    return stats
