"""What a damaged dataset's folder still holds, read without writing to it.

Files without footer are made readable in a work folder. Nothing here decides what becomes of an episode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_ext.errors import UserError
from lerobot_ext.recording import parquet_footer
from lerobot_ext.recording.repair.files import TEMP_FOLDER
from lerobot_ext.recording.repair.videos import CHUNK_FILE, VideoFile, picture_folders, probe

ROW_COLUMNS = ("episode_index", "frame_index", "index", "task_index")
INFO, STATS, TASKS, EPISODES = (
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/episodes",
)
Track = Callable[[Iterable, str], Iterable]


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one episode in one data file.

    Attributes:
        episode: The rows' episode_index.
        file: Position of the file in `Found.data`.
        start: The first row in that file.
        length: Rows.
        first_index: The first row's index over all episodes.
        tasks: The task_index that occur.
        fault: What is wrong with them, empty if they are a whole episode's as far as they tell.
    """

    episode: int
    file: int
    start: int
    length: int
    first_index: int
    tasks: tuple[int, ...]
    fault: str = ""


@dataclass
class DataFile:
    """A Parquet file of frames.

    Attributes:
        path: The file in the damaged folder.
        source: A file with the rows that can be read, maybe a rebuilt one; None if there are none.
        rows: How many.
        why: What is wrong with it, empty if it is whole.
        lost: Bytes of rows that were not written completely.
    """

    path: Path
    source: Path | None
    rows: int = 0
    why: str = ""
    lost: int = 0

    @property
    def chunk_file(self) -> tuple[int, int]:
        """The two numbers in its name."""
        return chunk_and_file(self.path)


@dataclass
class Found:
    """Everything that was read.

    Attributes:
        root: The damaged folder.
        info: info.json, with what could be saved of it.
        info_why: What is wrong with info.json, empty if it is whole.
        tasks: Task of each task_index; None if tasks.parquet cannot be read.
        rows: The row of meta/episodes of each episode that has one.
        rows_why: What is wrong with meta/episodes, empty if nothing.
        stats: stats.json; None if it cannot be read.
        data: The files of frames, in order.
        runs: Episodes' rows in them, in order.
        videos: The video files of each camera, in order.
        temporary: Videos that were on their way into the dataset.
        pictures: Folders of pictures that were not encoded: (camera, episode) -> folder.
        leftovers: Files and folders that belong to no dataset.
    """

    root: Path
    info: dict[str, Any]
    info_why: str = ""
    tasks: dict[int, str] | None = None
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    rows_why: str = ""
    stats: dict[str, Any] | None = None
    data: list[DataFile] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    videos: dict[str, list[VideoFile]] = field(default_factory=dict)
    temporary: list[VideoFile] = field(default_factory=list)
    pictures: dict[tuple[str, int], Path] = field(default_factory=dict)
    leftovers: list[Path] = field(default_factory=list)

    @property
    def features(self) -> dict[str, dict]:
        """The dataset's features, shapes as tuples."""
        return {
            key: {**feature, "shape": tuple(feature["shape"])}
            for key, feature in self.info["features"].items()
        }

    @property
    def video_keys(self) -> list[str]:
        """Features that are stored as videos."""
        return [key for key, feature in self.info["features"].items() if feature["dtype"] == "video"]

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.info["fps"]


