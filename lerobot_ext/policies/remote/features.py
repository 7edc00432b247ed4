"""What a robot gives, in the words of the wire: asked before a robot moves. What a policy wants, its server says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lerobot.utils.constants import OBS_IMAGES, OBS_STATE, OBS_STR

from simplify_work.wire.features import DTYPES, FeatureSpec, kind_of


def given_features(observation_features: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """What a robot's `observation_features` become on the wire.

    Args:
        observation_features: `float` for a joint (those ending `.pos` or `.vel` are the state, as in LeRobot's
            rollout), (H, W, 3) for a camera, (H, W, 1) for depth, (n,) for a vector.
    """
    joints = [
        key
        for key, value in observation_features.items()
        if value is float and key.endswith((".pos", ".vel"))
    ]
    specs = [FeatureSpec(OBS_STATE, "vector", (len(joints),), DTYPES["vector"])] if joints else []
    for key, value in observation_features.items():
        if isinstance(value, tuple):
            kind, shape = kind_of(value), tuple(value)
            prefix = OBS_STR if kind == "vector" else OBS_IMAGES
            specs.append(FeatureSpec(f"{prefix}.{key}", kind, shape, DTYPES[kind]))
    return tuple(specs)
