"""The selection: which recorded features a policy sees, and how.

Only the decision and its JSON form live here; what it means for one dataset is in `plan`, what it does to tensors
in `depth`, `images` and `step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lerobot_ext.errors import UserError

REPRESENTATIONS = ("gray", "turbo", "normals")
FUSIONS = ("state", "token")
MOST_HISTORY = 1000  # samples; half a minute at 30 a second


@dataclass(frozen=True)
class DepthSelection:
    """How depth becomes an image.

    Attributes:
        cameras: Names of the depth streams (`side_depth`), or None for all of them.
        near_m: Distance in metres shown darkest; what is nearer is shown like it.
        far_m: Distance in metres shown brightest; what is farther is shown like it.
        representation: `gray`: the same value in three channels; `turbo`: a colour map; `normals`: surface
            normals, which need the camera's intrinsics (see `depth.gray`, `depth.turbo`, `depth.normals`).
    """

    cameras: tuple[str, ...] | None = None
    near_m: float = 0.1
    far_m: float = 1.5
    representation: str = "gray"

    def __post_init__(self) -> None:
        """Bring lists (JSON has no tuples) into their form and check the values."""
        object.__setattr__(self, "cameras", _names(self.cameras, "depth.cameras"))
        if not 0 <= self.near_m < self.far_m:
            raise UserError(
                f"depth.near_m {self.near_m} and depth.far_m {self.far_m}: expected metres, 0 <= near_m < far_m."
            )
        _one_of("depth.representation", self.representation, REPRESENTATIONS)


@dataclass(frozen=True)
class ForceSelection:
    """How force reaches the network.

    Attributes:
        fusion: `state`: joined to `observation.state`, after the joints; any policy takes that. `token`: its last
            `force_history` samples become one token beside the state's, for SmolVLA.
        force_history: How many samples, one control step apart, are in the token; 1 to 1000. `state` has no use for
            it.
    """

    fusion: str = "state"
    force_history: int = 10

    def __post_init__(self) -> None:
        """Check the values."""
        _one_of("force.fusion", self.fusion, FUSIONS)
        number = isinstance(self.force_history, int) and not isinstance(self.force_history, bool)
        if not number or not 1 <= self.force_history <= MOST_HISTORY:
            raise UserError(
                f"force.force_history {self.force_history}: expected a number of samples, 1 to {MOST_HISTORY}."
            )

    @property
    def is_token(self) -> bool:
        """Whether the network gets a window of samples of its own, (force_history, n)."""
        return self.fusion == "token"


@dataclass(frozen=True)
class Selection:
    """Which recorded features a policy sees, and how.

    Features that LeRobot's policies take as they are (`observation.state`, a user's own vectors) stay unless
    `include` or `exclude` say otherwise.

    Attributes:
        cameras: Names of the RGB cameras (`wrist`), or None for all; an empty tuple for none.
        depth: How depth is shown; None: not at all, and its streams are not decoded.
        force: How force is given; None: not at all.
        language_tip: Append the episode's tip to the task.
        resize: Height and width in pixels of every image, colour and depth, that the network sees; the aspect
            ratio is not kept. None: as recorded.
        include: Patterns (`observation.my_*`) of the users' own features that stay; None: all of them.
        exclude: Patterns of observations that are not seen, of whatever kind; it wins over everything else.
    """

    cameras: tuple[str, ...] | None = None
    depth: DepthSelection | None = None
    force: ForceSelection | None = None
    language_tip: bool = False
    resize: tuple[int, int] | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Bring lists into their form and check the values."""
        object.__setattr__(self, "cameras", _names(self.cameras, "cameras"))
        object.__setattr__(self, "include", _names(self.include, "include"))
        object.__setattr__(self, "exclude", _names(self.exclude or (), "exclude"))
        if self.resize is not None:
            size = tuple(self.resize)
            if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
                raise UserError(f"resize {self.resize}: expected [height, width] in pixels.")
            object.__setattr__(self, "resize", size)

    def to_dict(self) -> dict[str, Any]:
        """The selection as JSON takes it; `from_dict` reads it back."""
        data = _plain(dataclasses.asdict(self))
        if self.force is not None and not self.force.is_token:
            del data["force"]["force_history"]  # it decides nothing there
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Selection:
        """Read what `to_dict` wrote.

        Raises:
            UserError: For a key or a value that this version does not know.
        """
        values = dict(data)
        for key, kind in (("depth", DepthSelection), ("force", ForceSelection)):
            if values.get(key) is not None:
                values[key] = _make(kind, values[key], f"{key}.")
        return _make(cls, values, "")

    def differences(self, other: Selection) -> list[str]:
        """One line `key: mine, other's` for each value that differs."""
        mine, others = _flat(self.to_dict()), _flat(other.to_dict())
        keys = [*mine, *(key for key in others if key not in mine)]
        lines = ((key, mine.get(key, "off"), others.get(key, "off")) for key in keys)
        return [f"{key}: {a}, {b}" for key, a, b in lines if a != b]


def _make(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(
                f"selection key '{prefix}{key}' is not known; known are {', '.join(known)}. It may be from a newer "
                "lerobot_ext: upgrade this one."
            )
    return kind(**values)


def _names(names: Iterable[str] | None, key: str) -> tuple[str, ...] | None:
    if isinstance(names, str):
        raise UserError(f"{key} '{names}': expected a list of names, such as [{names}].")
    return None if names is None else tuple(names)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key} '{value}' is not offered; offered: {', '.join(allowed)}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{prefix}{key}": "on"} | _flat(value, f"{prefix}{key}.")
        elif value is None and key in ("depth", "force"):
            flat[f"{prefix}{key}"] = "off"
        else:
            flat[f"{prefix}{key}"] = value
    return flat
