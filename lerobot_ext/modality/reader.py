"""LeRobot's dataset reader, restricted to a selection: what is not selected is neither opened nor decoded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.video import DEPTH_QMAX
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.depth_utils import dequantize_depth
from lerobot.datasets.video_utils import decode_video_frames
from torch import Tensor

from lerobot_ext.errors import UserError
from lerobot_ext.modality import decoding
from lerobot_ext.modality import plan as plans
from lerobot_ext.modality.cache import Columns, FrameSink, FrameStore, bytes_per_frame, fill
from lerobot_ext.modality.depth import clean, resize_depth
from lerobot_ext.modality.disk_cache import StreamFile, open_stores, short_hash
from lerobot_ext.modality.force import with_force_deltas
from lerobot_ext.modality.images import resize_image
from lerobot_ext.modality.plan import DEPTH, FORCE, OBS_PREFIX, OBS_TIP, OTHER, RGB, TIP, Use
from lerobot_ext.modality.selection import Selection

_DECODE_CHUNK, _RESIZE_CHUNK = 32, 8
_FORMAT = 1  # of cached frames; a change of how they are resized or kept is another one


class SelectedReader(DatasetReader):
    """Gives raw observations of the selected features: what `ModalityStep` takes.

    Colour as LeRobot gives it, depth as float32 metres with 0 for "no measurement", both resized; vectors as
    recorded, also those of one number, of which LeRobot makes a number; the tip under its observation key. Fusing
    and colouring is left to the step, which does it at the robot too.
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
        new._places, new._codes = {}, {}
        new._single = [
            key
            for key, use in new._used.items()
            if use.kind in (FORCE, OTHER)
            and key.startswith(OBS_PREFIX)
            and tuple(use.recorded["shape"]) == (1,)
        ]
        new._depth_output_unit = "m"
        new._depth_encoder_configs = _only(reader._depth_encoder_configs, new._used)
        new._image_depth_units = _only(reader._image_depth_units, new._used)
        for key, unit in new._image_depth_units.items():
            if unit is None:
                raise UserError(
                    f"{key} is depth kept as images of unknown unit; set features.{key}.info.depth_unit to 'mm' or "
                    f"'m' in {reader.root / 'meta' / 'info.json'}."
                )
        own = None if reader.delta_indices is None else _only(reader.delta_indices, new._used)
        new.delta_indices = with_force_deltas(own, selection)
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
        return self._named(item)

    def _named(self, item: dict[str, Any]) -> dict[str, Any]:
        """Observations as the step knows them."""
        for key in self._single:
            item[key] = item[key].unsqueeze(-1)
        if TIP in self._used:
            item[OBS_TIP] = item.pop(TIP)
        return item

    def _query_videos(self, query_timestamps: dict[str, list[float]], ep_idx: int) -> dict[str, Tensor]:
        """As LeRobot's, with files that stay open; depth is in metres with 0 for "no measurement"."""
        if not isinstance(self.root, Path):  # a stream from the hub
            return super()._query_videos(query_timestamps, ep_idx)
        tasks = [partial(self._decode, key, ep_idx, times) for key, times in query_timestamps.items()]
        frames = zip(query_timestamps, decoding.together(tasks), strict=True)
        return {key: self._as_asked(value).squeeze(0) for key, value in frames}

    def _decode(self, key: str, episode: int, times: list[float]) -> Tensor:
        """(n, 3, H, W) uint8 or (n, 1, H, W) float32 metres of one video at these times of an episode."""
        path, start = self._place(key, episode)
        times = [start + time for time in times]
        is_depth = self._images[key].kind == DEPTH
        if not is_depth and self._video_backend == "torchcodec":  # keeps its files open, too
            return decode_video_frames(path, times, self._tolerance_s, "torchcodec", return_uint8=True)
        wanted = decoding.DEPTH_FORMAT if is_depth else decoding.RGB_FORMAT
        frames = decoding.read_frames(path, times, self._tolerance_s, wanted)
        if frames is None:  # LeRobot's decoder says what is wrong, or has a wider idea of near
            given = decode_video_frames(path, times, self._tolerance_s, "pyav", True, is_depth)
            frames = given[:, 0].numpy() if is_depth else given.permute(0, 2, 3, 1).numpy()
        if is_depth:
            return torch.from_numpy(self._metres(key).take(frames, mode="clip"))[:, None]
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def _place(self, key: str, episode: int) -> tuple[Path, float]:
        """File of an episode's video, and where in it the episode begins; LeRobot's table of them is slow."""
        if (key, episode) not in self._places:
            start = self._meta.episodes[episode][f"videos/{key}/from_timestamp"]
            self._places[key, episode] = (self.root / self._meta.get_video_file_path(episode, key), start)
        return self._places[key, episode]

    def _metres(self, key: str) -> np.ndarray:
        """What each code of a depth video means."""
        if key not in self._codes:
            codes = torch.arange(DEPTH_QMAX + 1)[None]
            encoder = self._depth_encoder_configs[key]
            metres = dequantize_depth(
                codes, encoder.depth_min, encoder.depth_max, encoder.shift, encoder.use_log, output_unit="m"
            )
            limits = plans.depth_range(self._images[key].recorded)
            self._codes[key] = clean(metres, limits).flatten().numpy()
        return self._codes[key]

    def _as_asked(self, frames: Tensor) -> Tensor:
        """Colour in [0, 1] unless the dataset was opened for uint8; depth as it is."""
        return frames / 255.0 if frames.dtype == torch.uint8 and not self._return_uint8 else frames

    def _sized(self, key: str, frames: Tensor) -> Tensor:
        use = self._images[key]
        if use.kind == RGB:
            return resize_image(frames, self._selection.resize).contiguous()
        if key in self._meta.image_keys or not isinstance(self.root, Path):
            frames = clean(frames.to(torch.float32), plans.depth_range(use.recorded))
        return resize_depth(frames, self._selection.resize)


