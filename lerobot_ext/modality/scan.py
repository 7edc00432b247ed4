"""What is odd about the values of the selected features: numbers that never change, NaN, pictures of one colour.

Vectors are read once from the dataset's tables, without the pictures; pictures are judged by the dataset's statistics.
Nothing is changed, and nothing is refused: the sentences are for the user.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_ext.modality.plan import DEPTH, FORCE, LANGUAGE, OBS_PREFIX, OBS_STATE, RGB, Use, names_of
from lerobot_ext.modality.selection import Selection

LISTED = 6  # names in one sentence
WARNING, NOTE = "warning", "note"
_EPISODE, _FRAME = "episode_index", "frame_index"
_NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_OFF = {FORCE: "use_force: false", DEPTH: "use_depth_image: false"}


@dataclass
class Column:
    """What was found in one vector.

    Attributes:
        lowest: Smallest finite value of each number, (n,); infinite where there is none.
        highest: Largest.
        bad: How many values are NaN or infinite.
        bad_episodes: Episodes with such values.
        bad_frames: How many frames have such values.
        first_bad: Episode, frame and place in the vector of the first one.
        frames: How many frames were read.
    """

    lowest: np.ndarray
    highest: np.ndarray
    bad: int = 0
    bad_frames: int = 0
    bad_episodes: tuple[int, ...] = ()
    first_bad: tuple[int, int, int] | None = None
    frames: int = 0

    @classmethod
    def empty(cls, size: int) -> Column:
        """Nothing read yet of a vector of `size` numbers."""
        return cls(np.full(size, np.inf), np.full(size, -np.inf))

    def add(self, values: np.ndarray, episodes: np.ndarray, frames: np.ndarray) -> None:
        """Add (rows, n) values and each row's episode and frame number."""
        finite = np.isfinite(values)
        self.frames += len(values)
        self.lowest = np.minimum(self.lowest, np.where(finite, values, np.inf).min(axis=0, initial=np.inf))
        self.highest = np.maximum(
            self.highest, np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf)
        )
        if finite.all():
            return
        rows, places = np.nonzero(~finite)
        if self.first_bad is None:
            self.first_bad = (int(episodes[rows[0]]), int(frames[rows[0]]), int(places[0]))
        self.bad += len(rows)
        self.bad_frames += len(np.unique(rows))
        self.bad_episodes = tuple(sorted({*self.bad_episodes, *np.unique(episodes[rows]).tolist()}))

    @property
    def constant(self) -> list[int]:
        """Places of the numbers that never change."""
        return np.flatnonzero(self.lowest == self.highest).tolist() if self.frames > 1 else []


def findings(
    root: Path,
    stats: dict[str, dict[str, Any]] | None,
    plan: Iterable[Use],
    selection: Selection,
    episodes: Collection[int] | None = None,
) -> list[str]:
    """Sentences about the selected features, worst first; none if nothing is odd.

    Args:
        root: The dataset's directory; where its tables are not there (a dataset that streams from the hub), vectors
            are not looked at.
        stats: Its statistics as recorded, depth in the unit of the recording.
        plan: What happens to each feature.
        selection: What the plan was made from.
        episodes: Those that are trained on; None: all.
    """
    used = [use for use in plan if use.used and use.kind != LANGUAGE]
    vectors = {
        use.key: use
        for use in used
        if use.recorded["dtype"] in _NUMBERS
        and len(use.recorded["shape"]) == 1
        and use.key.startswith((OBS_PREFIX, "action"))
    }
    said: list[tuple[str, str]] = []
    for key, column in scan(root, vectors, episodes).items():
        said += _about_vector(vectors[key], column)
    for use in used:
        if use.kind in (RGB, DEPTH):
            said += _about_image(use, (stats or {}).get(use.key), selection)
    said += [(WARNING, _bad_stats(use)) for use in used if _has_nan((stats or {}).get(use.key))]
    return [f"{level}: {text}" for wanted in (WARNING, NOTE) for level, text in said if level == wanted]


