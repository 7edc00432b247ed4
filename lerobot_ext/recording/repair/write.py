"""Writes the repaired dataset into a new folder, as `plan` decided. The damaged one is only read."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lerobot_ext.recording.repair.files import copy_rest, take_over
from lerobot_ext.recording.repair.places import Place
from lerobot_ext.recording.repair.plan import KEPT, Episode, Plan
from lerobot_ext.recording.repair.read import EPISODES, INFO, STATS, TASKS, Found, Track
from lerobot_ext.recording.repair.stats import Stats, from_columns, images, numeric, to_columns, video
from lerobot_ext.recording.repair.videos import copy_whole_frames, probe
from lerobot_ext.recording.tables import LOOSE_CHUNK


@dataclass(frozen=True)
class Shown:
    """Where an episode's frames are in the repaired folder."""

    path: Path
    chunk: int
    file: int
    times_s: NDArray[np.float64]


def write(found: Found, plan: Plan, out: Path, track: Track = lambda items, _: items) -> None:
    """Write the repaired dataset.

    Args:
        found: What was read.
        plan: What was decided; at least one episode is kept.
        out: The new folder; it must not exist.
        track: Wraps what takes long, to show how far it is.

    Raises:
        OSError: Reading or writing failed.
    """
    out.mkdir(parents=True)
    info = copy.deepcopy(found.info)
    copy_rest(found.root, out, {episode.index: episode.new_index for episode in plan.kept})
    shown = _write_videos(found, plan, out, info, track)
    _write_data(found, plan, out, track)
    stats = _write_rows(found, plan, out, info, shown, track)
    _write_tasks(found, plan, out)
    _write_totals(found, plan, out, info, stats)


