"""What page, PNG and Rerun recording of an episode share: pictures decoded once, scales, pads, charts and notes.

What is worth showing of the dataset is chosen in `episode`; how it is put together is the business of
`page`, `png` and `rerun`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_ext.features import OBS_FORCE
from lerobot_ext.recording import journal
from lerobot_ext.recording.provenance import devices
from lerobot_ext.recording.visualize.chart import PALETTE, Chart, Line
from lerobot_ext.recording.visualize.depth import DepthScale, choose_scale, shrink
from lerobot_ext.recording.visualize.episode import EpisodeView
from lerobot_ext.recording.visualize.force import UNKNOWN_UNIT, SensorView, sensors_of
from lerobot_ext.recording.visualize.pad import PadPicture, PadScale
from lerobot_ext.recording.visualize.strip import ABSENT, FrameReport, load_frames
from lerobot_ext.recording.visualize.telemetry import Telemetry, load_if_there, path_of

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

PICTURE_WIDTH = 320  # pixels of a key frame
FILM_WIDTH = 240  # pixels of a frame in the page's player
FORCE_SHOWN = ("both", "norms", "channels")
NORMS, CHANNELS = "norms", "channels"

Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Options:
    """What a reader may choose.

    Attributes:
        force: Which force curves are shown, one of FORCE_SHOWN.
        depth_range: See `depth.choose_scale`.
        film: Pictures of each camera in the page's player, spread evenly; 0 for none.
    """

    force: str = "both"
    depth_range: str | tuple[float, float] = "auto"
    film: int = 0


@dataclass(frozen=True)
class Row:
    """One camera's key frames.

    Attributes:
        title: The camera.
        images: (H, W, 3) RGB; of depth (H, W) colour indices of the scale.
        scale: Of depth; None for colour.
    """

    title: str
    images: list[NDArray[np.uint8]]
    scale: DepthScale | None


@dataclass(frozen=True)
class PadEpisode:
    """A sensor that is a pad, over the episode.

    Attributes:
        sensor: The sensor.
        picture: Where everything is, at the scale of the episode.
        vectors: (frames, points, 3) tangential x, y and normal: the change since the episode's start.
        peak: The frame with the largest change.
    """

    sensor: SensorView
    picture: PadPicture
    vectors: NDArray[np.float32]
    peak: int


@dataclass(frozen=True)
class Panel:
    """A force chart: `kind` is NORMS or CHANNELS."""

    kind: str
    chart: Chart


@dataclass
class Film:
    """Frames for the page's player: positions in the episode, and by camera their pictures, as in Row."""

    positions: list[int]
    images: dict[str, list[NDArray[np.uint8]]] = field(default_factory=dict)


