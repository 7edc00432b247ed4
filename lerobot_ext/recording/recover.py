"""What a recording that was killed left behind, brought back to the last saved episode.

Only states that our own writer can leave are touched; each of them opens with LeRobot as it is, but the next episode
could not be appended to it. What other crashes leave is for `lerobot-ext repair`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from lerobot.datasets.io_utils import load_info, load_stats, write_stats
from lerobot.datasets.utils import INFO_PATH, DatasetInfo

from lerobot_ext.recording import lock, tables
from lerobot_ext.recording.consolidate import episode_files, place_of, read_episodes
from lerobot_ext.recording.disk import megabytes
from lerobot_ext.recording.files import remove, replace_bytes, replace_json, replacing, temp_files
from lerobot_ext.recording.tables import LOOSE_CHUNK

logger = logging.getLogger(__name__)

OWN_FOLDER = Path("meta") / "lerobot_ext"
REPAIR = "`lerobot-ext repair {root}` tells what can be kept"

_TEMP_FOLDER = re.compile(r"tmp[a-z0-9_]{8}")
_NUMBER = re.compile(r"(\d+)$")


def recover(root: Path) -> list[str]:
    """Bring a folder that our writer left at any instant to the last saved state, in place; again does nothing.

    Args:
        root: Folder of a dataset that nobody is recording to.

    Returns:
        A line for each thing that was found: what was done about it, or that it is not for this function.
        Nothing if the folder is as a finished recording leaves it, or holds no dataset.

    Raises:
        InUseError: Another process is recording to it.
        OSError: The folder cannot be written.
    """
    root = Path(root)
    if not (root / INFO_PATH).is_file():
        return []
    lock.check_free(root)
    try:
        info = load_info(root)
        rows = read_episodes(root)
        data = {path: pq.read_metadata(path).num_rows for path in sorted((root / "data").glob("*/*.parquet"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{root}: a table cannot be read ({error}); {REPAIR.format(root=root)}."]
    refused = _foreign(root, info, rows, data)
    if refused:
        return [f"{root}: {refused}; {REPAIR.format(root=root)}."]
    lines = []
    if len(rows) > info.total_episodes:
        lines.append(_roll_forward(root, info, rows))
    lines += _drop_rows(root, info, data)
    lines += _drop_videos(root, info, rows)
    lines += _drop_temporary(root, info)
    lines += _drop_own(root, info.total_episodes)
    return lines


def _foreign(root: Path, info: DatasetInfo, rows: Sequence[dict], data: dict[Path, int]) -> str | None:
    """Why the folder is not one that our writer left; None if it is."""
    if not info.total_episodes <= len(rows) <= info.total_episodes + 1:
        return f"meta/info.json states {info.total_episodes} episodes, meta/episodes has {len(rows)}"
    if [row["episode_index"] for row in rows] != list(range(len(rows))):
        return "the episodes in meta/episodes are not numbered one after the other"
    frames = rows[info.total_episodes - 1]["dataset_to_index"] if info.total_episodes else 0
    if frames != info.total_frames:
        return f"meta/info.json states {info.total_frames} frames, meta/episodes {frames}"
    frames = rows[-1]["dataset_to_index"] if rows else 0
    if sum(data.values()) < frames:
        return f"{frames} frames belong to episodes, the tables in data hold {sum(data.values())}"
    for key in _video_keys(info):
        for row in rows[info.total_episodes :]:
            path = root / _video_path(info, key, *place_of(row, key))
            if not path.is_file():
                return f"{path} is missing"
    return None


def _roll_forward(root: Path, info: DatasetInfo, rows: Sequence[dict]) -> str:
    """The last episode is whole; only the totals do not count it yet. They are written last, the statistics before."""
    from lerobot.datasets.io_utils import load_tasks

    last = rows[-1]
    _count_statistics(root, last["dataset_to_index"])
    info.total_episodes, info.total_frames = len(rows), last["dataset_to_index"]
    info.total_tasks = len(load_tasks(root))
    info.splits = {"train": f"0:{info.total_episodes}"}
    replace_json(root / INFO_PATH, info.to_dict())
    return (
        f"episode {last['episode_index']} ({last['length']} frames) was on disk but not counted yet: kept, "
        f"there are {info.total_episodes} episodes now"
    )


def _count_statistics(root: Path, frames: int) -> None:
    """Make meta/stats.json those of all rows of `meta/episodes`, unless it counts `frames` frames already."""
    stats = load_stats(root)
    if stats is not None and int(stats.get("timestamp", {}).get("count", [-1])[0]) == frames:
        return
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.io_utils import cast_stats_to_numpy
    from lerobot.utils.utils import unflatten_dict

    each = []
    for path in episode_files(root):
        names = [name for name in pq.read_schema(path).names if name.startswith("stats/")]
        for row in pq.ParquetFile(path).read(columns=names).to_pylist():
            found = {name: value for name, value in row.items() if value is not None}
            each.append(cast_stats_to_numpy(unflatten_dict(found)["stats"]))
    write_stats(aggregate_stats(each), root)


def _drop_rows(root: Path, info: DatasetInfo, data: dict[Path, int]) -> list[str]:
    """Cut rows beyond the saved episodes off the last data file."""
    extra = sum(data.values()) - info.total_frames
    if extra <= 0:
        return []
    path, num_rows = list(data.items())[-1]
    episodes = pq.ParquetFile(path).read(columns=["episode_index"]).column(0).to_pylist()
    if extra > num_rows or set(episodes[-extra:]) != {info.total_episodes}:
        return [
            f"{root}: the tables in data hold {extra} rows more than the {info.total_episodes} saved episodes, and "
            f"they are not those of episode {info.total_episodes}; {REPAIR.format(root=root)}."
        ]
    if num_rows == extra:
        remove(path)
    else:
        with replacing(path) as temp:
            tables.keep_rows(path, num_rows - extra, temp)
    return [f"episode {info.total_episodes} was being saved: dropped ({extra} rows of its table removed)"]


def _drop_videos(root: Path, info: DatasetInfo, rows: Sequence[dict]) -> list[str]:
    """Remove videos no episode refers to: of an episode that was not saved, or joined ones not in use yet or any more."""
    lines = []
    for key in _video_keys(info):
        folder = root / "videos" / key
        loose = [
            path
            for path in folder.glob("chunk-*")
            if (number := _NUMBER.search(path.name)) and int(number[1]) >= LOOSE_CHUNK
        ]
        if not loose:  # our writer was not at work here
            continue
        used = {root / _video_path(info, key, *place_of(row, key)) for row in rows}
        unused = sorted(path for path in folder.glob("chunk-*/*.mp4") if path not in used)
        size = sum(remove(path) for path in unused)
        if unused:
            lines.append(f"{key}: removed {len(unused)} videos that belong to no episode ({megabytes(size)})")
        for path in loose:
            if not any(path.iterdir()):
                path.rmdir()
    return lines


def temp_folders(root: Path) -> list[Path]:
    """Folders directly in `root` that an encoder made for an episode's videos."""
    return sorted(
        path
        for path in root.glob("tmp*")
        if _TEMP_FOLDER.fullmatch(path.name)
        and path.is_dir()
        and all(file.suffix == ".mp4" for file in path.iterdir())
    )


