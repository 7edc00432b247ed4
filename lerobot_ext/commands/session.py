"""What `record` and `evaluate` have in common: checks before the first episode, and the table after the last.

Both know a session: the episodes that one run of the command adds to a dataset.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lerobot_ext.arms import camera_sections
from lerobot_ext.errors import UserError
from lerobot_ext.recording import disk, episodes, tips
from lerobot_ext.recording.recover import recover
from lerobot_ext.recording.summary import render, summarize
from lerobot_ext.recording.taring import PATIENCE_S, taring

logger = logging.getLogger(__name__)

BAG_CAMERA = "realsense_rgbd"


@dataclass(frozen=True)
class Extras:
    """The options that are ours; LeRobot's parser must not see them.

    Attributes:
        bags: Write a .bag of each RealSense beside the dataset.
        tare_patience_s: How long a touched sensor is waited for.
    """

    bags: bool = False
    tare_patience_s: float = PATIENCE_S


def take_extras(argv: list[str]) -> tuple[list[str], Extras]:
    """Take our own options out of `argv`.

    Returns:
        The other words in their order, and what ours say.

    Raises:
        UserError: One of ours has a value that it cannot have.
    """
    rest: list[str] = []
    extras = Extras()
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key not in ("bags", "tare_patience_s"):
            rest.append(word)
            continue
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        extras = replace(extras, **{key: _bool(key, value) if key == "bags" else _seconds(key, value)})
    return rest, extras


def _bool(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"--{key} is '{value}'; expected true or false.")
    return value.lower() == "true"


def _seconds(key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"--{key} is '{value}'; expected a number of seconds, 0 or more.")
    return seconds


def prepare(robot: Any, dataset: Any, root: Path | None, resume: bool, extras: Extras) -> None:
    """What can be known before a device is touched: the folder, the disk, the bags.

    Args:
        robot: The robot's configuration; its cameras' gain `record_bag` where bags are wanted.
        dataset: The dataset's configuration.
        root: The dataset's folder, None if LeRobot chooses it.
        resume: Whether to go on with what is there. What a crash left is put in order first, and said.
        extras: Our options.

    Raises:
        DiskSpaceError, NotWritableError: There is no room for an episode, or no right to write.
        UserError: The bags have no camera or no place, or the dataset cannot hold the language tips.
    """
    if extras.bags:
        with_bags(camera_sections(robot), root)
    if root is None:
        return
    if resume:
        for line in recover(root):
            print(line)
        if tips.tips.plan is not None:
            tips.check_column(json.loads((root / "meta" / "info.json").read_text())["features"], root)
    disk.check_writable(root)
    features = features_of(robot)
    if features is None:
        return
    episode = disk.needed_bytes(features, dataset.fps, dataset.episode_time_s, dataset.streaming_encoding)
    disk.check_space(root, episode)
    free, whole = disk.free_bytes(root), episode * dataset.num_episodes
    numbers = (
        f"{disk.megabytes(free)} free where {root} goes, at most about {disk.megabytes(episode)} an episode, "
        f"{disk.megabytes(whole)} for all {dataset.num_episodes}"
    )
    if free < whole + disk.RESERVE_BYTES:
        logger.warning(
            "disk: %s: not enough if they are as large as they can be; the recording then stops cleanly",
            numbers,
        )
    else:
        print(f"disk: {numbers}")


def features_of(robot: Any) -> dict[str, dict] | None:
    """The dataset's features that a robot of this configuration gives; None if only the connected robot knows."""
    from lerobot.robots import make_robot_from_config
    from lerobot.utils.feature_utils import hw_to_dataset_features

    features = hw_to_dataset_features(make_robot_from_config(robot).observation_features, "observation")
    known = all(None not in feature["shape"] for feature in features.values())
    return features if known else None


def with_bags(sections: dict[str, dict[str, Any]], root: Path | None) -> None:
    """Let every RealSense write a .bag beside the dataset in `root`.

    Args:
        sections: The cameras' configurations by name, by prefix, as `arms.camera_sections` has them; changed.
        root: The dataset's folder, None if LeRobot chooses it.

    Raises:
        UserError: There is none, or the dataset's folder is not named.
    """
    found = [
        (prefix, name)
        for prefix, cameras in sections.items()
        for name, camera in cameras.items()
        if camera.type == BAG_CAMERA
    ]
    if not found:
        raise UserError(f"--bags=true: none of the robot's cameras is of type {BAG_CAMERA}; leave it out.")
    if root is None:
        raise UserError(
            "--bags=true: the bags go beside the dataset, so dataset.root must say where that is."
        )
    folder = root.with_name(f"{root.name}.bags")
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, name in found:
        number = 0
        while (path := folder / f"{prefix}{name}_{number}.bag").exists():
            number += 1
        sections[prefix][name] = replace(sections[prefix][name], record_bag=str(path))
        logger.info("camera '%s%s' is also written to %s", prefix, name, path)


@contextmanager
def session(root: Path | None, extras: Extras, again: str = "") -> Iterator[None]:
    """Around one recording: afterwards the table is printed, and a folder that got no episode is removed.

    Args:
        root: The dataset's folder, None if LeRobot chooses it.
        extras: Our options.
        again: The command that goes on with the dataset, shown when the recording was cut off.
    """
    existed = root is not None and root.exists()
    first = episode_count(root) if root is not None else 0
    seen: list[Path] = [] if root is None else [root]

    def remember(robot: object) -> None:
        dataset = episodes.current().dataset
        if dataset is not None and not seen:
            seen.append(Path(dataset.root))

    episodes.add_listener(episodes.EpisodeListener("session", on_start=remember, order=0))
    before, taring.patience_s = taring.patience_s, extras.tare_patience_s
    finished = False
    try:
        yield
        finished = True
    finally:
        taring.patience_s = before
        episodes.remove_listener("session")
        if root is not None and not existed:
            discard_if_empty(root)
        if seen and seen[0].exists():
            show(seen[0], first)
            if not finished and again:
                print(f"Every episode above is safe on disk. To go on: {again}")


def show(root: Path, first: int) -> None:
    """Print the table of the episodes from `first` on."""
    from rich.console import Console

    try:
        summary = summarize(root, first)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("no table of %s: %s", root, error)
        return
    sys.stderr.flush()  # the log's lines come before the table
    # Wide enough for its columns where the output is a file.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    console.print(render(summary))


def episode_count(root: Path) -> int:
    """Number of episodes that the dataset's info file states; 0 if there is none."""
    try:
        return int(json.loads((root / "meta" / "info.json").read_text())["total_episodes"])
    except (OSError, ValueError, KeyError):
        return 0


def discard_if_empty(root: Path) -> None:
    """Remove the folder of a recording that ended before its first episode was saved.

    Such a folder holds nothing, cannot be opened by LeRobot, and would be in the way of the next try.
    """
    # An episode can be there before info.json counts it, if the disk failed between the two.
    listed = any((root / "meta" / "episodes").rglob("*.parquet"))
    if root.exists() and episode_count(root) == 0 and not listed:
        shutil.rmtree(root)
        logger.info("no episode was saved; removed the empty dataset folder %s", root)