class TableReader(SelectedReader):
    """A `SelectedReader` of a dataset on disk that keeps the columns in memory: a window of them costs no query."""

    def load(self) -> None:
        """Read the columns."""
        self._columns = Columns(self.hf_dataset, skip=set(self._images))
        self._tasks = [str(task) for task in self._meta.tasks.index]
        self._episode_of = self._columns.tensors["episode_index"].tolist()
        self._episodes = _runs(self._episode_of)
        self._offsets = {
            key: torch.tensor(deltas)
            for key, deltas in (self.delta_indices or {}).items()
            if key in self._used
        }
        stored = [key for key in self._meta.image_keys if key in self._images]
        self._stored = self.hf_dataset.select_columns(stored) if stored else None

    def get_item(self, idx: int) -> dict[str, Any]:
        """As `SelectedReader.get_item`."""
        idx = int(idx)
        episode = self._episode_of[idx]
        rows = self._episodes[episode]
        item = self._columns.row(idx)
        wanted = dict.fromkeys(self._images, torch.tensor([idx]))
        for key, offsets in self._offsets.items():
            at = idx + offsets
            inside = at.clamp(rows.start, rows.stop - 1)
            item[f"{key}_is_pad"] = at != inside
            if key in self._images:
                wanted[key] = inside
            else:
                item[key] = self._columns.tensors[key][inside]
        for key, frames in self._pictures(episode, wanted).items():
            # LeRobot drops the time dimension of a window of one frame of a video.
            alone = key not in self._offsets or key in self._meta.video_keys
            item[key] = frames.squeeze(0) if alone else frames
        item["task"] = self._tasks[int(item["task_index"])]
        return self._named(item)

    def column(self, key: str) -> np.ndarray:
        """(rows, …) of a feature that is no image."""
        return self._columns.tensors[key].numpy()

    def rows(self, episode: int) -> range:
        """The rows of an episode."""
        return self._episodes[episode]

    def numbers(self, row: int) -> dict[str, Any]:
        """All of a row that is no image, and its task."""
        numbers = self._columns.row(row)
        return numbers | {"task": self._tasks[int(numbers["task_index"])]}

    def recorded(self, keys: Sequence[str], episode: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Images as recorded, for rows of an episode: (n, H, W, 3) colour, (n, H, W, 1) float32 metres of depth."""
        tasks = [partial(self._picture, key, episode, torch.tensor(rows)) for key in keys]
        frames = zip(keys, decoding.together(tasks), strict=True)
        return {key: value.movedim(1, -1).numpy() for key, value in frames}

    def _pictures(self, episode: int, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(n, C, h, w) of each image for these rows of an episode, transformed and resized."""
        tasks = [partial(self._picture, key, episode, rows) for key, rows in wanted.items()]
        frames = zip(wanted, decoding.together(tasks), strict=True)
        return {key: self._sized(key, self._transformed(key, self._as_asked(value))) for key, value in frames}

    def _picture(self, key: str, episode: int, rows: Tensor) -> Tensor:
        """(n, C, H, W) of one image as recorded, for rows of an episode; colour of a video is uint8."""
        if key in self._meta.video_keys:
            times = self._columns.tensors["timestamp"][rows].tolist()
            return self._decode(key, episode, times)
        return torch.stack([self._stored_image(key, row) for row in rows.tolist()])

    def _stored_image(self, key: str, row: int) -> Tensor:
        image = self._stored[row][key]
        return image / 1000.0 if self._image_depth_units.get(key) == "mm" else image

    def _transformed(self, key: str, frames: Tensor) -> Tensor:
        """With LeRobot's image transforms, which are for colour; a single frame has no time dimension there."""
        if self._image_transforms is None or self._images[key].kind != RGB:
            return frames
        if len(frames) == 1:
            return self._image_transforms(frames[0].contiguous())[None]
        return self._image_transforms(frames.contiguous())


class CachedReader(TableReader):
    """A `TableReader` that has all its frames, decoded and resized, in memory or in files; colour is uint8."""

    @property
    def cache_bytes(self) -> int:
        """Size of the frames in bytes."""
        return sum(bytes_per_frame(*self._frame_shape(key)) for key in self._images) * len(self.hf_dataset)

    def fill_memory(self, shared: bool) -> None:
        """Decode everything, once; takes the time that it takes, with a progress bar.

        Args:
            shared: Keep the frames in shared memory, for worker processes.
        """
        frames = len(self.hf_dataset)
        stores = {
            key: FrameStore.in_memory(frames, self._frame_shape(key), self._far_m(key), shared)
            for key in self._images
        }
        self._fill("memory", stores)
        self._stores = stores

    def fill_files(self, folder: Path, max_gb: float) -> None:
        """Find the frames in files of an earlier run, or decode what is missing into files.

        Args:
            folder: Of the cache.
            max_gb: Most gigabytes in it.
        """
        name = f"{self.root.resolve().name}-{short_hash(str(self.root.resolve()))[:8]}"
        streams = [
            StreamFile(
                key, len(self.hf_dataset), self._frame_shape(key), self._far_m(key), self._depends_on(key)
            )
            for key in self._images
        ]
        self._stores = open_stores(folder, name, streams, max_gb, partial(self._fill, str(folder / name)))

    def _pictures(self, episode: int, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: self._transformed(key, self._stores[key].get(rows)) for key, rows in wanted.items()}

    def _frame_shape(self, key: str) -> tuple[int, int, int]:
        use = self._images[key]
        return (1 if use.kind == DEPTH else 3, *use.seen[:2])

    def _far_m(self, key: str) -> float | None:
        if self._images[key].kind == RGB:
            return None
        highest = plans.depth_range(self._images[key].recorded).highest_m
        return min(highest, self._selection.depth.far_m)

    def _depends_on(self, key: str) -> dict[str, Any]:
        """What a stream's frames are made of, such that none of it can change unnoticed."""
        is_video = key in self._meta.video_keys
        files = {self.root / self._meta.get_data_file_path(episode) for episode in self._episodes}
        files |= {self._place(key, episode)[0] for episode in self._episodes} if is_video else set()
        stamps = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)}
        return {
            "format": _FORMAT,
            "root": str(self.root.resolve()),
            "info": (self.root / "meta" / "info.json").read_text(),
            "files": stamps,
            "episodes": list(self._episodes),
            "decoder": self._video_backend,
        }

    def _fill(self, where: str, sinks: Mapping[str, FrameSink]) -> None:
        if sinks:
            fill(sinks, self._episodes, self._decode_into, _DECODE_CHUNK, where)

    def _decode_into(self, sinks: Mapping[str, FrameSink], episode: int, rows: range) -> None:
        decoding.together([partial(self._put, sink, key, episode, rows) for key, sink in sinks.items()])

    def _put(self, sink: FrameSink, key: str, episode: int, rows: range) -> None:
        frames = self._picture(key, episode, torch.arange(rows.start, rows.stop))
        # A few at a time: what they need in between then stays in the processor's cache.
        sink.put(rows.start, torch.cat([self._sized(key, some) for some in frames.split(_RESIZE_CHUNK)]))


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
