"""The end of a recording in a table: how many frames, how many late, dropped or repeated, how old, how much force.

It reads what the dataset's folder says (LeRobot's metadata and the `journal`), so it can be made of any recording at
any time. Nothing is printed here.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_ext.features import OBS_FORCE
from lerobot_ext.recording import journal, tips
from lerobot_ext.recording.journal import EpisodeRecord

if TYPE_CHECKING:
    from rich.console import RenderableType

FEW = 20  # episodes that get a line each
UNKNOWN = "-"
RECEIVED = "received"
# Counts that have their row even when nothing happened, and what the row is called.
ALWAYS = {"dropped": "dropped", "repeated": "repeated", "retries": "bus retries"}


@dataclass(frozen=True)
class Summary:
    """What there is to say of the episodes of a dataset from one on.

    Attributes:
        root: The dataset's folder.
        fps: Its frames per second.
        lengths: Frames of each of these episodes, by its index.
        records: What the journal knows of them, by index; one may be missing.
        tips: Language tip of each of these episodes, by its index; empty for a dataset without tips.
        total_episodes: Episodes in the dataset, with those before.
        units: Unit of each force sensor, by its name, where it is known.
        size_bytes: Of everything in the folder.
        free_bytes: On its disk.
    """

    root: Path
    fps: int
    lengths: dict[int, int]
    records: dict[int, EpisodeRecord] = field(default_factory=dict)
    tips: dict[int, str] = field(default_factory=dict)
    total_episodes: int = 0
    units: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    free_bytes: int = 0

    @property
    def frames(self) -> int:
        """Frames of these episodes."""
        return sum(self.lengths.values())

    def counts(self, name: str) -> dict[str, int]:
        """The count `name` (`dropped`, `repeated`, …) over these episodes, by device; `{}` if nobody counts it."""
        found: dict[str, int] = {}
        for record in self.records.values():
            for full, number in record.counts.items():
                device, _, count = full.rpartition(".")
                if count == name:
                    found[device] = found.get(device, 0) + number
        return found

    def count_names(self) -> list[str]:
        """Every count of what went wrong, without the device's name."""
        full = (name for record in self.records.values() for name in record.counts)
        found = dict.fromkeys(name.rpartition(".")[2] for name in full)
        first = [name for name in ALWAYS if name in found]
        return first + [name for name in found if name not in (*ALWAYS, RECEIVED)]

    def ages_ms(self) -> dict[str, tuple[float, float]]:
        """Mean and largest age of each device's data over these episodes, in milliseconds."""
        found = {}
        for device in dict.fromkeys(name for record in self.records.values() for name in record.ages_ms):
            known = [record for record in self.records.values() if device in record.ages_ms]
            frames = sum(record.frames for record in known)
            mean = sum(record.ages_ms[device] * record.frames for record in known) / max(frames, 1)
            largest = max(record.max_ages_ms.get(device, record.ages_ms[device]) for record in known)
            found[device] = (mean, largest)
        return found

    def force(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of any channel of each sensor over these episodes, tared."""
        return _force(self.records.values())


def summarize(root: str | Path, first: int = 0) -> Summary:
    """Read what there is to say of the episodes from `first` on.

    Raises:
        OSError, ValueError, KeyError: There is no readable dataset in `root`.
    """
    root = Path(root)
    info = json.loads((root / "meta" / "info.json").read_text())
    sensors = ((info["features"].get(OBS_FORCE) or {}).get("info") or {}).get("sensors") or {}
    return Summary(
        root=root,
        fps=info["fps"],
        lengths={index: length for index, length in _lengths(root).items() if index >= first},
        records={record.episode: record for record in journal.read(root) if record.episode >= first},
        tips={index: tip for index, tip in tips.read(root).items() if index >= first},
        total_episodes=info["total_episodes"],
        units={name: _unit(sensor.get("unit")) for name, sensor in sensors.items()},
        size_bytes=sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
        free_bytes=shutil.disk_usage(root).free,
    )


def render(summary: Summary) -> RenderableType:
    """The summary as a table, with a line an episode where there are few."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    whole = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    whole.add_column(style="bold")
    whole.add_column(overflow="fold")
    for name, text in _rows(summary):
        whole.add_row(name, Text(text))
    parts: list[RenderableType] = [whole]
    if 0 < len(summary.lengths) <= FEW:
        each = Table(box=box.SIMPLE, pad_edge=False)
        columns = _columns(summary)
        for name in ("episode", "frames", *columns):
            each.add_column(name, justify="right")
        if summary.tips:
            each.add_column("language tip", overflow="fold", min_width=12)
        for index, length in summary.lengths.items():
            record = summary.records.get(index)
            cells = [UNKNOWN if record is None else cell(record) for cell in columns.values()]
            tip = [Text(summary.tips.get(index) or UNKNOWN)] if summary.tips else []
            each.add_row(str(index), str(length), *cells, *tip)
        parts.append(each)
    return Group(*parts)


def _rows(summary: Summary) -> Iterable[tuple[str, str]]:
    new = len(summary.lengths)
    before = summary.total_episodes - new
    yield "episodes", f"{new}" + (f" (and {before} from before)" if before else "")
    yield "frames", f"{summary.frames} ({summary.frames / summary.fps:.1f} s at {summary.fps} fps)"
    if summary.tips:
        numbers = Counter(summary.tips.values())
        yield "language tips", ", ".join(f"{tips.shown(tip)} {count}" for tip, count in numbers.items())
    if summary.records:
        known = sum(record.frames for record in summary.records.values())
        late = sum(record.late for record in summary.records.values())
        yield "late frames", f"{late} ({100 * late / max(known, 1):.2f} %)"
    for name in summary.count_names():
        counts = summary.counts(name)
        if name in ALWAYS or any(counts.values()):
            yield ALWAYS.get(name, name), _by_device(counts)
    ages = summary.ages_ms()
    if ages:
        texts = (f"{device} {mean:.0f} ms (at most {most:.0f})" for device, (mean, most) in ages.items())
        yield "mean ages", ", ".join(texts)
    for sensor, (low, high) in summary.force().items():
        yield f"force {sensor}", f"{low:.1f} to {high:.1f} {summary.units.get(sensor, '')}".rstrip()
    without = [index for index in summary.lengths if index not in summary.records]
    if without and summary.records:
        yield (
            "no journal",
            f"of episodes {', '.join(map(str, without[:10]))}{', …' if len(without) > 10 else ''}",
        )
    yield "on disk", f"{_size(summary.size_bytes)}, {_size(summary.free_bytes)} free"
    yield "where", str(summary.root)


def _columns(summary: Summary) -> dict[str, Callable[[EpisodeRecord], str]]:
    """What the lines of the episodes show of the journal, by the column's name."""
    if not summary.records:
        return {}
    columns: dict[str, Callable[[EpisodeRecord], str]] = {"late": lambda record: str(record.late)}
    for name in summary.count_names():
        if any(summary.counts(name).values()):
            columns[name] = lambda record, name=name: str(
                sum(number for full, number in record.counts.items() if full.rpartition(".")[2] == name)
            )
    for device in summary.ages_ms():
        columns[f"{device} ms"] = lambda record, device=device: _number(record.ages_ms.get(device))
    for sensor in summary.force():
        columns[f"{sensor} max"] = lambda record, sensor=sensor: _number(
            max(map(abs, _force([record]).get(sensor, ())), default=None)
        )
    if any(record.drift for record in summary.records.values()):
        columns["drift"] = lambda record: _number(max(map(abs, record.drift.values()), default=None))
    return columns


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _force(records: Iterable[EpisodeRecord]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for record in records:
        for sensor, lows in record.force_min.items():
            low, high = found.get(sensor, (float("inf"), float("-inf")))
            found[sensor] = (min(low, *lows), max(high, *record.force_max[sensor]))
    return found


def _by_device(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    if not total:
        return "0"
    return f"{total} ({', '.join(f'{device} {number}' for device, number in counts.items() if number)})"


def _unit(unit: str | list[str] | None) -> str:
    return ", ".join(dict.fromkeys(unit)) if isinstance(unit, list) else unit or ""


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _lengths(root: Path) -> dict[int, int]:
    """Frames of each saved episode, by its index."""
    import pyarrow.parquet as pq

    found: dict[int, int] = {}
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        table = pq.read_table(path, columns=["episode_index", "length"])
        found |= dict(zip(*(table[name].to_pylist() for name in ("episode_index", "length")), strict=True))
    return dict(sorted(found.items()))
