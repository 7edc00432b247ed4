"""A LeRobot streaming dataset seen through a selection: an episode is loaded when its turn comes.

An item is made by the same `SelectedReader` as that of a dataset on disk, from the rows of one episode; here is only
which rows are loaded when, by which worker, and in which order they are given out. Nothing is patched here.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

from lerobot_ext.errors import UserError
from lerobot_ext.modality.plan import DEPTH, OBS_TIP, make_plan, read_features
from lerobot_ext.modality.reader import SelectedReader, TableReader
from lerobot_ext.modality.selection import Selection
from lerobot_ext.modality.texts import pack
from lerobot_ext.modality.view import measure_depth, select_metadata

_Row = tuple[SelectedReader, int]

ROWS_PER_FRAME = 10
"""Rows that wait for their turn in the place of one of LeRobot's decoded frames: a row is some hundred bytes."""


def select_streaming(
    dataset: StreamingLeRobotDataset,
    selection: Selection,
    video_backend: str | None = None,
    drop_n_last_frames: int = 0,
) -> SelectedStream:
    """A streaming dataset restricted to a selection.

    Args:
        dataset: LeRobot's, over a local directory or the hub; not changed.
        selection: What the policy sees.
        video_backend: LeRobot's name of the video decoder; None: LeRobot's choice.
        drop_n_last_frames: Frames at each episode's end that are not given out (but are in windows), as the
            policy's config says; LeRobot does so for datasets that do not stream.

    Returns:
        An iterable dataset over the same files, with raw observations for items and a `SelectedMetadata` for `meta`.

    Raises:
        UserError: If something selected was not recorded, or cannot be streamed.
    """
    plan = make_plan(selection, dataset.meta.features)
    root = _root(dataset)
    depth = [use.key for use in plan if use.used and use.kind == DEPTH and use.recorded["dtype"] == "video"]
    if depth and isinstance(root, _Url):
        raise UserError(
            f"{', '.join(depth)}: LeRobot decodes depth video from local files only; download the dataset and give its "
            "directory in dataset.root, or set use_depth_image: false."
        )
    episodes = _episodes(dataset)
    reader = DatasetReader(
        dataset.meta,
        root,
        episodes=None,
        tolerance_s=dataset.tolerance_s,
        video_backend=video_backend,
        delta_timestamps=dataset.delta_timestamps,
        image_transforms=dataset.image_transforms,
        return_uint8=dataset._return_uint8,
        depth_output_unit="m",
    )
    new = SelectedStream.__new__(SelectedStream)
    new.__dict__.update(dataset.__dict__)
    kind = SelectedReader if isinstance(root, _Url) else TableReader
    new.reader = kind.restrict(reader, dataset.meta, plan, selection)
    new.meta = select_metadata(dataset.meta, selection, dataset.depth_output_unit)
    new.episodes = episodes
    new.drop_n_last_frames = drop_n_last_frames
    new.delta_indices = new.reader.delta_indices
    if new.delta_indices is not None:
        new.delta_timestamps = {
            key: [delta / dataset.fps for delta in deltas] for key, deltas in new.delta_indices.items()
        }
    new._features = read_features(plan)
    new._columns = [key for key, feature in new._features.items() if feature["dtype"] != "video"]
    new.hf_dataset = dataset.hf_dataset.select_columns(new._columns)
    has_images = any(feature["dtype"] == "image" for feature in new._features.values())
    new._waiting_rows = dataset.buffer_size * (1 if has_images else ROWS_PER_FRAME)
    new._lengths = [int(length) for length in dataset.meta.episodes["length"]]
    new._passes = 0
    new._depth_output_unit = "m"
    measure_depth(new.meta, selection, new.some_items)
    return new


def split_stream(stream: SelectedStream, eval_split: float) -> tuple[SelectedStream, SelectedStream]:
    """Hold episodes out for evaluation: the last ones of each task, as LeRobot does for datasets on disk.

    Args:
        stream: Of all episodes.
        eval_split: Share of each task's episodes, rounded up.

    Returns:
        The stream to train on, and the one held out, which comes in order.

    Raises:
        UserError: If nothing is left to train on.
    """
    tasks = stream.meta.episodes["tasks"]
    of_task: dict[str, list[int]] = {}
    for episode in stream.episodes:
        of_task.setdefault(tasks[episode][0] if tasks[episode] else "", []).append(episode)
    train, held = [], []
    for episodes in of_task.values():
        kept = len(episodes) - math.ceil(len(episodes) * eval_split)
        train += episodes[:kept]
        held += episodes[kept:]
    if not train:
        raise UserError(
            f"dataset.eval_split {eval_split:g} leaves none of {len(stream.episodes)} episodes to train on."
        )
    return stream.of_episodes(train), stream.of_episodes(held).in_order()