def read(
    root: Path, work: Path, info_file: Path | None = None, track: Track = lambda items, _: items
) -> Found:
    """Read what is in `root`.

    Args:
        root: The dataset's folder; nothing is written to it.
        work: An empty folder for files that are rebuilt.
        info_file: info.json of another recording of the same robot, for one that is lost.
        track: Wraps what takes long, to show how far it is.

    Raises:
        UserError: It is no dataset of format v3.0, or its features are lost.
    """
    if not root.is_dir():
        raise UserError(f"'{root}' is not a folder; give the folder that holds meta/, data/ and videos/.")
    if not (root / "meta").is_dir():
        raise UserError(
            f"'{root}' has no folder meta/, so it is no LeRobot dataset; give the folder that holds meta/, data/ and "
            "videos/."
        )
    info, why = read_info(root / INFO, info_file)
    found = Found(root, info, why)
    found.tasks = _read_tasks(root / TASKS)
    found.rows, found.rows_why = _read_rows(root / EPISODES)
    found.stats = _read_stats(root / STATS)
    schema = _data_schema(found.features)
    for path in track(sorted((root / "data").glob("*/*.parquet")), "data"):
        file, runs = _read_data(path, schema, work, len(found.data))
        found.data.append(file)
        found.runs += runs
    for key in found.video_keys:
        files = sorted((root / "videos" / key).glob("*/*.mp4"), key=chunk_and_file)
        found.videos[key] = [probe(path, key) for path in track(files, key)]
    found.temporary = _read_temporary(root, found.video_keys)
    found.pictures = picture_folders(root)
    found.leftovers = [path for path in sorted(root.iterdir()) if TEMP_FOLDER.fullmatch(path.name)]
    if (root / "images").is_dir():
        found.leftovers.append(root / "images")
    return found


def chunk_and_file(path: Path) -> tuple[int, int]:
    """The two numbers in `…/chunk-000/file-000.…`, (-1, -1) if it is not named so."""
    found = CHUNK_FILE.search(path.as_posix())
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def read_info(path: Path, other: Path | None) -> tuple[dict[str, Any], str]:
    """info.json, and what is wrong with it.

    Raises:
        UserError: It is lost, or of another version.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    why = "" if text else ("it is empty" if path.exists() else "it is missing")
    try:
        info = json.loads(text)
    except ValueError:
        info, why = _beginning_of_info(text), why or "it is cut"
    if other is not None:
        try:
            donor = json.loads(other.read_text(encoding="utf-8"))
            described = {key: feature.get("info") for key, feature in donor["features"].items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"--info='{other}' cannot be used: {error!r}") from error
        if info is None:
            info = donor | {"total_episodes": 0, "total_frames": 0, "total_tasks": 0, "splits": {}}
        for key, feature in info["features"].items():
            if "video.codec" not in (feature.get("info") or {}) and described.get(key):
                feature["info"] = described[key] | (feature.get("info") or {})
    if info is None:
        raise UserError(
            f"'{path}' cannot be used ({why}), and with it the names, types and shapes of what was recorded are lost; "
            "give the meta/info.json of another recording of the same robot and cameras with --info=FILE."
        )
    version = str(info.get("codebase_version", "")).lstrip("v")
    if version.split(".")[0] != "3" or not isinstance(info.get("features"), dict) or not info.get("fps"):
        raise UserError(
            f"'{path}' says codebase_version {info.get('codebase_version')!r}, expected 'v3.0' with features and fps; "
            "older datasets are converted with lerobot.scripts.convert_dataset_v21_to_v30."
        )
    return info, why


def _beginning_of_info(text: str) -> dict[str, Any] | None:
    """What a cut info.json says, if its features are whole: they stand before the totals."""
    at = re.search(r'"features"\s*:\s*', text)
    if at is None:
        return None
    try:
        features, _ = json.JSONDecoder().raw_decode(text, at.end())
    except ValueError:
        return None
    info: dict[str, Any] = {"features": features}
    for name, value in re.findall(r'^ {4}"(\w+)": ("[^"\n]*"|[\d.]+|null),?$', text, re.MULTILINE):
        info[name] = json.loads(value)
    from lerobot.datasets.utils import DatasetInfo

    try:
        return DatasetInfo.from_dict(info).to_dict()
    except (TypeError, ValueError):
        return None


def _read_tasks(path: Path) -> dict[int, str] | None:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return None
    name = next((column for column in table.column_names if column != "task_index"), None)
    if name is None or "task_index" not in table.column_names:
        return None
    return dict(zip(table["task_index"].to_pylist(), map(str, table[name].to_pylist()), strict=True))


def _read_rows(folder: Path) -> tuple[dict[int, dict[str, Any]], str]:
    files = sorted(folder.glob("*/*.parquet"))
    rows: dict[int, dict[str, Any]] = {}
    why = "" if files else "it is missing"
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    for row in file.read_row_group(group).to_pylist():
                        rows[row["episode_index"]] = row
        except (pa.ArrowException, OSError, KeyError):
            why = f"'{path.relative_to(folder.parent.parent)}' {_broken(path)}"
    return rows, why


def _broken(path: Path) -> str:
    if path.stat().st_size == 0:
        return "is empty"
    if parquet_footer.has_footer(path):
        return "is damaged inside"
    return "has no footer: it was being written when the recording was killed"


def _read_stats(path: Path) -> dict[str, Any] | None:
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stats if isinstance(stats, dict) else None


def _data_schema(features: dict[str, dict]) -> pa.Schema:
    from lerobot.datasets.feature_utils import get_hf_features_from_features

    return get_hf_features_from_features(features).arrow_schema


def _read_data(path: Path, schema: pa.Schema, work: Path, position: int) -> tuple[DataFile, list[Run]]:
    file = DataFile(path, path)
    try:
        table = _index_columns(path)
    except (pa.ArrowException, OSError, KeyError):
        file.why = _broken(path)
        file.source = work / f"data-{position:05d}.parquet"
        try:
            if parquet_footer.has_footer(path):
                file.lost = _readable_groups(path, file.source)
            else:
                file.lost = parquet_footer.rebuild(path, schema, file.source).lost
        except parquet_footer.FooterError:
            file.lost = path.stat().st_size
        if not file.source.exists():
            file.source = None
            return file, []
        table = _index_columns(file.source)
    file.rows = table.num_rows
    return file, _runs(table, position)


def _index_columns(path: Path) -> pa.Table:
    """The rows' indices; every other column is read, too, to see that it can be."""
    parts = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            parts.append(file.read_row_group(group).select(ROW_COLUMNS))
        empty = file.schema_arrow.empty_table().select(ROW_COLUMNS)
    return pa.concat_tables(parts) if parts else empty


