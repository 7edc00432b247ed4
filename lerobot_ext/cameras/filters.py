"""librealsense's post-processing of depth: what may be asked for, in which order it is done, and doing it.

The order is librealsense's recommendation (doc/post-processing-filters.md) whatever the order asked for: decimation,
threshold, depth to disparity, spatial, temporal, disparity to depth, hole filling. Aligning comes after all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One number of a filter: librealsense's option for it and the range that it may have."""

    option: str
    low: float
    high: float


# In the order they are done. Ranges as the filters of librealsense 2.56 tell them (`get_option_range`).
FILTERS: dict[str, dict[str, Setting]] = {
    "decimation": {"magnitude": Setting("filter_magnitude", 2, 8)},
    "threshold": {},
    "spatial": {
        "magnitude": Setting("filter_magnitude", 1, 5),
        "alpha": Setting("filter_smooth_alpha", 0.25, 1),
        "delta": Setting("filter_smooth_delta", 1, 50),
        "holes_fill": Setting("holes_fill", 0, 5),
    },
    "temporal": {
        "alpha": Setting("filter_smooth_alpha", 0, 1),
        "delta": Setting("filter_smooth_delta", 1, 100),
        "persistence": Setting("holes_fill", 0, 8),
    },
    "hole_filling": {"mode": Setting("holes_fill", 0, 2)},
}
SMOOTHING = (
    "spatial",
    "temporal",
)  # done on disparity, where a stereo camera's noise is the same near and far
TO_DISPARITY, TO_DEPTH = "depth_to_disparity", "disparity_to_depth"


@dataclass(frozen=True)
class Filter:
    """One filter that was asked for, with the settings that are not librealsense's own."""

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)


def parse(entries: Sequence[Any]) -> tuple[Filter, ...]:
    """Filters in the order in which they are done.

    Args:
        entries: As in a YAML: `["temporal", {"spatial": {"alpha": 0.4, "delta": 20}}]`.

    Raises:
        ValueError: An entry names no filter or no setting of it, comes twice, or a number is out of its range.
    """
    found: dict[str, Filter] = {}
    for entry in entries:
        name, settings = _entry(entry)
        if name not in FILTERS:
            raise ValueError(f"filters: there is no '{name}'; expected {', '.join(FILTERS)}")
        if name in found:
            raise ValueError(f"filters: '{name}' comes twice; name each filter once")
        for key, value in settings.items():
            _check(name, key, value)
        found[name] = Filter(name, {key: float(value) for key, value in settings.items()})
    return tuple(found[name] for name in FILTERS if name in found)


def _entry(entry: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, settings),) = entry.items()
        if settings is None or isinstance(settings, Mapping):
            return str(name), settings or {}
    raise ValueError(f"filters: {entry!r} is neither a name nor 'name: {{setting: number}}'")


def _check(name: str, key: str, value: Any) -> None:
    allowed = FILTERS[name]
    if key not in allowed:
        there = f"it has {', '.join(allowed)}" if allowed else "it has none"
        raise ValueError(f"filters: '{name}' has no setting '{key}'; {there}")
    low, high = allowed[key].low, allowed[key].high
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"filters: {key} of '{name}' is {value}; expected a number from {low:g} to {high:g}")


class FilterChain:
    """The filters of one camera: they remember earlier frames, so no two cameras may share one.

    Args:
        rs: pyrealsense2.
        filters: From `parse`.
        stereo: Whether the device tells its baseline; without it librealsense cannot turn depth into disparity and
            smooths depth as it is.
        range_m: Nearest and farthest depth for the threshold filter, in metres.
    """

    def __init__(
        self, rs: ModuleType, filters: Sequence[Filter], *, stereo: bool, range_m: tuple[float, float]
    ):
        self._blocks: list[Any] = []
        self.applied: list[dict[str, Any]] = []
        smoothing = [f.name for f in filters if f.name in SMOOTHING] if stereo else []
        for wanted in filters:
            if smoothing and wanted.name == smoothing[0]:
                self._add(rs.disparity_transform(True), TO_DISPARITY)
            block = getattr(rs, f"{wanted.name}_filter")()
            told: dict[str, float] = {}
            for key, setting in FILTERS[wanted.name].items():
                option = getattr(rs.option, setting.option)
                if key in wanted.settings:
                    block.set_option(option, wanted.settings[key])
                told[key] = round(float(block.get_option(option)), 4)
            if wanted.name == "threshold":
                told = dict(zip(("min_m", "max_m"), range_m, strict=True))
                for option, value in zip(
                    (rs.option.min_distance, rs.option.max_distance), range_m, strict=True
                ):
                    block.set_option(option, value)
            self._add(block, wanted.name, told)
            if smoothing and wanted.name == smoothing[-1]:
                self._add(rs.disparity_transform(False), TO_DEPTH)

    def _add(self, block: Any, name: str, settings: Mapping[str, float] | None = None) -> None:
        self._blocks.append(block)
        self.applied.append({"name": name, **(settings or {})})

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def process(self, frames: Any) -> Any:
        """The frameset with its depth filtered; colour passes through."""
        for block in self._blocks:
            frames = block.process(frames).as_frameset()
        return frames