class SelectedStream(StreamingLeRobotDataset):
    """LeRobot's streaming dataset with the selected features only.

    Every pass gives each frame of `episodes` once, whatever the number of workers: a worker takes whole episodes,
    loads the rows of one with a read of its row group, and keeps rows, not frames, waiting to be shuffled; video is
    decoded when a row's turn has come. Windows stop at the episode's ends, as in a dataset on disk.
    """

    reader: SelectedReader
    drop_n_last_frames: int

    @property
    def num_frames(self) -> int:
        """Frames in the episodes that are streamed."""
        return sum(self._lengths[episode] for episode in self.episodes)

    @property
    def num_episodes(self) -> int:
        """Episodes that are streamed."""
        return len(self.episodes)

    def of_episodes(self, episodes: Sequence[int]) -> SelectedStream:
        """The same stream over other episodes, given by their indices in the dataset."""
        new = copy.copy(self)
        new.episodes = list(episodes)
        return new

    def in_order(self) -> SelectedStream:
        """All frames as recorded: not mixed, none left out, not transformed; for evaluation."""
        new = copy.copy(self)
        new.shuffle = False
        new.drop_n_last_frames = 0
        new.set_image_transforms(None)
        return new

    def set_image_transforms(self, image_transforms: Any) -> None:
        """Replace the transform of colour images; None: none."""
        self.reader = copy.copy(self.reader)
        self.reader.set_image_transforms(image_transforms)
        self.image_transforms = image_transforms

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass; in a worker process, that worker's share of it."""
        worker = torch.utils.data.get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # The seed without the worker's number is common to the workers, and drawn anew when they are started anew.
        common = worker.seed - worker.id if worker else 0
        order = np.random.default_rng([self.seed, common, self._passes])
        self._passes += 1
        rows = self._rows(self.episodes[place::workers])
        if self.shuffle:
            rng = np.random.default_rng([self.seed, common, self._passes, place])
            rows = self._mixed(self._rows(order.permutation(self.episodes)[place::workers]), rng)
        for reader, row in rows:
            item = reader.get_item(row)
            yield item if _alone() else _packed(item)

    def some_items(self, count: int) -> Iterator[dict[str, Any]]:
        """At most `count` items, spread evenly over the stream."""
        ends = np.cumsum([self._lengths[episode] for episode in self.episodes])
        for index in np.linspace(0, ends[-1] - 1, min(count, ends[-1])).astype(int):
            place = int(np.searchsorted(ends, index, side="right"))
            episode = self.episodes[place]
            yield self._open(episode).get_item(int(index) - int(ends[place]) + self._lengths[episode])

    def _mixed(self, rows: Iterator[_Row], rng: np.random.Generator) -> Iterator[_Row]:
        """These rows, each once: a new one takes the place of a waiting one, which is given out."""
        waiting: list[_Row] = []
        for one in rows:
            if len(waiting) < self._waiting_rows:
                waiting.append(one)
                continue
            place = rng.integers(len(waiting))
            yield waiting[place]
            waiting[place] = one
        rng.shuffle(waiting)
        yield from waiting

    def _rows(self, episodes: Iterable[int]) -> Iterator[_Row]:
        for episode in episodes:
            reader = self._open(int(episode))
            for row in range(self._lengths[episode] - self.drop_n_last_frames):
                yield reader, row

    def _open(self, episode: int) -> SelectedReader:
        """A reader of one episode, whose rows are in memory."""
        import fsspec
        from datasets import Dataset, DatasetInfo
        from lerobot.datasets.feature_utils import get_hf_features_from_features
        from lerobot.datasets.io_utils import hf_transform_to_torch
        from pyarrow import dataset as parquet

        url = str(self.reader.root / self.meta.get_data_file_path(episode))
        files, path = fsspec.core.url_to_fs(url)
        # LeRobot writes a row group for each episode, so that this reads one. One thread: it runs in a forked worker.
        table = parquet.dataset(path, format="parquet", filesystem=files).to_table(
            columns=self._columns, filter=parquet.field("episode_index") == episode, use_threads=False
        )
        features = get_hf_features_from_features(self._features)
        rows = Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))
        rows.set_transform(hf_transform_to_torch)
        if len(rows) != self._lengths[episode]:
            raise UserError(
                f"{url}: episode {episode} has {len(rows)} rows, meta/episodes says {self._lengths[episode]}; "
                "the dataset is damaged."
            )
        reader = copy.copy(self.reader)
        reader.hf_dataset = rows
        start = int(self.meta.episodes[episode]["dataset_from_index"])
        reader._absolute_to_relative_idx = {start + row: row for row in range(len(rows))}
        if isinstance(reader, TableReader):
            reader.load()
        return reader


def _alone() -> bool:
    """Whether this is the only training process; `accelerate launch` and `torchrun` say so to each of theirs."""
    return int(os.environ.get("WORLD_SIZE", "1")) <= 1


def _packed(item: dict[str, Any]) -> dict[str, Any]:
    """Task and tip as tensors, which `ModalityStep` makes texts again."""
    return {key: pack(value) if key in ("task", OBS_TIP) else value for key, value in item.items()}


class _Url(str):
    """A directory that is not on this machine; joined with `/` as a path is, without losing its `//`."""

    __slots__ = ()

    def __truediv__(self, other: Any) -> _Url:
        return _Url(f"{self}/{other}")


def _root(dataset: StreamingLeRobotDataset) -> Any:
    """Directory or URL below which the dataset's data and videos are."""
    if dataset.streaming_from_local:
        return dataset.root
    url = dataset.meta.url_root
    # LeRobot streams the table of the revision that was asked for, and the videos of the newest.
    return _Url(url if dataset.repo_type == "bucket" else f"{url}@{dataset.revision}")


def _episodes(dataset: StreamingLeRobotDataset) -> list[int]:
    total = dataset.meta.total_episodes
    episodes = list(range(total)) if dataset.episodes is None else list(dataset.episodes)
    absent = [episode for episode in episodes if not 0 <= episode < total]
    if absent:
        raise UserError(
            f"dataset.episodes: {', '.join(map(str, absent))} not in the dataset; it has {total}, from 0 on."
        )
    return episodes
