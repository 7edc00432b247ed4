"""One episode of a dataset as plain arrays, for whoever draws it; draws nothing itself.

Curves come from the table at once; pictures are decoded one frame at a time, when asked for.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.errors import UserError
from lerobot_ext.features import OBS_FORCE, TIP

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

ATTEMPTS, PAUSE_S = 3, 0.3  # to open a dataset
REST_FRAMES = 5  # the start of an episode, before anything is touched
CONTACT_SHARE = 0.2  # contact: the force has reached this share of its peak


@dataclass(frozen=True)
class Curves:
    """Several numbers over the time of an episode: (frames, n) float32, one name a column."""

    names: tuple[str, ...]
    values: NDArray[np.float32]


def check_folder(root: Path) -> None:
    """Refuse a folder that is no finished dataset, before LeRobot looks for it on the hub.

    Raises:
        UserError: The folder is missing, is not a dataset, or is one that was not finished.
    """
    if not root.is_dir():
        raise UserError(
            f"there is no folder '{root}'; give the root of a dataset, as in --root=outputs/press."
        )
    info = root / "meta" / "info.json"
    if not info.is_file():
        raise UserError(f"'{root}' is not a LeRobot dataset: it has no {info.relative_to(root)}.")
    # LeRobot goes to the hub for what it does not find; a recording that was cut off is not to be looked for there.
    for part in ("meta/episodes", "data"):
        if not any((root / part).glob("**/*.parquet")):
            raise UserError(f"'{root}' is not a finished dataset: it has no Parquet file in {part}/.")


def open_dataset(root: str | Path, repo_id: str | None = None) -> LeRobotDataset:
    """A dataset that lies on this computer; the network is never asked.

    It may be one that is being recorded: what is saved by now can be read.

    Args:
        root: Its folder.
        repo_id: Its name; that of the folder if None.

    Raises:
        UserError: The folder is missing, is not a dataset, or is one that was not finished.
    """
    root = Path(root)
    check_folder(root)

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    for attempt in itertools.count(1):
        try:
            return LeRobotDataset(
                repo_id or root.resolve().name, root=root, return_uint8=True, video_backend="pyav"
            )
        except Exception as error:
            # A recording that goes on may replace a file between two that belong together.
            if attempt == ATTEMPTS:
                text = f"the dataset in '{root}' cannot be read: {type(error).__name__}: {error}"
                raise UserError(" ".join(text.split())) from error
            time.sleep(PAUSE_S)


class EpisodeView:
    """What there is to see in one episode.

    Args:
        dataset: Any LeRobotDataset that holds the episode.
        episode_index: Which one.

    Attributes:
        task: The task's text.
        tip: The language tip, "" for none.
        fps: Frames per second.
        times_s: (frames,) seconds from the episode's start.
        state: Joint state, or None; action and force likewise.
        color_keys: Features that are colour pictures; depth_keys those that are depth.

    Raises:
        UserError: There is no such episode; says which there are.
    """

    def __init__(self, dataset: LeRobotDataset, episode_index: int):
        table = dataset.hf_dataset
        episodes = _column(table, "episode_index")
        rows = np.flatnonzero(episodes == episode_index)
        saved = dataset.meta.total_episodes  # what is beyond is being saved
        if not len(rows) or not 0 <= episode_index < saved:
            there = np.unique(episodes[episodes < saved])
            listed = f"{there[0]} to {there[-1]}" if len(there) else "none"
            raise UserError(
                f"there is no episode {episode_index} in '{dataset.root}'; it has {len(there)}: {listed}."
            )
        self.dataset, self.index, self.fps = dataset, episode_index, dataset.fps
        self._rows = rows
        part = table.select(rows)
        self.times_s = _column(part, "timestamp").astype(np.float64)
        self.state = self._curves(part, "observation.state")
        self.action = self._curves(part, "action")
        self.force = self._curves(part, OBS_FORCE)
        depth = set(dataset.meta.depth_keys)
        self.color_keys = [key for key in dataset.meta.camera_keys if key not in depth]
        self.depth_keys = [key for key in dataset.meta.camera_keys if key in depth]
        tasks = dataset.meta.tasks
        self.task = str(tasks.iloc[int(_column(part, "task_index")[0])].name)
        self.tip = str(part[0][TIP] or "") if TIP in dataset.meta.features else ""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def told(self) -> str:
        """The task and, if there is one, its tip, for a heading."""
        return f"{self.task} · tip: {self.tip}" if self.tip else self.task

    def _curves(self, table, key: str) -> Curves | None:
        feature = self.dataset.meta.features.get(key)
        if feature is None:
            return None
        values = _column(table, key).reshape(len(table), -1).astype(np.float32)
        names = feature.get("names")
        if isinstance(names, dict):
            names = [name for part in names.values() for name in (part if isinstance(part, list) else [part])]
        if not names or len(names) != values.shape[1]:
            names = [f"{key}[{i}]" for i in range(values.shape[1])]
        return Curves(tuple(map(str, names)), values)

    def pictures(self, position: int) -> dict[str, NDArray]:
        """All pictures of one frame.

        Args:
            position: From 0, within the episode.

        Returns:
            Colour as (H, W, 3) uint8, depth as (H, W) float32 metres with NaN where it is unknown.
        """
        item = self.dataset[int(self._rows[position])]
        pictures: dict[str, NDArray] = {}
        for key in self.color_keys:
            image = np.moveaxis(np.asarray(item[key]), 0, -1)
            if image.dtype != np.uint8:
                image = (image * 255).round().astype(np.uint8)
            pictures[key] = np.ascontiguousarray(image)
        for key in self.depth_keys:
            metres = np.asarray(item[key], dtype=np.float32).squeeze()
            if self.dataset.depth_output_unit == "mm":
                metres = metres / 1000
            # The encoder has no code for "unknown": it becomes the smallest depth.
            info = self.dataset.meta.features[key].get("info") or {}
            nearest = float(info.get("video.depth_min") or 0.0)
            pictures[key] = np.where(metres <= nearest + 5e-4, np.nan, metres)
        return pictures

    def force_change(self) -> NDArray[np.float32] | None:
        """(frames, channels) how far each reading is from its rest at the episode's start.

        The rest is the mean of the first REST_FRAMES frames, so this is the same whether the sensor was tared or not.
        """
        return (
            None if self.force is None else self.force.values - self.force.values[:REST_FRAMES].mean(axis=0)
        )

    def force_norms(self) -> Curves | None:
        """The norm of each sensor's change since the episode's start."""
        change = self.force_change()
        if change is None:
            return None
        sensors = [name.partition(".")[0] for name in self.force.names]
        order = tuple(dict.fromkeys(sensors))
        norms = [np.linalg.norm(change[:, [s == sensor for s in sensors]], axis=1) for sensor in order]
        return Curves(order, np.stack(norms, axis=1))

    def key_frames(self, count: int = 5) -> list[tuple[int, str]]:
        """The frames worth a picture: position and what it shows, in the order of time.

        With force: the contact and the peak, and evenly spread ones besides; without: evenly spread ones.
        """
        last = len(self) - 1
        chosen = {round(last * i / max(count - 1, 1)): "" for i in range(count)}
        chosen[0], chosen[last] = "start", "end"
        norms = self.force_norms()
        if norms is not None and last > REST_FRAMES:
            # Sensors have different units: each is compared with its own noise at rest.
            noise = np.maximum(norms.values[:REST_FRAMES].mean(axis=0), 1e-9)
            norm = (norms.values / noise).max(axis=1)
            peak = int(norm.argmax())
            contact = int(np.argmax(norm >= CONTACT_SHARE * norm[peak]))
            for position, name in ((contact, "contact"), (peak, "peak force")):
                # A picture close by shows the same: the named one takes its place.
                near = [p for p in chosen if abs(p - position) <= last // (4 * count) and not chosen[p]]
                for other in near:
                    del chosen[other]
                chosen[position] = name if not chosen.get(position) else f"{chosen[position]}, {name}"
        return sorted(chosen.items())


def _column(table, key: str) -> NDArray:
    return np.asarray(table.select_columns([key]).with_format("numpy")[:][key])