def scan(root: Path, vectors: dict[str, Use], episodes: Collection[int] | None = None) -> dict[str, Column]:
    """Read these columns of all tables once, file by file."""
    columns = {key: Column.empty(int(use.recorded["shape"][0])) for key, use in vectors.items()}
    for table in _tables(root, list(vectors)):
        rows_episode, rows_frame = table.pop(_EPISODE)[:, 0], table.pop(_FRAME)[:, 0]
        kept = slice(None) if episodes is None else np.isin(rows_episode, list(episodes))
        for key, values in table.items():
            columns[key].add(values[kept], rows_episode[kept], rows_frame[kept])
    return {key: column for key, column in columns.items() if column.frames}


def _tables(root: Path, keys: list[str]) -> Iterator[dict[str, np.ndarray]]:
    import pyarrow.parquet as pq

    for file in sorted((Path(root) / "data").rglob("*.parquet")) if keys else ():
        there = set(pq.read_schema(file).names)
        table = pq.read_table(file, columns=[k for k in (*keys, _EPISODE, _FRAME) if k in there])
        yield {name: _array(table.column(name)) for name in table.column_names}


def _array(column: Any) -> np.ndarray:
    """(rows, n) of a column of lists, (rows, 1) of one of numbers; nothing at all in a row is NaN."""
    chunks = [chunk.flatten() if hasattr(chunk.type, "value_type") else chunk for chunk in column.chunks]
    values = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(values).reshape(len(column), -1)


def _about_vector(use: Use, column: Column) -> Iterator[tuple[str, str]]:
    names = names_of(use.recorded)
    if column.first_bad is not None:
        episode, frame, place = column.first_bad
        yield (
            WARNING,
            f"{use.key}: {column.bad} values in {column.bad_frames} of {column.frames} frames are NaN or infinite, "
            f"first in episode {episode}, frame {frame} ({names[place]}). The loss will be NaN. "
            f"{_way_out(use)} Or take the episodes out of the dataset: lerobot-edit-dataset "
            f"--operation.type=delete_episodes --operation.episode_indices='{_numbers(column.bad_episodes)}'",
        )
    constant = column.constant
    if not constant:
        return
    whole = len(constant) == len(names)
    listed = _listed([f"{names[i]} = {column.lowest[i]:g}" for i in constant])
    if use.key in (OBS_STATE, "action") and not whole:
        yield NOTE, f"{use.key}: {listed} in every frame; a joint that does not move?"
    else:
        share = "no value ever changes" if whole else f"{len(constant)} of {len(names)} values never change"
        which = "" if whole and len(names) > LISTED else f" ({listed})"
        why = "A dead channel?" if use.kind == FORCE else "A device that stood still?"
        yield WARNING, f"{use.key}: {share}{which}. {why} {_way_out(use) if whole else ''}".rstrip()


def _about_image(use: Use, stats: dict[str, Any] | None, selection: Selection) -> Iterator[tuple[str, str]]:
    if not stats or not {"min", "max"} <= set(stats):
        return
    lowest, highest = np.nanmin(np.asarray(stats["min"])), np.nanmax(np.asarray(stats["max"]))
    if lowest == highest:
        yield WARNING, f"{use.key}: every pixel of every frame has the same value. {_way_out(use)}"
    elif use.kind == DEPTH:
        unit = (use.recorded.get("info") or {}).get("depth_unit")
        near, far = selection.depth.near_m, selection.depth.far_m
        factor = {"mm": 0.001, "m": 1.0}.get(unit)
        # 0 is "no measurement", so only the far end says something.
        if factor is not None and highest * factor <= near:
            yield (
                WARNING,
                f"{use.key}: nothing is farther than {highest * factor:.3g} m, but depth.near_m is {near:g}: the "
                f"policy sees one value. Set modality.depth.near_m and far_m (now {far:g}) to what was recorded.",
            )


def _way_out(use: Use) -> str:
    if use.key == "action":
        return "Leave those episodes out (dataset.episodes)."
    off = _OFF.get(use.kind, f"modality.exclude: [{use.key}]")
    return f"Leave it out ({off})."


def _bad_stats(use: Use) -> str:
    return (
        f"{use.key}: its statistics in meta/stats.json are NaN or infinite, and so is everything that is normalised "
        "by them. Recompute them: lerobot-edit-dataset --operation.type=recompute_stats"
    )


def _has_nan(stats: dict[str, Any] | None) -> bool:
    values = [np.asarray(stats[name], dtype=float) for name in ("mean", "std") if name in (stats or {})]
    return any(not np.isfinite(value).all() for value in values)


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _numbers(episodes: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, episodes)) + "]"
