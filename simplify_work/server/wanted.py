"""What a checkpoint wants from the robot: the policy's inputs, taken back through its preprocessor.

A preprocessor may rename keys and may make the network's inputs out of others (our modality step joins force to the
state, for one). So the policy's `input_features` are what the network sees, not what the robot must send.
"""

from __future__ import annotations

from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.processor import PolicyProcessorPipeline, RenameObservationsProcessorStep

from simplify_work.wire.features import DTYPES, FeatureSpec

# SmolVLA fills these up by itself; no robot has them.
_EMPTY_CAMERA = "observation.images.empty_camera_"


def wanted_from_robot(
    input_features: dict[str, PolicyFeature], preprocessor: PolicyProcessorPipeline
) -> tuple[FeatureSpec, ...]:
    """The arrays that a robot must send to this policy.

    A step that changes features offers `required_inputs(input_features) -> dict[str, PolicyFeature]`: what it must
    be given to put out those. One that wants the last samples of a vector offers `required_history() -> dict[str,
    int]`, of which and how many.

    Args:
        input_features: Of the policy's config; pictures (C, H, W).
        preprocessor: Of the checkpoint.
    """
    features = dict(input_features)
    history: dict[str, int] = {}
    for step in reversed(preprocessor.steps):
        if hasattr(step, "required_inputs"):
            features = step.required_inputs(features)
        elif isinstance(step, RenameObservationsProcessorStep):
            original = {new: old for old, new in step.rename_map.items()}
            features = {original.get(name, name): feature for name, feature in features.items()}
            history = {original.get(name, name): steps for name, steps in history.items()}
        if hasattr(step, "required_history"):
            history |= step.required_history()
    specs = [
        _spec(name, feature, history.get(name, 1))
        for name, feature in features.items()
        if not name.startswith(_EMPTY_CAMERA)
    ]
    return tuple(spec for spec in specs if spec is not None)


def takes_tip(preprocessor: PolicyProcessorPipeline) -> bool:
    """Whether the policy was trained on tasks with language tips; a step that knows has an attribute `takes_tip`."""
    return any(getattr(step, "takes_tip", False) for step in preprocessor.steps)


def _spec(name: str, feature: Any, history: int) -> FeatureSpec | None:
    if feature.type in (FeatureType.ACTION, FeatureType.REWARD, FeatureType.LANGUAGE):
        return None
    shape = tuple(feature.shape)
    if feature.type is not FeatureType.VISUAL:
        return FeatureSpec(name, "vector", shape, DTYPES["vector"], history)
    if len(shape) == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3):
        shape = (*shape[1:], shape[0])
    kind = "depth" if shape[-1] == 1 else "image"
    return FeatureSpec(name, kind, shape, DTYPES[kind])
