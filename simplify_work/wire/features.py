"""What a policy wants and a robot gives, name by name, and the comparison of the two.

Shapes are those of the arrays on the wire: images (H, W, C), vectors (n,). How a policy's config or a robot's
features become such a description is the business of the server and of the robot's side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import msgspec
import numpy as np

from simplify_work.wire.errors import FeatureMismatch

Kind = Literal["image", "depth", "vector"]

DTYPES: dict[str, tuple[str, ...]] = {
    "image": ("uint8", "float32"),  # float32 in [0, 1], for images that never were uint8
    "depth": ("uint16", "float32"),  # millimetres or metres
    "vector": ("float32",),
}

Dim = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
MOST_HISTORY = 1000


class FeatureSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One named array of an observation.

    Attributes:
        name: LeRobot's key, `observation.images.side` for example.
        kind: `image` (H, W, 3), `depth` (H, W, 1) or `vector` (n,).
        shape: On the wire; height and width of a wanted picture are those it was trained with.
        dtypes: One dtype for what is given, all accepted ones for what is wanted.
        history: Of a wanted vector: how many of its last samples, one control step apart, go with one observation;
            above 1, its array has a leading axis of that many, the oldest first. The first sample of an episode
            stands for those before it. 1 for everything else.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    kind: Kind
    shape: Annotated[tuple[Dim, ...], msgspec.Meta(max_length=8)]
    dtypes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=8)]
    history: Annotated[int, msgspec.Meta(ge=1, le=MOST_HISTORY)] = 1

    @property
    def sent(self) -> FeatureSpec:
        """The array that goes with an observation: this one, or the window of its last samples."""
        if self.history == 1:
            return self
        return FeatureSpec(self.name, self.kind, (self.history, *self.shape), self.dtypes)

    def __str__(self) -> str:
        """`observation.force (15,)`, or `observation.force (15,) of the last 10 steps`."""
        past = f" of the last {self.history} steps" if self.history > 1 else ""
        return f"{self.name} {tuple(self.shape)}{past}"


def describe(observation: Mapping[str, np.ndarray]) -> tuple[FeatureSpec, ...]:
    """What the arrays of one observation are, told by their shapes."""
    return tuple(
        FeatureSpec(name, kind_of(array.shape), array.shape, (array.dtype.name,))
        for name, array in observation.items()
    )


def kind_of(shape: tuple[int, ...]) -> Kind:
    """`depth` for (H, W, 1), `image` for other three-dimensional shapes, else `vector`."""
    if len(shape) != 3:
        return "vector"
    return "depth" if shape[-1] == 1 else "image"


def check_features(wanted: Iterable[FeatureSpec], given: Iterable[FeatureSpec], policy: str) -> None:
    """Refuse a robot that lacks something the policy wants.

    Height and width of pictures may differ: policies resize. More features than wanted are welcome.

    Args:
        wanted: The policy's inputs.
        given: The robot's observation.
        policy: What to call the policy in the message.

    Raises:
        FeatureMismatch: Naming what is missing or different, and listing both sides.
    """
    wanted, have = tuple(wanted), {feature.name: feature for feature in given}
    faults = [fault for feature in wanted if (fault := _fault(feature, have.get(feature.name)))]
    if faults:
        raise FeatureMismatch(
            f"the server's policy '{policy}' does not fit this robot: {'; '.join(faults)}. "
            f"The policy wants: {_listed(wanted)}. The robot gives: {_listed(have.values())}. "
            "Serve a policy trained on this robot's features, add the missing device to the robot, or map names "
            "with policy.rename_map."
        )


def check_observation(wanted: Iterable[FeatureSpec], arrays: Mapping[str, np.ndarray], policy: str) -> None:
    """Refuse an observation at the robot's side, where a window may still be one sample of it.

    Args:
        wanted: The policy's inputs.
        arrays: By name.
        policy: What to call the policy in the message.

    Raises:
        FeatureMismatch: As `check_features`.
    """

    def as_given(spec: FeatureSpec) -> FeatureSpec:
        array = arrays.get(spec.name)
        return spec if array is None or array.ndim == len(spec.shape) else spec.sent

    check_features(map(as_given, wanted), describe(arrays), policy)


def _fault(wanted: FeatureSpec, given: FeatureSpec | None) -> str | None:
    if given is None:
        return f"{wanted.name} is missing"
    if wanted.kind != given.kind:
        return f"{wanted.name} is given as {given.kind} {tuple(given.shape)}, wanted as {wanted.kind}"
    if wanted.kind == "vector" and wanted.shape != given.shape:
        return f"{wanted.name} has shape {tuple(given.shape)}, wanted {tuple(wanted.shape)}"
    if not set(given.dtypes) & set(wanted.dtypes):
        return f"{wanted.name} is {'/'.join(given.dtypes)}, wanted {' or '.join(wanted.dtypes)}"
    return None


def _listed(features: Iterable[FeatureSpec]) -> str:
    return ", ".join(sorted(map(str, features))) or "nothing"
