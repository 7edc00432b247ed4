"""A dataset as the robot that it was recorded with: which observations and actions there were, and their values.

Any LeRobot dataset, on this computer or from the hub. When a frame is shown is not decided here; see `replay`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE, OBS_STR
from numpy.typing import NDArray

from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP, VectorFeature

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    from lerobot_ext.robots.config_replay import ReplayRobotConfig

logger = logging.getLogger(__name__)

ENDINGS = (".pos", ".vel")  # of the joints that LeRobot's rollout knows
MM = "mm"


@dataclass(frozen=True)
class RecordedFeatures:
    """What the robot of a dataset had, in LeRobot's words for robots.

    Attributes:
        observation: As `Robot.observation_features`: joints, cameras, depth maps, vectors such as force.
        action: As `Robot.action_features`.
        state: The joints' entries, in the order of `observation.state`.
        vectors: Entry and dataset key of each vector.
        pictures: Entry and dataset key of each camera and depth map.
    """

    observation: dict[str, type | tuple]
    action: dict[str, type]
    state: tuple[str, ...]
    vectors: dict[str, str]
    pictures: dict[str, str]

    @classmethod
    def of(cls, meta: LeRobotDatasetMetadata) -> RecordedFeatures:
        """From a dataset's metadata.

        Joints that were recorded without the ending `.pos` or `.vel`, which LeRobot's rollout needs, get `.pos`.

        Raises:
            UserError: The dataset has no action, or no observation, or a picture of unknown size.
        """
        from lerobot_ext.modality.plan import DEPTH, RGB, kind_of, names_of, shape_of

        features, root = meta.features, meta.root
        if ACTION not in features:
            raise UserError(
                f"'{root}' has no {ACTION}, so there is no robot to play; it has: {_listed(features)}."
            )
        state = tuple(_joint(name) for name in names_of(features[OBS_STATE])) if OBS_STATE in features else ()
        observation: dict[str, type | tuple] = dict.fromkeys(state, float)
        vectors, pictures = {}, {}
        for key, feature in features.items():
            if not key.startswith(f"{OBS_STR}.") or key == OBS_STATE:
                continue
            name = key.removeprefix(f"{OBS_IMAGES}.").removeprefix(f"{OBS_STR}.")
            if kind_of(key, feature) in (RGB, DEPTH):
                height, width, channels = shape_of(feature)
                observation[name] = (height, width, 1 if kind_of(key, feature) == DEPTH else channels)
                pictures[name] = key
            elif feature["dtype"] == "float32" and len(feature["shape"]) == 1:
                observation[name] = VectorFeature(names_of(feature))
                vectors[name] = key
            else:
                logger.warning("%s (%s) is not played: no robot gives such a feature", key, feature["dtype"])
        if not observation:
            raise UserError(f"'{root}' has no observation that can be played; it has: {_listed(features)}.")
        action = {_joint(name): float for name in names_of(features[ACTION])}
        return cls(observation, action, state, vectors, pictures)


def metadata(root: str | None, repo_id: str | None) -> LeRobotDatasetMetadata:
    """The metadata of a dataset; the network is asked only for one that has no `root`.

    Raises:
        UserError: It is not there, or not a dataset, or not a finished one.
    """
    from lerobot_ext.recording.visualize.episode import check_folder

    stamp = None
    if root is not None:
        check_folder(Path(root))
        stamp = (Path(root) / "meta" / "info.json").stat().st_mtime_ns
    return _metadata(root, repo_id, stamp)


@lru_cache(maxsize=4)  # a command makes its robot several times, and each wants to know its features
def _metadata(root: str | None, repo_id: str | None, stamp: int | None) -> LeRobotDatasetMetadata:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    try:
        return LeRobotDatasetMetadata(repo_id or Path(root).resolve().name, root=root)
    except Exception as error:
        raise _unreadable(root, repo_id, error) from error


def check_episodes(meta: LeRobotDatasetMetadata, config: ReplayRobotConfig) -> None:
    """Refuse episodes that the dataset does not have, whose files are not there, or that end before `start_frame`.

    Raises:
        UserError: Says which there are, which file is missing, or how long the episode is.
    """
    for episode in config.episodes:
        if episode >= meta.total_episodes:
            there = f"0 to {meta.total_episodes - 1}" if meta.total_episodes else "none"
            raise UserError(
                f"robot.episode: there is no episode {episode} in '{meta.root}'; it has {meta.total_episodes}: {there}."
            )
        length = int(meta.episodes[episode]["length"])
        if config.start_frame >= length:
            raise UserError(
                f"robot.start_frame is {config.start_frame}, but episode {episode} of '{meta.root}' has {length} frames."
            )
        if config.root is not None:
            _check_files(meta, episode)


def _check_files(meta: LeRobotDatasetMetadata, episode: int) -> None:
    """LeRobot looks on the hub for a dataset of which a file is missing here; it may have no such name there."""
    files = [meta.get_data_file_path(episode)]
    files += [meta.get_video_file_path(episode, key) for key in meta.video_keys]
    missing = next((file for file in files if not (meta.root / file).is_file()), None)
    if missing is not None:
        raise UserError(
            f"episode {episode} of '{meta.root}' is not whole: there is no {missing}; copy the dataset again with all its "
            "files, or give robot.repo_id in place of robot.root if it is on the hub."
        )


class Recording:
    """Episodes of a dataset, opened: numbers at once, pictures when asked for.

    Args:
        meta: Of the dataset.
        root: As configured.
        repo_id: As configured.
        episodes: Which are read.

    Attributes:
        features: Of the robot.
        fps: Frames a second.
        times_s: (rows,) seconds from the start of the row's episode.

    Raises:
        UserError: The table cannot be read, or a stream has no unit.
    """

    def __init__(
        self, meta: LeRobotDatasetMetadata, root: str | None, repo_id: str | None, episodes: Sequence[int]
    ) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        from lerobot_ext.modality.plan import Use, kind_of
        from lerobot_ext.modality.reader import TableReader
        from lerobot_ext.modality.selection import Selection

        self.features, self.fps = RecordedFeatures.of(meta), float(meta.fps)
        self._meta = meta
        try:
            dataset = LeRobotDataset(
                meta.repo_id,
                root=root,
                episodes=sorted(set(episodes)),
                return_uint8=True,
                video_backend="pyav",
                download_videos=bool(self.features.pictures),
            )
            _ = dataset.hf_dataset
        except Exception as error:
            raise _unreadable(root, repo_id, error) from error
        everything = [
            Use(key, kind_of(key, each), each, True, "played") for key, each in meta.features.items()
        ]
        self._reader = TableReader.restrict(dataset.reader, meta, everything, Selection())
        self._reader.load()
        column = self._reader.column
        self.times_s = column("timestamp").reshape(-1).astype(np.float64)
        self._actions = column(ACTION).reshape(len(self.times_s), -1)
        self._state = column(OBS_STATE).reshape(len(self.times_s), -1) if self.features.state else None
        self._vectors = {name: column(key) for name, key in self.features.vectors.items()}
        self._units = {
            name: (meta.features[key].get("info") or {}).get("depth_unit") or MM
            for name, key in self.features.pictures.items()
            if self.features.observation[name][-1] == 1
        }

    def rows(self, episode: int) -> range:
        """The rows of an episode."""
        return self._reader.rows(episode)

    def told(self, episode: int) -> tuple[str, str]:
        """Task and language tip ("" for none) of an episode."""
        row = self._reader.numbers(self.rows(episode).start)
        return str(row["task"]), str(row.get(TIP) or "")

    def actions(self, names: Sequence[str]) -> NDArray[np.float32]:
        """(rows, n) recorded actions, in the order of `names`.

        Raises:
            UserError: One of them was not recorded.
        """
        there = list(self.features.action)
        for name in names:
            if name not in there:
                raise UserError(f"the action '{name}' was not recorded; there are: {_listed(there)}.")
        return self._actions[:, [there.index(name) for name in names]]

    def numbers(self, row: int) -> dict[str, Any]:
        """Joints as float and vectors as (n,) float32 of one row."""
        observation: dict[str, Any] = {}
        if self._state is not None:
            observation |= zip(self.features.state, self._state[row].tolist(), strict=True)
        for name, values in self._vectors.items():
            observation[name] = values[row].reshape(-1).astype(np.float32)
        return observation

    def picture_bytes(self) -> int:
        """Size of the pictures of one frame."""
        shapes = (self.features.observation[name] for name in self.features.pictures)
        return sum(int(np.prod(shape)) * (4 if shape[-1] == 1 else 1) for shape in shapes)

    def pictures(self, episode: int, rows: Sequence[int]) -> list[dict[str, NDArray]]:
        """The pictures of some rows of an episode.

        Returns:
            A dict for each row: colour (H, W, 3) uint8; depth (H, W, 1) in the recorded unit, uint16 millimetres or
            float32 metres, 0 where there was no measurement (the nearest depth that the recording can hold says so).
        """
        keys = self.features.pictures
        frames = self._reader.recorded(list(keys.values()), episode, rows)
        by_name = {name: self._as_given(name, frames[key]) for name, key in keys.items()}
        return [{name: each[i] for name, each in by_name.items()} for i in range(len(rows))]

    def _as_given(self, name: str, frames: NDArray) -> NDArray:
        if name not in self._units:
            if frames.dtype != np.uint8:
                frames = (frames * 255).round().astype(np.uint8)
            return np.ascontiguousarray(frames)
        if self._units[name] != MM:
            return frames.astype(np.float32)
        return (frames * 1000.0).round().clip(0, np.iinfo(np.uint16).max).astype(np.uint16)


def _joint(name: str) -> str:
    return name if name.endswith(ENDINGS) else f"{name}{ENDINGS[0]}"


def _unreadable(root: str | None, repo_id: str | None, error: Exception) -> UserError:
    where = f"in '{root}'" if root is not None else f"'{repo_id}' (from the hub)"
    text = f"the dataset {where} cannot be read: {type(error).__name__}: {error}"
    return UserError(" ".join(text.split()))


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