class EpisodePictures:
    """One episode, decoded once.

    Args:
        dataset: The dataset that holds the episode.
        episode_index: Which one.
        telemetry: Of the episode; None takes the file in the dataset's folder, if there is one.
        options: The reader's choice.
        progress: Wraps the positions of the frames that are decoded, to show how far it is.

    Attributes:
        keys: Key frames: position and what each shows.
        rows: Their pictures, one row a camera.
        film: Frames for the player.
        scales: By depth feature, its scale.
        sensors: The force sensors; pads those of them that are pads.
        report: Ages and drops of each frame, if they were recorded.

    Raises:
        UserError: There is no such episode.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        episode_index: int,
        telemetry: Telemetry | None = None,
        options: Options | None = None,
        progress: Progress = iter,
    ):
        self.options = options or Options()
        self.view = view = EpisodeView(dataset, episode_index)
        self.telemetry = telemetry or load_if_there(path_of(dataset.root, episode_index))
        self.report: FrameReport | None = load_frames(dataset.root, episode_index, len(view), view.fps)
        self.keys = view.key_frames()
        self._marks = [float(view.times_s[p]) for p, _ in self.keys]
        self.sensors: list[SensorView] = []
        if view.force is not None:
            record = next((r for r in journal.read(dataset.root) if r.episode == episode_index), None)
            info = dataset.meta.features[OBS_FORCE].get("info")
            known = devices(dataset.root, episode_index).get(OBS_FORCE) or info
            self.sensors = sensors_of(view.force.names, known, record)
        self.pads = [self._pad(sensor) for sensor in self.sensors if sensor.pad is not None]
        self.scales: dict[str, DepthScale] = {}
        self.rows, self.film = self._decode(progress)

    def _decode(self, progress: Progress) -> tuple[list[Row], Film]:
        view = self.view
        cameras = sorted(view.color_keys + view.depth_keys)
        keys = [position for position, _ in self.keys]
        count = min(self.options.film, len(view)) if cameras else 0
        film = Film(sorted({round(i * (len(view) - 1) / max(count - 1, 1)) for i in range(count)}))
        wanted = sorted({*keys, *film.positions}) if cameras else []
        frames: dict[int, dict[str, NDArray]] = {}
        for position in progress(wanted):
            width = PICTURE_WIDTH if position in keys else FILM_WIDTH
            frames[position] = {
                key: _shrink(image, width) if image.ndim == 3 else shrink(image, PICTURE_WIDTH)
                for key, image in view.pictures(position).items()
            }
        rows = []
        for key in cameras:
            name = name_of(key)
            if key in view.depth_keys:
                info = view.dataset.meta.features[key].get("info")
                scale = choose_scale([frame[key] for frame in frames.values()], info, self.options.depth_range)  # fmt: skip
                self.scales[key] = scale
                rows.append(Row(name, [scale.index(frames[p][key]) for p in keys], scale))
                film.images[name] = [shrink(scale.index(frames[p][key]), FILM_WIDTH) for p in film.positions]
            else:
                rows.append(Row(name, [frames[p][key] for p in keys], None))
                film.images[name] = [_shrink(frames[p][key], FILM_WIDTH) for p in film.positions]
        return rows, film

    def _pad(self, sensor: SensorView) -> PadEpisode:
        change = self.view.force_change()[:, list(sensor.columns)]
        vectors = sensor.pad.vectors(change)
        peak = int(np.linalg.norm(change, axis=1).argmax())
        return PadEpisode(sensor, PadPicture(sensor.pad, PadScale.of(vectors)), vectors, peak)

    @property
    def title(self) -> str:
        """Of page and picture."""
        return f"{self.view.dataset.repo_id} · episode {self.view.index}"

    def captions(self) -> list[str]:
        """Under each key frame: its time and what it shows."""
        return [f"{t:.2f} s{' · ' + name if name else ''}" for t, (_, name) in zip(self._marks, self.keys, strict=True)]  # fmt: skip

    def facts(self) -> str:
        """One line about the episode."""
        view = self.view
        return f"{len(view)} frames at {view.fps} fps, {view.times_s[-1] + 1 / view.fps:.1f} s"

    def report_line(self) -> str:
        """One line about ages and drops, or that nothing is known of them."""
        return self.report.sentence() if self.report is not None else ABSENT

    def force_notes(self) -> list[str]:
        """One line a sensor: its unit, and how it was tared."""
        return [
            f"{sensor.name} [{', '.join(unit or UNKNOWN_UNIT for unit, _ in sensor.groups())}]: "
            f"{'; '.join(sensor.notes())}"
            for sensor in self.sensors
        ]

    def force_panels(self) -> list[Panel]:
        """For each sensor, and each unit of it, the norm of the change and the channels; empty without force."""
        panels = []
        for sensor in self.sensors:
            change = self.view.force_change()[:, list(sensor.columns)]
            values = self.view.force.values[:, list(sensor.columns)]
            for unit, where in sensor.groups():
                text = f"{sensor.name} [{unit or UNKNOWN_UNIT}]"
                norm = Line("norm", np.linalg.norm(change[:, where], axis=1), PALETTE[0])
                lines = [
                    Line(sensor.channels[i], values[:, i], PALETTE[n % len(PALETTE)], n >= len(PALETTE))
                    for n, i in enumerate(where)
                ]
                panels += [
                    Panel(
                        NORMS, self._chart(f"{text}: norm of the change since the episode's start", [norm])
                    ),  # fmt: skip
                    Panel(CHANNELS, self._chart(f"{text}: channels as recorded", lines)),
                ]
        return panels

    def joint_charts(self) -> list[Chart]:
        """State and action of each joint, one chart a joint; the rest of a longer action apart."""
        state, action = self.view.state, self.view.action
        charts = []
        for kind, other in ((state, action), (action, state)):
            if kind is None:
                continue
            for i, name in enumerate(kind.names):
                pair = []
                for curves, color, dashed in ((state, PALETTE[0], False), (action, PALETTE[1], True)):
                    if curves is not None and name in curves.names:
                        values = curves.values[:, curves.names.index(name)]
                        pair.append(Line(name, values, color, dashed))
                if kind is state or other is None or name not in other.names:
                    charts.append(Chart(kind.names[i], self.view.times_s, pair, self._marks, legend=False))
        return charts

    def _chart(self, title: str, lines: list[Line]) -> Chart:
        return Chart(title, self.view.times_s, lines, self._marks, zero=True)


def name_of(key: str) -> str:
    """A camera's name, from its feature's key."""
    return key.removeprefix("observation.images.")


def _shrink(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    if image.shape[1] <= width:
        return image
    return cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), interpolation=cv2.INTER_AREA)  # fmt: skip
