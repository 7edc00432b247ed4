"""The journal of a recording: for each episode the sensors' baselines, ages, drops and retries, kept beside the data.

It listens to episodes and asks the robot for its `last_report` at every frame. What it keeps lies in
`meta/lerobot_ext/` of the dataset, where LeRobot does not look: `episodes.jsonl` has a line an episode,
`frames/episode_000000.parquet` a row a frame. Writing it never breaks a recording: an episode whose line is missing
is complete all the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lerobot_ext.features import OBS_FORCE
from lerobot_ext.recording import episodes
from lerobot_ext.recording.episodes import EpisodeListener, add_listener
from lerobot_ext.recording.provenance import devices
from lerobot_ext.recording.taring import taring

if TYPE_CHECKING:
    import pyarrow as pa
    from lerobot.datasets import LeRobotDataset
    from lerobot.robots import Robot

logger = logging.getLogger(__name__)

FOLDER = "meta/lerobot_ext"
EPISODES = f"{FOLDER}/episodes.jsonl"
FRAMES = FOLDER + "/frames/episode_{index:06d}.parquet"
LATE = 1.5  # periods between two frames

NO_BASELINE = (
    "episode {index} of {root}: the journal has no baseline of it, so raw values cannot be recovered; it was recorded "
    "without force sensors, without lerobot_ext, or cut off right after it was saved."
)
UNWRITTEN = "the journal of episode %d could not be written (%s); the episode itself is safe"
WRONG_WIDTH = "force has {found} numbers a frame, the journal's baseline of episode {index} has {expected}."


@dataclass(frozen=True)
class EpisodeRecord:
    """What the journal knows of one saved episode; empty where it knows nothing.

    Attributes:
        episode: Its index.
        frames: How many frames it has.
        late: How many of them came more than 1.5 periods after the one before.
        baseline: What was taken for zero at its start, in the sensor's raw units, by the sensor's name.
        drift: How far from zero the channel that moved most was at its end, in that channel's unit.
        counts: How much each of the robot's counts grew in it: `arm.retries`, `side.dropped`, `side.repeated`, …
        ages_ms: Mean age of each device's data at the moment of the joint read, in milliseconds.
        max_ages_ms: The largest of these.
        force_min: Smallest value of each of the sensor's channels, tared, by the sensor's name.
        force_max: Largest value, likewise.
        saved_at: When it was saved, ISO 8601 in UTC.
    """

    episode: int
    frames: int = 0
    late: int = 0
    baseline: dict[str, list[float]] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ages_ms: dict[str, float] = field(default_factory=dict)
    max_ages_ms: dict[str, float] = field(default_factory=dict)
    force_min: dict[str, list[float]] = field(default_factory=dict)
    force_max: dict[str, list[float]] = field(default_factory=dict)
    saved_at: str = ""


def read(root: str | Path) -> list[EpisodeRecord]:
    """What the journal of the dataset in `root` says, by episode; empty without a journal.

    A line that is cut off (the process died while writing it) is passed over; of two lines for one episode the later
    one counts.
    """
    path = Path(root) / EPISODES
    if not path.is_file():
        return []
    known = {each.name for each in fields(EpisodeRecord)}
    found: dict[int, EpisodeRecord] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            values = json.loads(line)
            record = EpisodeRecord(**{key: value for key, value in values.items() if key in known})
            found[int(record.episode)] = record
        except (ValueError, TypeError, AttributeError):
            logger.debug("%s: a line that cannot be read: %.80s", path, line)
    return [found[index] for index in sorted(found)]


def read_frames(root: str | Path, episode: int) -> pa.Table | None:
    """What the journal knows of each frame of one episode; None if nothing.

    Returns:
        A row a frame: `frame_index` int64; `period_ms` float32, the time since the frame before (nan for the first);
        `ages_ms.<device>` float32, nan where unknown; `new.<count>` int32, how much a count grew since the frame before.
    """
    import pyarrow.parquet as pq

    path = Path(root) / FRAMES.format(index=episode)
    return pq.read_table(path) if path.is_file() else None


def raw_force(root: str | Path, episode: int, force: ArrayLike) -> NDArray[np.float32]:
    """Recorded force with the episode's zero taken back: what the sensors said, untared.

    A baseline is in a sensor's raw units. Without a calibration, raw is force + baseline. With one, force is
    matrix (raw - baseline), and what comes back is matrix (raw - offset): untared, in calibrated units, by the matrix
    and offset that `provenance.devices` has. (A matrix that makes few forces of many numbers has no inverse.)

    Args:
        root: The dataset's folder.
        episode: Index of the episode that `force` is of.
        force: (n,) or (frames, n) values of `observation.force`.

    Returns:
        The same shape, float32.

    Raises:
        ValueError: The journal has no baseline of that episode, or one of another width.
    """
    force = np.asarray(force, dtype=np.float32)
    record = next((record for record in read(root) if record.episode == episode), None)
    if record is None or not record.baseline:
        raise ValueError(NO_BASELINE.format(index=episode, root=root))
    sensors = (devices(root, episode).get(OBS_FORCE) or {}).get("sensors") or {}
    zeros = [_zero(np.asarray(b, float), sensors.get(name) or {}) for name, b in record.baseline.items()]
    zero = np.concatenate(zeros).astype(np.float32)
    if force.shape[-1:] != zero.shape:
        raise ValueError(WRONG_WIDTH.format(found=force.shape[-1:], index=episode, expected=len(zero)))
    return force + zero


def _zero(baseline: NDArray[np.float64], sensor: dict[str, Any]) -> NDArray[np.float64]:
    """What taring took from each of a sensor's values."""
    if sensor.get("calibration") is None:
        return baseline
    return np.asarray(sensor["calibration_matrix"]) @ (baseline - np.asarray(sensor["calibration_offset"]))


