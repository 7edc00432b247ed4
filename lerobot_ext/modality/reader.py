"""LeRobot's dataset reader, restricted to a selection: what is not selected is neither opened nor decoded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.dataset_reader import DatasetReader
from torch import Tensor

from lerobot_ext.errors import UserError
from lerobot_ext.modality import plan as plans
from lerobot_ext.modality.cache import Columns, FrameStore, bytes_per_frame, fill
from lerobot_ext.modality.depth import clean, resize_depth
from lerobot_ext.modality.images import resize_image
from lerobot_ext.modality.plan import DEPTH, OBS_TIP, RGB, TIP, Use
from lerobot_ext.modality.selection import Selection

_DECODE_CHUNK = 64


class SelectedReader(DatasetReader):
    """Gives raw observations of the selected features: what `ModalityStep` takes.

    Colour as LeRobot gives it, depth as float32 metres with 0 for "no measurement", both resized; vectors as
    recorded; the tip under its observation key. Fusing and colouring is left to the step, which does it at the
    robot too.
    """

    @classmethod
    def restrict(
        cls, reader: DatasetReader, meta: LeRobotDatasetMetadata, plan: list[Use], selection: Selection
    ) -> SelectedReader:
        """A reader over the same files that reads only what the plan uses.

        Args:
            reader: LeRobot's reader; not changed.
            meta: Metadata as recorded.
            plan: What happens to each feature.
            selection: What the plan was made from.
        """
        new = cls.__new__(cls)
        new.__dict__.update(reader.__dict__)
        new._selection = selection
        new._used = {use.key: use for use in plan if use.used}
        new._images = {key: use for key, use in new._used.items() if use.kind in (RGB, DEPTH)}
        new._meta = with_features(meta, plans.read_features(plan))
        new._depth_output_unit = "m"
        new._depth_encoder_configs = _only(reader._depth_encoder_configs, new._used)
        new._image_depth_units = _only(reader._image_depth_units, new._used)
        for key, unit in new._image_depth_units.items():
            if unit is None:
                raise UserError(
                    f"{key} is depth kept as images of unknown unit; set features.{key}.info.depth_unit to 'mm' or "
                    f"'m' in {reader.root / 'meta' / 'info.json'}."
                )
        if reader.delta_indices is not None:
            new.delta_indices = _only(reader.delta_indices, new._used)
        if reader.hf_dataset is not None:
            new.hf_dataset = reader.hf_dataset.select_columns(
                [name for name in reader.hf_dataset.column_names if name in new._used]
            )
        return new

    def get_item(self, idx: int) -> dict[str, Any]:
        """One frame with its windows, as LeRobot gives it, with resized images."""
        return self._finish(super().get_item(idx))

    def _finish(self, item: dict[str, Any]) -> dict[str, Any]:
        for key in self._images:
            item[key] = self._sized(key, item[key])
        if TIP in self._used:
            item[OBS_TIP] = item.pop(TIP)
        return item

    def _sized(self, key: str, frames: Tensor) -> Tensor:
        use = self._images[key]
        if use.kind == RGB:
            return resize_image(frames, self._selection.resize)
        return resize_depth(
            clean(frames.to(torch.float32), plans.depth_range(use.recorded)), self._selection.resize
        )


class CachedReader(SelectedReader):
    """A `SelectedReader` with all its frames and columns in memory."""

    @property
    def cache_bytes(self) -> int:
        """Size of the frames in bytes."""
        return sum(bytes_per_frame(*self._frame_shape(key)) for key in self._images) * len(self.hf_dataset)

    def load(self, shared: bool) -> None:
        """Decode everything, once; takes the time that it takes, with a progress bar.

        Args:
            shared: Keep the frames in shared memory, for worker processes.
        """
        frames = len(self.hf_dataset)
        self._columns = Columns(self.hf_dataset, skip=set(self._images))
        self._tasks = [str(task) for task in self._meta.tasks.index]
        self._episode_of = self._columns.tensors["episode_index"].tolist()
        self._episodes = _runs(self._episode_of)
        self._offsets = {
            key: torch.tensor(deltas)
            for key, deltas in (self.delta_indices or {}).items()
            if key in self._used
        }
        stores = {
            key: FrameStore(frames, self._frame_shape(key), self._far_m(key), shared) for key in self._images
        }
        if stores:
            fill(stores, self._episodes, self._decode, _DECODE_CHUNK)
        self._stores = stores

    def get_item(self, idx: int) -> dict[str, Any]:
        """As `SelectedReader.get_item`, without decoding; colour is uint8."""
        idx = int(idx)
        episode = self._episode_of[idx]
        rows = self._episodes[episode]
        item = self._columns.row(idx)
        for key, store in self._stores.items():
            if key not in self._offsets:
                item[key] = store.get(idx)
        for key, offsets in self._offsets.items():
            wanted = idx + offsets
            inside = wanted.clamp(rows.start, rows.stop - 1)
            item[f"{key}_is_pad"] = wanted != inside
            if key in self._stores:
                # LeRobot drops the time dimension of a window of one image, and only of images.
                item[key] = self._stores[key].get(inside).squeeze(0)
            else:
                item[key] = self._columns.tensors[key][inside]
        if self._image_transforms is not None:
            for key, use in self._images.items():
                if use.kind == RGB:
                    item[key] = self._image_transforms(item[key])
        item["task"] = self._tasks[int(item["task_index"])]
        if TIP in self._used:
            item[OBS_TIP] = item.pop(TIP)
        return item

    def _frame_shape(self, key: str) -> tuple[int, int, int]:
        use = self._images[key]
        return (1 if use.kind == DEPTH else 3, *use.seen[:2])

    def _far_m(self, key: str) -> float | None:
        if self._images[key].kind == RGB:
            return None
        highest = plans.depth_range(self._images[key].recorded).highest_m
        return min(highest, self._selection.depth.far_m)

    def _decode(self, episode: int, rows: range) -> dict[str, Tensor]:
        times = self._columns.tensors["timestamp"][rows.start : rows.stop].tolist()
        videos = [key for key in self._meta.video_keys if key in self._images]
        frames = self._query_videos(dict.fromkeys(videos, times), episode) if videos else {}
        for key in self._meta.image_keys:
            frames[key] = torch.stack([self._stored_image(key, row) for row in rows])
        # A chunk of one frame comes without its time dimension.
        return {key: self._sized(key, value.reshape(-1, *value.shape[-3:])) for key, value in frames.items()}

    def _stored_image(self, key: str, row: int) -> Tensor:
        image = self.hf_dataset[row][key]
        return image / 1000.0 if self._image_depth_units.get(key) == "mm" else image


def with_features(
    meta: LeRobotDatasetMetadata, features: Mapping[str, Mapping[str, Any]]
) -> LeRobotDatasetMetadata:
    """A shallow copy of the metadata with these features; nothing is written."""
    new = copy.copy(meta)
    new.info = copy.copy(meta.info)
    new.info.features = {key: dict(feature) for key, feature in features.items()}
    return new


def _only(mapping: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key in keys}


def _runs(episode_of: list[int]) -> dict[int, range]:
    """Rows of each episode; LeRobot keeps an episode's rows together."""
    starts = [i for i, e in enumerate(episode_of) if i == 0 or episode_of[i - 1] != e]
    stops = [*starts[1:], len(episode_of)]
    return {episode_of[a]: range(a, b) for a, b in zip(starts, stops, strict=True)}