def _drop_temporary(root: Path, info: DatasetInfo) -> list[str]:
    """Remove temporary files, and the pictures of the episode that was in progress."""
    pictures = [
        path
        for path in (root / "images").glob("*/episode-*")
        if (number := _NUMBER.search(path.name)) and int(number[1]) >= info.total_episodes
    ]
    encoders = temp_folders(root)
    size = sum(remove(path) for path in (*pictures, *encoders))
    for path in temp_files(root):
        size += remove(path)
    for path in sorted((root / "images").glob("*")):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if (root / "images").is_dir() and not any((root / "images").iterdir()):
        (root / "images").rmdir()
    if not (pictures or encoders):
        return [f"removed temporary files ({megabytes(size)})"] if size else []
    return [
        f"episode {info.total_episodes} was in progress when the recording ended: dropped "
        f"({megabytes(size)} of temporary files removed)"
    ]


def _drop_own(root: Path, num_episodes: int) -> list[str]:
    """Remove what our own files say of episodes that do not exist."""
    lines = []
    path = root / OWN_FOLDER / "episodes.jsonl"
    if path.is_file():
        kept, dropped = [], 0
        for line in path.read_bytes().splitlines(keepends=True):
            if _episode_of(line) < num_episodes:
                kept.append(line)
            else:
                dropped += 1
        if dropped:
            replace_bytes(path, b"".join(kept))
            lines.append(f"{path.name}: removed {dropped} lines of episodes that do not exist")
    for path in sorted((root / OWN_FOLDER / "frames").glob("episode_*.parquet")):
        if (number := _NUMBER.search(path.stem)) and int(number[1]) >= num_episodes:
            remove(path)
            lines.append(f"removed {path.name}, whose episode does not exist")
    return lines


def _episode_of(line: bytes) -> float:
    """The episode that a line of episodes.jsonl is about; infinite for one that was cut off."""
    try:
        return int(json.loads(line)["episode"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _video_keys(info: DatasetInfo) -> list[str]:
    return [key for key, feature in info.features.items() if feature["dtype"] == "video"]


def _video_path(info: DatasetInfo, key: str, chunk: int, file: int) -> str:
    return str(info.video_path).format(video_key=key, chunk_index=chunk, file_index=file)


def logged(root: Path) -> None:
    """`recover`, with its lines in the log."""
    for line in recover(Path(root)):
        logger.warning("%s: %s", root, line)


def check_resumable(root: Path) -> None:
    """Say so where there is nothing to go on with, instead of looking for it on the hub.

    Raises:
        FileNotFoundError: `root` exists and holds something, but no dataset.
    """
    root = Path(root)
    if root.is_dir() and any(root.iterdir()) and not (root / INFO_PATH).is_file():
        raise FileNotFoundError(
            f"{root} exists but holds no dataset to go on with ({INFO_PATH} is missing: the recording ended before "
            "it began); remove the folder, and record without resume."
        )
