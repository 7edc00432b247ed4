"""One episode on its way to the disk: its files are staged, take their places in order, and then the dataset has it.

The order makes every state between open with LeRobot: videos, tasks, data, episodes, statistics, info. Encoding, and
what to do when something fails, is the writer's business.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.configs import VideoEncoderConfig
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import embed_images
from lerobot.datasets.utils import (
    DEFAULT_EPISODES_PATH,
    DEFAULT_TASKS_PATH,
    INFO_PATH,
    STATS_PATH,
    serialize_dict,
    update_chunk_file_indices,
)
from lerobot.datasets.video_utils import get_video_info
from lerobot.utils.utils import flatten_dict

from lerobot_ext.recording import tables
from lerobot_ext.recording.consolidate import count_frames, read_episodes
from lerobot_ext.recording.encoding import EncoderFailedError
from lerobot_ext.recording.files import Staging, json_bytes
from lerobot_ext.recording.tables import LOOSE_CHUNK

DATA_TAIL_BYTES = 32 * 2**20
"""A data file is copied with each episode; one that is larger than this is left alone, and a new one is begun."""


@dataclass
class Tails:
    """The two tables that the next episode is appended to.

    Attributes:
        data: Chunk, file and rows of the last data file.
        episodes: Chunk and file of the last file of `meta/episodes`.
        episodes_table: What is in it; None if it does not exist yet.
    """

    data: tuple[int, int, int] = (0, 0, 0)
    episodes: tuple[int, int] = (0, 0)
    episodes_table: pa.Table | None = None

    @classmethod
    def of(cls, meta: LeRobotDatasetMetadata) -> Tails:
        """The tails of a dataset as it is on disk.

        Raises:
            RuntimeError: The tables do not hold the episodes that `meta` counts.
        """
        if not meta.total_episodes:
            return cls()
        root, rows = meta.root, read_episodes(meta.root)
        last = rows[-1] if rows else {}
        found = len(rows), last.get("dataset_to_index")
        if found != (meta.total_episodes, meta.total_frames):
            raise RuntimeError(
                f"{root}: meta/episodes has {found[0]} episodes with {found[1]} frames, expected {meta.total_episodes} "
                f"with {meta.total_frames}; open it with resume, or see `lerobot-ext repair {root}`."
            )
        place = last["data/chunk_index"], last["data/file_index"]
        begins = [
            row["dataset_from_index"]
            for row in rows
            if (row["data/chunk_index"], row["data/file_index"]) == place
        ]
        episodes = last["meta/episodes/chunk_index"], last["meta/episodes/file_index"]
        path = root / DEFAULT_EPISODES_PATH.format(chunk_index=episodes[0], file_index=episodes[1])
        return cls((*place, meta.total_frames - min(begins)), episodes, pq.ParquetFile(path).read())


class Commit:
    """What one episode changes in a dataset, staged until `commit`.

    Attributes:
        size: Bytes of its videos and of its rows.
    """

    def __init__(self, meta: LeRobotDatasetMetadata, tails: Tails, index: int, length: int) -> None:
        self._meta, self._before, self._after = meta, tails, copy.copy(tails)
        self._root: Path = meta.root
        self._length = length
        self._tasks = meta.tasks
        self._info = copy.deepcopy(meta.info)
        self._row: dict[str, Any] = {"episode_index": index, "tasks": [], "length": length}
        self.staging = Staging()
        self.size = 0

    def add_video(self, key: str, path: Path, encoder: VideoEncoderConfig) -> None:
        """Stage an episode's video.

        Raises:
            EncoderFailedError: It has not as many frames as the episode.
        """
        try:
            found = count_frames(path)
        except (OSError, ValueError, IndexError) as error:
            raise EncoderFailedError(f"the video of {key} cannot be read ({error}).") from error
        if found != self._length:
            raise EncoderFailedError(f"the video of {key} has {found} frames, the episode {self._length}.")
        index = self._row["episode_index"]
        if index == 0:
            video_info = get_video_info(path, video_encoder=encoder)
            self._info.features[key]["info"] = {**(self._info.features[key].get("info") or {}), **video_info}
        number = index
        while (target := self._video_path(key, number)).exists():
            number += 1  # only where stock LeRobot went on with our recording
        self.size += path.stat().st_size
        self.staging.move(path, target)
        self._row |= {
            f"videos/{key}/chunk_index": LOOSE_CHUNK,
            f"videos/{key}/file_index": number,
            f"videos/{key}/from_timestamp": 0.0,
            f"videos/{key}/to_timestamp": self._length / self._meta.fps,
        }

    def _video_path(self, key: str, number: int) -> Path:
        name = self._meta.video_path.format(video_key=key, chunk_index=LOOSE_CHUNK, file_index=number)
        return self._root / name

    def add_tasks(self, names: Sequence[str]) -> np.ndarray:
        """Stage the tasks of the frames, as far as they are new.

        Returns:
            (frames,) int64: their indices.
        """
        known = [] if self._tasks is None else self._tasks.index.tolist()
        self._row["tasks"] = list(dict.fromkeys(names))
        new = [name for name in self._row["tasks"] if name not in known]
        if new:
            numbers = [] if self._tasks is None else self._tasks["task_index"].tolist()
            numbers = [*numbers, *range(len(known), len(known) + len(new))]
            self._tasks = pd.DataFrame({"task_index": numbers}, index=pd.Index([*known, *new], name="task"))
            content = io.BytesIO()
            self._tasks.to_parquet(content)
            self.staging.write(self._root / DEFAULT_TASKS_PATH, content.getvalue())
        number_of = self._tasks["task_index"].to_dict()
        return np.array([number_of[name] for name in names])

    def add_data(self, columns: Mapping[str, Any]) -> None:
        """Stage the rows of the data table: one value a frame for each feature that is no video."""
        features = get_hf_features_from_features(self._meta.features)
        rows = datasets.Dataset.from_dict({k: columns[k] for k in features}, features=features, split="train")
        if self._meta.image_keys:
            rows = embed_images(rows)
        table = rows.with_format("arrow")[:]
        chunk, file, before = self._before.data
        if before and not self._append(table, self._data_path(chunk, file), before):
            chunk, file = update_chunk_file_indices(chunk, file, self._meta.chunks_size)
            before = 0
        if not before:
            target = self.staging.new(self._data_path(chunk, file))
            tables.write_table(table, target)
            self.size += target.stat().st_size
        self._after.data = chunk, file, before + self._length
        first = self._meta.total_frames
        self._row |= {
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": first,
            "dataset_to_index": first + self._length,
        }

    def _data_path(self, chunk: int, file: int) -> Path:
        return self._root / self._meta.data_path.format(chunk_index=chunk, file_index=file)

    def _append(self, table: pa.Table, path: Path, rows: int) -> bool:
        """Stage the last data file with the episode's rows at its end; False if they need a file of their own."""
        size = path.stat().st_size
        if size + table.nbytes >= min(DATA_TAIL_BYTES, self._meta.data_files_size_in_mb * 2**20):
            return False
        self._check_tail(path, rows)
        target = self.staging.new(path)
        try:
            tables.append_row_group(path, table, target)
        except ValueError:  # another version of LeRobot wrote other columns
            self.staging.forget(target)
            return False
        self.size += target.stat().st_size - size
        return True

    def _check_tail(self, path: Path, expected: int) -> None:
        found = pq.read_metadata(path).num_rows
        if found != expected:
            raise RuntimeError(
                f"{path} has {found} rows, the saved episodes have {expected} in it; open the dataset with resume, or "
                f"see `lerobot-ext repair {self._root}`."
            )

    def commit(self, stats: dict[str, dict]) -> Tails:
        """Put everything in its place, and let the metadata know.

        Args:
            stats: The episode's statistics.

        Returns:
            What the next episode is appended to.

        Raises:
            OSError: With `staging.committing` False, nothing has changed.
        """
        meta, info = self._meta, self._info
        self._row |= flatten_dict({"stats": stats})
        self._add_row()
        total = stats if meta.stats is None else aggregate_stats([meta.stats, stats])
        info.total_episodes += 1
        info.total_frames += self._length
        info.total_tasks = len(self._tasks)
        info.splits = {"train": f"0:{info.total_episodes}"}
        self.staging.write(self._root / STATS_PATH, json_bytes(serialize_dict(total)))
        self.staging.write(self._root / INFO_PATH, json_bytes(info.to_dict()))
        self.staging.commit()
        for name in ("total_episodes", "total_frames", "total_tasks", "splits"):
            setattr(meta.info, name, getattr(info, name))
        for key in meta.video_keys:
            meta.info.features[key]["info"] = info.features[key].get("info")
        meta.tasks, meta.stats = self._tasks, total
        meta.latest_episode = {key: [value] for key, value in self._row.items()}
        return self._after

    def _add_row(self) -> None:
        chunk, file = self._before.episodes
        before = self._before.episodes_table
        if before is not None:
            path = self._episodes_path(chunk, file)
            if path.stat().st_size >= self._meta.data_files_size_in_mb * 2**20:
                (chunk, file), before = update_chunk_file_indices(chunk, file, self._meta.chunks_size), None
        table = tables.append_episode(before, self._row_in(chunk, file))
        if table is None:
            chunk, file = update_chunk_file_indices(chunk, file, self._meta.chunks_size)
            table = self._row_in(chunk, file)
        tables.write_table(table, self.staging.new(self._episodes_path(chunk, file)))
        self._after.episodes, self._after.episodes_table = (chunk, file), table

    def _episodes_path(self, chunk: int, file: int) -> Path:
        return self._root / DEFAULT_EPISODES_PATH.format(chunk_index=chunk, file_index=file)

    def _row_in(self, chunk: int, file: int) -> pa.Table:
        self._row |= {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
        return tables.episode_row(self._row)

    def abort(self) -> None:
        """Forget the episode; its temporary files are removed."""
        self.staging.abort()
