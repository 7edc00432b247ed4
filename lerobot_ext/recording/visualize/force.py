"""The force sensors of an episode: which columns are whose, in which unit, tared by how much, and where a pad has its points.

Read from the dataset's feature `observation.force`, from what was recorded about its sensors, and from the
recording's journal. All of that may be missing; then the names of the columns are all that is known. Draws nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lerobot_ext.recording.journal import EpisodeRecord

UNKNOWN_UNIT = "unit unknown"
_POINT = re.compile(r"^m(\d+)_([xyz])$")
_PRETTY = {"uT": "µT", "ut": "µT"}


@dataclass(frozen=True)
class Pad:
    """Points of a tactile pad.

    Attributes:
        positions_mm: (points, 2), x to the right, y up.
        columns: (points, 3) columns of the sensor's samples for tangential x, tangential y and normal; -1: none.
        axes: (points, 2, 2) what turns a point's tangential x and y into the pad's.
        assumed: Whether the recording does not say where the points are.
    """

    positions_mm: NDArray[np.float64]
    columns: NDArray[np.int64]
    axes: NDArray[np.float64]
    assumed: bool = False

    def vectors(self, samples: NDArray) -> NDArray[np.float32]:
        """(..., channels) samples to (..., points, 3): tangential x, y and normal; 0 where there is no channel."""
        found = np.asarray(samples, np.float32)[..., self.columns.clip(0)]
        found = np.where(self.columns >= 0, found, 0)
        turned = (self.axes @ found[..., :2, None])[..., 0]
        return np.concatenate([turned, found[..., 2:]], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class SensorView:
    """One force sensor.

    Attributes:
        name: As configured.
        columns: Its columns of `observation.force`.
        channels: Their names without the sensor's.
        units: The unit of each; empty if unknown.
        metadata: What was recorded about it.
        baseline: What was subtracted from its raw samples in this episode, in raw units; None if unknown.
        drift: How far the zero of the channel that moved most was off at the episode's end, or None if unknown.
        pad: Where its points are, or None if it is not a pad.
    """

    name: str
    columns: tuple[int, ...]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    metadata: Mapping[str, Any]
    baseline: tuple[float, ...] | None = None
    drift: float | None = None
    pad: Pad | None = None

    def groups(self) -> list[tuple[str, list[int]]]:
        """Channels that share a unit, which is what can share an axis: (unit, positions among `channels`)."""
        order = dict.fromkeys(self.units)
        return [(unit, [i for i, u in enumerate(self.units) if u == unit]) for unit in order]

    @property
    def unit(self) -> str:
        """The unit of the first channel, in words if unknown."""
        return (self.units[0] if self.units else "") or UNKNOWN_UNIT

    def notes(self) -> list[str]:
        """What the reader should know: how it was tared, how far it drifted, where points are assumed."""
        notes = []
        if self.baseline is not None:
            names, units = self._raw()
            # A unit that all share is said once.
            shared = f" {units[0]}" if len(set(units)) == 1 and units[0] else ""
            values = ", ".join(
                f"{name} {value:.4g}" + (f" {unit}" if unit and not shared else "")
                for name, value, unit in zip(names, self.baseline, units, strict=True)
            )
            notes.append(f"tared at the episode's start; subtracted{shared}: {values}")
        else:
            notes.append("baseline not recorded: whether and by how much it was tared is unknown")
        if self.drift is not None:
            unit = f" {self.units[0]}" if len(set(self.units)) == 1 and self.units[0] else ""
            notes.append(f"zero moved by {self.drift:.3g}{unit} until the episode's end")
        if self.metadata.get("calibration"):
            notes.append(f"calibration: {self.metadata['calibration']}")
        return notes

    def _raw(self) -> tuple[Sequence[str], Sequence[str]]:
        """Names and units of the raw channels, which a calibrated sensor has apart."""
        count = len(self.baseline)
        names, units = self.metadata.get("raw_channels"), self.metadata.get("raw_units")
        if count == len(self.channels) and not names:
            return self.channels, self.units
        names = [str(i) for i in range(count)] if not _listed(names, count) else names
        return names, _units({"units": units}, names)


def sensors_of(
    names: Sequence[str], info: Mapping[str, Any] | None = None, record: EpisodeRecord | None = None
) -> list[SensorView]:
    """The sensors behind the columns of a force feature.

    Args:
        names: Of its columns, `<sensor>.<channel>`; a name without a dot belongs to a sensor `force`.
        info: The feature's `info`; of it `sensors`, each with what its driver said.
        record: What the journal knows of the episode; of it `baseline` and `drift`.
    """
    described = _mapping(_mapping(info).get("sensors"))
    baselines, drifts = (_mapping(getattr(record, key, None)) for key in ("baseline", "drift"))
    columns: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        sensor, dot, _ = name.partition(".")
        columns.setdefault(sensor if dot else "force", []).append(i)
    sensors = []
    for sensor, where in columns.items():
        channels = tuple(names[i].partition(".")[2] or names[i] for i in where)
        metadata = _mapping(described.get(sensor))
        drift = drifts.get(sensor)
        sensors.append(
            SensorView(
                sensor,
                tuple(where),
                channels,
                _units(metadata, channels),
                metadata,
                _baseline(baselines.get(sensor)),
                float(drift) if isinstance(drift, int | float) and math.isfinite(drift) else None,
                _pad(metadata, channels),
            )
        )
    return sensors


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _units(metadata: Mapping[str, Any], channels: Sequence[str]) -> tuple[str, ...]:
    """One unit for each channel, from one for all, a list, or a mapping by channel."""
    given = metadata.get("units", metadata.get("unit"))
    if isinstance(given, Mapping):
        given = [given.get(channel) for channel in channels]
    elif not isinstance(given, list | tuple):
        given = [given] * len(channels)
    if len(given) != len(channels):
        given = [None] * len(channels)
    return tuple(_PRETTY.get(unit, unit) if isinstance(unit, str) else "" for unit in given)


def _baseline(values: Any) -> tuple[float, ...] | None:
    if not isinstance(values, list) or not values:
        return None
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values)


def _listed(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count


def _pad(metadata: Mapping[str, Any], channels: Sequence[str]) -> Pad | None:
    """Points from `layout_mm`, or assumed for five magnetometers; x, y, z by the channels' endings."""
    points: dict[int, dict[str, int]] = {}
    for i, channel in enumerate(channels):
        match = _POINT.match(channel)
        if match:
            points.setdefault(int(match[1]), {})[match[2]] = i
    columns = np.array(
        [[axes.get(axis, -1) for axis in "xyz"] for _, axes in sorted(points.items())], np.int64
    ).reshape(-1, 3)
    layout = _numbers(metadata.get("layout_mm"))
    if layout is not None and layout.ndim == 2 and layout.shape[1] >= 2:
        count = len(layout)
        if len(columns) != count and len(channels) == 3 * count:
            columns = np.arange(3 * count).reshape(-1, 3)
        elif len(columns) != count and len(channels) == count:  # an array of pressures: no tangential part
            columns = np.stack([np.full(count, -1), np.full(count, -1), np.arange(count)], axis=1)
        if len(columns) == count:
            axes = _numbers(metadata.get("layout_axes"))
            if axes is None or axes.shape != (count, 2, 2):
                axes = np.tile(np.eye(2), (count, 1, 1))
            return Pad(layout[:, :2], columns, axes)
    if columns.shape == (5, 3) and (columns >= 0).all():  # five magnetometers, as on AnySkin's board
        from lerobot_ext.sensors.anyskin import LAYOUT_AXES, LAYOUT_MM

        return Pad(np.array(LAYOUT_MM), columns, np.array(LAYOUT_AXES, float), assumed=True)
    return None


def _numbers(value: Any) -> NDArray[np.float64] | None:
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
    return found if found.size and np.isfinite(found).all() else None