class Journal:
    """Collects what happens in an episode and writes it down once the episode is safe.

    At a frame nothing is computed: the robot's report is kept as it is, with the time.
    """

    def __init__(self) -> None:
        """No episode is going on."""
        self._forget()

    def _forget(self) -> None:
        self._dataset: LeRobotDataset | None = None
        self._reports: list[Any] = []
        self._times: list[float] = []
        self._before: dict[str, int] = {}
        self._force: NDArray[np.float32] | None = None

    def start(self, robot: Robot) -> None:
        """An episode starts."""
        self._forget()
        self._dataset = episodes.current().dataset
        self._before = dict(getattr(getattr(robot, "last_report", None), "counts", {}))

    def frame(self, robot: Robot) -> None:
        """A frame was added."""
        self._times.append(time.perf_counter())
        self._reports.append(getattr(robot, "last_report", None))

    def end(self, robot: Robot) -> None:
        """The episode has ended; its frames are still in memory."""
        buffer = getattr(getattr(self._dataset, "writer", None), "episode_buffer", None) or {}
        self._force = np.array(buffer[OBS_FORCE], np.float32) if len(buffer.get(OBS_FORCE, ())) else None

    def saved(self, root: Path, index: int) -> None:
        """The episode is safe on disk: write down what is known of it."""
        from lerobot_ext.recording import files

        dataset, self._dataset = self._dataset, None
        if dataset is None or not self._times or Path(dataset.root) != Path(root):
            return
        table, record = self._table(), self._record(index, dataset)
        self._forget()
        try:
            files.replace_bytes(Path(root) / FRAMES.format(index=index), _parquet(table))
            files.append_line(Path(root) / EPISODES, json.dumps(asdict(record)))
        except OSError as error:
            logger.warning(UNWRITTEN, index, error)

    def discarded(self) -> None:
        """The episode's frames were thrown away."""
        self._forget()

    def _record(self, index: int, dataset: LeRobotDataset) -> EpisodeRecord:
        ages = {name: column[np.isfinite(column)] for name, column in self._ages().items()}
        lows, highs = _ranges(self._force, dataset.meta.features)
        return EpisodeRecord(
            episode=index,
            frames=len(self._times),
            late=int((np.diff(self._times) > LATE / dataset.fps).sum()),
            baseline={name: values.astype(float).tolist() for name, values in taring.baselines.items()},
            drift={name: round(float(amount), 5) for name, amount in taring.drifts.items()},
            counts={name: int(column.sum()) for name, column in self._growth().items()},
            ages_ms={name: round(float(column.mean()), 3) for name, column in ages.items() if len(column)},
            max_ages_ms={name: round(float(column.max()), 3) for name, column in ages.items() if len(column)},
            force_min=lows,
            force_max=highs,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _table(self) -> dict[str, NDArray]:
        periods = np.diff(self._times, prepend=np.nan) * 1e3
        columns = {"frame_index": np.arange(len(self._times)), "period_ms": periods.astype(np.float32)}
        columns |= {f"ages_ms.{name}": column for name, column in self._ages().items()}
        return columns | {f"new.{name}": column for name, column in self._growth().items()}

    def _ages(self) -> dict[str, NDArray[np.float32]]:
        names = _names(report.ages_ms for report in self._reports if report is not None)
        return {
            name: np.array(
                [np.nan if report is None else report.ages_ms.get(name, np.nan) for report in self._reports],
                np.float32,
            )
            for name in names
        }

    def _growth(self) -> dict[str, NDArray[np.int32]]:
        names = _names(report.counts for report in self._reports if report is not None)
        growth = {}
        for name in names:
            last = self._before.get(name, 0)
            column = np.zeros(len(self._reports), np.int32)
            for row, report in enumerate(self._reports):
                now = last if report is None else report.counts.get(name, last)
                column[row] = max(now - last, 0)
                last = now
            growth[name] = column
        return growth


journal = Journal()


def install() -> None:
    """Keep a journal of every recorded episode from now on."""
    add_listener(
        EpisodeListener(
            name="journal",
            on_start=journal.start,
            on_end=journal.end,
            on_frame=journal.frame,
            on_saved=journal.saved,
            on_discarded=journal.discarded,
            order=20,
        )
    )


def _names(dicts: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in dicts for name in each))


def _ranges(
    force: NDArray[np.float32] | None, features: dict[str, dict]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Smallest and largest value of each channel, by the sensor's name."""
    if force is None:
        return {}, {}
    lows: dict[str, list[float]] = {}
    highs: dict[str, list[float]] = {}
    for column, name in enumerate(features[OBS_FORCE]["names"]):
        sensor = name.partition(".")[0]
        lows.setdefault(sensor, []).append(round(float(force[:, column].min()), 4))
        highs.setdefault(sensor, []).append(round(float(force[:, column].max()), 4))
    return lows, highs


def _parquet(columns: dict[str, NDArray]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()