def _write_videos(
    found: Found, plan: Plan, out: Path, info: dict[str, Any], track: Track
) -> dict[tuple[str, int], Shown]:
    """Take over the videos that are used; returns where each (camera, new episode) is shown."""
    shown: dict[tuple[str, int], Shown] = {}
    for key in found.video_keys:
        done: dict[Path, Path] = {}
        used = [episode.places[key].video for episode in plan.kept]
        last = max(((v.chunk, v.file) for v in used if v and 0 <= v.chunk < LOOSE_CHUNK), default=(0, -1))
        for episode in track(plan.kept, key):
            place = episode.places[key]
            video = place.video
            if video is None or video.chunk < 0:
                last = _next(last, info["chunks_size"])
                number = last
            else:
                number = (video.chunk, video.file)
            path = out / info["video_path"].format(video_key=key, chunk_index=number[0], file_index=number[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            if video is None:
                times = _encode(place, path, found.features[key], info, key)
            else:
                times = video.times_s[place.first : place.first + episode.frames]
                if video.path not in done:
                    if video.why:
                        copy_whole_frames(video, path)
                    else:
                        take_over(video.path, path)
                    done[video.path] = path
            shown[key, episode.new_index] = Shown(path, *number, times)
        _describe_video(info, key, shown[key, 0].path)
    return shown


def _next(last: tuple[int, int], chunks_size: int) -> tuple[int, int]:
    return (last[0] + 1, 0) if last[1] == chunks_size - 1 else (last[0], last[1] + 1)


def _encode(
    place: Place, path: Path, feature: dict[str, Any], info: dict[str, Any], key: str
) -> NDArray[np.float64]:
    """Encode pictures with the settings of the camera's other videos; returns the frames' times."""
    from lerobot.configs.video import encoder_config_from_video_info
    from lerobot.datasets.video_utils import encode_video_frames, get_video_info

    config = encoder_config_from_video_info(feature.get("info"))
    encode_video_frames(place.pictures, path, info["fps"], video_encoder=config, overwrite=True)
    described = info["features"][key].setdefault("info", {})
    if "video.codec" not in described:
        described |= {k: v for k, v in get_video_info(path, config).items() if k != "is_depth_map"}
    return probe(path, key).times_s


def _describe_video(info: dict[str, Any], key: str, path: Path) -> None:
    """Say in info.json what LeRobot says after the first episode, if the recording did not come so far."""
    from lerobot.datasets.video_utils import get_video_info

    described = info["features"][key].get("info") or {}
    if "video.codec" not in described:
        found = {k: v for k, v in get_video_info(path).items() if k != "is_depth_map"}
        info["features"][key]["info"] = {"is_depth_map": False, **described, **found}


def _write_data(found: Found, plan: Plan, out: Path, track: Track) -> None:
    """Take over the files of frames; where rows are left out or numbered anew, they are written again."""
    starts = _starts(plan)
    for position, file in enumerate(track(found.data, "data")):
        kept = [episode for episode in plan.kept if episode.run.file == position]
        if not kept:
            continue
        target = out / file.path.relative_to(found.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        same = all(
            episode.index == episode.new_index and episode.run.first_index == starts[episode.new_index]
            for episode in kept
        )
        if same and sum(episode.frames for episode in kept) == file.rows:
            take_over(file.source, target)
            continue
        table = pq.read_table(file.source)
        with pq.ParquetWriter(target, table.schema, compression="snappy", use_dictionary=True) as writer:
            for episode in kept:  # a row group each, as LeRobot writes them
                rows = table.slice(episode.run.start, episode.frames)
                start = starts[episode.new_index]
                rows = _replaced(rows, "index", np.arange(start, start + episode.frames))
                rows = _replaced(rows, "episode_index", np.full(episode.frames, episode.new_index))
                writer.write_table(rows)


def _starts(plan: Plan) -> list[int]:
    """The first frame of each kept episode over all of them, and one behind the last."""
    return [0, *np.cumsum([episode.frames for episode in plan.kept]).tolist()]


def _replaced(table: pa.Table, name: str, values: NDArray) -> pa.Table:
    at = table.column_names.index(name)
    column = pa.array(values, type=table.schema.field(name).type)
    return table.set_column(at, table.schema.field(name), column)


def _write_rows(
    found: Found,
    plan: Plan,
    out: Path,
    info: dict[str, Any],
    shown: dict[tuple[str, int], Shown],
    track: Track,
) -> list[Stats]:
    """Write meta/episodes; returns the statistics of every episode."""
    starts = _starts(plan)
    rows = [
        _row(episode, starts[episode.new_index], plan, found, info, shown)
        for episode in track(plan.kept, "episodes")
    ]
    as_found = [found.rows[episode.index] for episode in plan.kept if episode.row]
    if rows == as_found and len(rows) == len(found.rows) and not found.rows_why:
        for path in sorted((found.root / EPISODES).glob("*/*.parquet")):
            take_over(path, out / path.relative_to(found.root))
    else:
        for row in rows:
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        path = out / EPISODES / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, compression="snappy", use_dictionary=True)
    return [from_columns(row) for row in rows]


def _row(
    episode: Episode,
    start: int,
    plan: Plan,
    found: Found,
    info: dict[str, Any],
    shown: dict[tuple[str, int], Shown],
) -> dict[str, Any]:
    """An episode's row, with the columns in LeRobot's order."""
    run = episode.run
    chunk, number = found.data[run.file].chunk_file
    row: dict[str, Any] = {
        "episode_index": episode.new_index,
        "tasks": (episode.row or {}).get("tasks") or [plan.tasks[task] for task in run.tasks],
        "length": episode.frames,
        "data/chunk_index": chunk,
        "data/file_index": number,
        "dataset_from_index": start,
        "dataset_to_index": start + episode.frames,
    }
    for key in found.video_keys:
        where = shown[key, episode.new_index]
        first = float(where.times_s[0])
        row |= {
            f"videos/{key}/chunk_index": where.chunk,
            f"videos/{key}/file_index": where.file,
            f"videos/{key}/from_timestamp": first,
            f"videos/{key}/to_timestamp": first + episode.frames / found.fps,
        }
    stats = from_columns(episode.row) if episode.row else {}
    row |= to_columns(_missing_stats(episode, start, stats, found, info, shown))
    if episode.row:
        unchanged = {key for key, place in episode.places.items() if place.recorded}
        for name, value in episode.row.items():
            recorded = name.startswith("videos/") and name.split("/")[1] in unchanged
            if recorded or name not in row:
                row[name] = value
        row = {name: row[name] for name in [*episode.row, *(n for n in row if n not in episode.row)]}
    return row


def _missing_stats(
    episode: Episode,
    start: int,
    known: Stats,
    found: Found,
    info: dict[str, Any],
    shown: dict[tuple[str, int], Shown],
) -> Stats:
    """The statistics that an episode's row has not, or not any more."""
    moved = episode.index != episode.new_index or episode.run.first_index != start
    stale = {"index", "episode_index"} if moved else set()
    wanted = {
        key: feature
        for key, feature in found.features.items()
        if feature["dtype"] not in ("string", "language") and (key not in known or key in stale)
    }
    stats: Stats = {}
    if any(feature["dtype"] != "video" for feature in wanted.values()):
        rows = _rows_of(found, episode)
        rows = _replaced(rows, "index", np.arange(start, start + episode.frames))
        rows = _replaced(rows, "episode_index", np.full(episode.frames, episode.new_index))
        numbers = {**wanted, "frame_index": found.features["frame_index"]}
        stats = numeric(rows, numbers, found.fps)
        stats = {key: stats[key] for key in wanted if key in stats}
    for key, feature in wanted.items():
        if feature["dtype"] == "video":
            where = shown[key, episode.new_index]
            stats[key] = video(where.path, where.times_s, info["features"][key])
        elif feature["dtype"] == "image":
            stats[key] = images(rows, key)
    return stats


def _rows_of(found: Found, episode: Episode) -> pa.Table:
    """The rows of one episode; only the row groups that hold them are read."""
    start, stop = episode.run.start, episode.run.start + episode.frames
    parts, at = [], 0
    with pq.ParquetFile(found.data[episode.run.file].source) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if at < stop and start < at + count:
                rows = file.read_row_group(group)
                parts.append(rows.slice(max(0, start - at), min(count, stop - at) - max(0, start - at)))
            at += count
    return pa.concat_tables(parts).combine_chunks()


def _write_tasks(found: Found, plan: Plan, out: Path) -> None:
    if found.tasks == plan.tasks:
        take_over(found.root / TASKS, out / TASKS)
        return
    import pandas as pd
    from lerobot.datasets.io_utils import write_tasks

    indices = sorted(plan.tasks)
    texts = pd.Index([plan.tasks[index] for index in indices], name="task")
    write_tasks(pd.DataFrame({"task_index": indices}, index=texts), out)


def _write_totals(found: Found, plan: Plan, out: Path, info: dict[str, Any], stats: list[Stats]) -> None:
    """Write stats.json, and info.json last: a folder without it is no dataset yet."""
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.io_utils import write_stats

    same = len(plan.kept) == len(plan.episodes) and all(episode.status == KEPT for episode in plan.kept)
    if same and found.stats is not None:
        take_over(found.root / STATS, out / STATS)
    else:
        write_stats(aggregate_stats(stats), out)
    frames = sum(episode.frames for episode in plan.kept)
    info |= {
        "total_episodes": len(plan.kept),
        "total_frames": frames,
        "total_tasks": len(plan.tasks),
        "splits": {"train": f"0:{len(plan.kept)}"},
    }
    (out / INFO).write_text(json.dumps(info, indent=4, ensure_ascii=False), encoding="utf-8")