def _readable_groups(path: Path, out: Path) -> int:
    """Copy the row groups that can be read, up to the first that cannot; returns the bytes left behind."""
    kept = 0
    with (
        pq.ParquetFile(path) as file,
        pq.ParquetWriter(out, file.schema_arrow, compression="snappy", use_dictionary=True) as writer,
    ):
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group)
            except (pa.ArrowException, OSError):
                break
            writer.write_table(table)
            described = file.metadata.row_group(group)
            kept += sum(described.column(i).total_compressed_size for i in range(described.num_columns))
    return max(0, path.stat().st_size - kept)


def _runs(table: pa.Table, position: int) -> list[Run]:
    columns = {name: np.asarray(table[name].to_numpy()) for name in ROW_COLUMNS}
    episodes = columns["episode_index"]
    if not len(episodes):
        return []
    # An episode whose number was used twice begins anew with its first frame.
    begins = (np.diff(episodes) != 0) | (columns["frame_index"][1:] == 0)
    starts = np.concatenate(([0], np.nonzero(begins)[0] + 1, [len(episodes)]))
    runs = []
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        expected = np.arange(stop - start)
        index = columns["index"][start:stop]
        fault = ""
        if (columns["frame_index"][start:stop] != expected).any():
            fault = "its frame_index is not 0, 1, 2, …"
        tasks = np.unique(columns["task_index"][start:stop])
        runs.append(
            Run(
                int(episodes[start]),
                position,
                int(start),
                int(stop - start),
                int(index[0]) if (index == index[0] + expected).all() else -1,
                tuple(int(task) for task in tasks),
                fault,
            )
        )
    return runs


def _read_temporary(root: Path, keys: list[str]) -> list[VideoFile]:
    """Videos of single episodes that LeRobot had not moved to their place yet."""
    found = []
    for path in sorted(root.glob("tmp*/*.mp4")):
        for key in sorted(keys, key=len, reverse=True):
            if path.name.startswith((f"{key}_", f"{key.replace('/', '_')}_")):
                found.append(probe(path, key))
                break
    return found
