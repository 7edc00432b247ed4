"""A LeRobot dataset seen through a selection: same object, fewer streams, metadata of what the network gets.

Map-style datasets only. Items are raw observations (what `ModalityStep` takes); `meta` describes what comes out
of that step, because that is what LeRobot's factory builds the policy and its normalisation from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_ext.modality.cache import check_size
from lerobot_ext.modality.plan import DEPTH, make_plan, network_features, raw_observation
from lerobot_ext.modality.reader import CachedReader, TableReader
from lerobot_ext.modality.selection import Selection
from lerobot_ext.modality.stats import depth_stats, network_stats

MEASURED_FRAMES = 32  # for the statistics of a representation that has none of its own


class SelectedMetadata(LeRobotDatasetMetadata):
    """Metadata of a dataset as the network sees it; never written.

    Attributes:
        selection: What the policy sees.
        raw_observation: What `ModalityStep` takes (see `plan.raw_observation`).
    """

    selection: Selection
    raw_observation: dict[str, dict[str, Any]]


def select_metadata(
    meta: LeRobotDatasetMetadata, selection: Selection, depth_stats_unit: str = "mm"
) -> SelectedMetadata:
    """The metadata of what a selection leaves of a dataset.

    Args:
        meta: As recorded; not changed.
        selection: What the policy sees.
        depth_stats_unit: Unit of the depth statistics in `meta`: `mm` or `m`.

    Raises:
        UserError: If something selected was not recorded.
    """
    plan = make_plan(selection, meta.features)
    new = SelectedMetadata.__new__(SelectedMetadata)
    new.__dict__.update(meta.__dict__)
    new.info = copy.copy(meta.info)
    new.info.features = network_features(plan)
    new.stats = network_stats(meta.stats, plan, selection, 1.0 if depth_stats_unit == "m" else 0.001)
    new.selection = selection
    new.raw_observation = raw_observation(plan)
    return new


def select_dataset(
    dataset: LeRobotDataset,
    selection: Selection,
    cache_gb: float | None = None,
    shared: bool = False,
    cache_dir: Path | None = None,
) -> LeRobotDataset:
    """A dataset restricted to a selection.

    Args:
        dataset: A readable map-style dataset; not changed.
        selection: What the policy sees.
        cache_gb: Keep all frames, decoded and resized, at most this many gigabytes; None: decode each time.
        shared: Worker processes will read the cache: keep it in shared memory.
        cache_dir: Keep them in files below this folder, for all processes and later runs; None: in memory.

    Returns:
        A `LeRobotDataset` over the same files whose items are raw observations and whose `meta` is a
        `SelectedMetadata`.

    Raises:
        UserError: If something selected was not recorded, or the cache would be too large.
    """
    plan = make_plan(selection, dataset.meta.features)
    new = copy.copy(dataset)
    kind = TableReader if cache_gb is None else CachedReader
    _ = dataset.hf_dataset  # loads the table if that has not happened yet
    new.reader = kind.restrict(dataset.reader, dataset.meta, plan, selection)
    new.meta = select_metadata(dataset.meta, selection, dataset.depth_output_unit)
    if new.reader.delta_indices is not None:
        new.delta_timestamps = {
            key: [delta / dataset.fps for delta in deltas] for key, deltas in new.reader.delta_indices.items()
        }
    new._depth_output_unit = "m"
    new.reader.load()
    if cache_gb is not None and cache_dir is not None:
        new.reader.fill_files(cache_dir, cache_gb)
    elif cache_gb is not None:
        check_size(new.reader.cache_bytes, cache_gb, shared)
        new.reader.fill_memory(shared)
    measure_depth(new.meta, selection, lambda count: [new[i] for i in _spread(len(new), count)])
    return new


def measure_depth(
    meta: SelectedMetadata, selection: Selection, items: Callable[[int], Iterable[dict[str, Any]]]
) -> None:
    """Give depth that is shown in colours or as normals its statistics, from frames of the whole dataset.

    Args:
        meta: Gets the statistics.
        selection: What the policy sees.
        items: Gives at most so many of the dataset's items, spread over it; called if they are needed.
    """
    if selection.depth is None or selection.depth.representation == "gray":
        return
    raw = meta.raw_observation
    maps = {key: [] for key, entry in raw.items() if entry["kind"] == DEPTH}
    for item in items(MEASURED_FRAMES):
        for key, its in maps.items():
            its.append(item[key])
    for key, its in maps.items():
        meta.stats[key] = depth_stats(its, raw[key], selection.depth)


def _spread(length: int, count: int) -> list[int]:
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()
