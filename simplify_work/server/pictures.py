"""At what size a policy looks at its pictures, so that a robot need not send larger ones.

Read in the code of LeRobot's policies: SmolVLA and X-VLA pad to `resize_imgs_with_padding`, the pi0 family pads to
`image_resolution`. Other policies take any size, or fit pictures in a way of their own; theirs are not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from lerobot.configs import PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline, RenameObservationsProcessorStep
from torch import Tensor

from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import PictureUse

# Sizes of nothing in particular: if pictures of both come out as they went in, the preprocessor leaves sizes alone.
_PROBES = ((52, 84), (92, 60))


def pictures_used(
    config: PreTrainedConfig,
    preprocessor: PolicyProcessorPipeline,
    inputs: Iterable[FeatureSpec],
    preprocess: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]],
) -> tuple[PictureUse, ...]:
    """The use of each colour picture, by the robot's name of it.

    Args:
        config: The policy's.
        preprocessor: Of the checkpoint.
        inputs: What the policy wants from the robot.
        preprocess: Makes the policy's batch of an observation.
    """
    size = _size(config)
    if size is None:
        return ()
    inputs = tuple(inputs)
    seen_as = _renamed(preprocessor)
    names = {spec.name: seen_as.get(spec.name, spec.name) for spec in inputs if spec.kind == "image"}
    for height, width in _PROBES:
        observation = {
            spec.name: np.zeros(
                spec.sent.shape if spec.kind == "vector" else (height, width, spec.shape[-1]), spec.dtypes[0]
            )
            for spec in inputs
        }
        try:
            batch = preprocess(observation)
        except Exception:  # a preprocessor that takes its own size only
            return ()
        names = {name: seen for name, seen in names.items() if _is_size(batch.get(seen), height, width)}
    return tuple(PictureUse(name, *size, "pad") for name in names)


def _size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Height and width."""
    match config.type:
        case "smolvla":  # kept as (width, height)
            size = config.resize_imgs_with_padding
            return (size[1], size[0]) if size else None
        case "xvla":
            size = config.resize_imgs_with_padding
            return (size[0], size[1]) if size else None
        case "pi0" | "pi05" | "pi0_fast":
            return tuple(config.image_resolution)
    return None


def _renamed(preprocessor: PolicyProcessorPipeline) -> dict[str, str]:
    """Names of the policy's inputs by the robot's."""
    names: dict[str, str] = {}
    for step in preprocessor.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            later = dict(step.rename_map)
            names = {old: later.pop(new, new) for old, new in names.items()} | later
    return names


def _is_size(picture: Any, height: int, width: int) -> bool:
    return isinstance(picture, Tensor) and tuple(picture.shape[-2:]) == (height, width)
