"""Features: a vector, force, beside the joints and the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lerobot_ext.extension import Extension
from lerobot_ext.features import FORCE, OBS_FORCE, VectorFeature

OBSERVATION = "observation"


def _hw_to_dataset_features(original: Callable) -> Callable:
    def hw_to_dataset_features(hw_features: dict, prefix: str, use_video: bool = True) -> dict:
        vectors = {key: v for key, v in hw_features.items() if isinstance(v, VectorFeature)}
        if not vectors or prefix != OBSERVATION:
            return original(hw_features, prefix, use_video)
        others = {key: value for key, value in hw_features.items() if key not in vectors}
        features = original(others, prefix, use_video)
        for key, vector in vectors.items():
            features[f"{prefix}.{key}"] = {
                "dtype": "float32",
                "shape": tuple(vector),
                "names": list(vector.names),
            }
        return features

    return hw_to_dataset_features


def _build_dataset_frame(original: Callable) -> Callable:
    def build_dataset_frame(ds_features: dict, values: dict, prefix: str) -> dict[str, np.ndarray]:
        vectors = [key for key in ds_features if _is_vector(key, ds_features[key], values, prefix)]
        if not vectors:
            return original(ds_features, values, prefix)
        others = {key: feature for key, feature in ds_features.items() if key not in vectors}
        frame = original(others, values, prefix)
        for key in vectors:
            frame[key] = _vector(key, ds_features[key], values, prefix)
        return frame

    return build_dataset_frame


def _is_vector(key: str, feature: dict, values: dict, prefix: str) -> bool:
    """Whether LeRobot, which looks for every number under its own name, cannot build this feature but we can."""
    if not key.startswith(f"{prefix}.") or feature["dtype"] != "float32" or len(feature["shape"]) != 1:
        return False
    names = feature.get("names")
    if names is not None and all(name in values for name in names):
        return False
    return key == OBS_FORCE or key.removeprefix(f"{prefix}.") in values


def _vector(key: str, feature: dict, values: dict, prefix: str) -> np.ndarray:
    name = key.removeprefix(f"{prefix}.")
    if name not in values:
        raise ValueError(
            f"{key} is a feature of the dataset or policy, but the robot's observation has no '{name}', only "
            f"{', '.join(sorted(values))}; configure the robot's force_sensors as they were when it was recorded."
        )
    value = np.array(values[name], dtype=np.float32)
    # An inference engine gives a policy that wants them the last samples, (history, n), in place of the newest.
    if value.shape[-1:] != tuple(feature["shape"]) or value.ndim > 2:
        raise ValueError(
            f"'{name}' in the observation has shape {value.shape}, {key} expects {tuple(feature['shape'])}."
        )
    if not np.isfinite(value).all():
        raise ValueError(f"'{name}' in the observation has numbers that are not finite: {value.tolist()}.")
    return value


def _dataset_to_policy_features(original: Callable) -> Callable:
    def dataset_to_policy_features(features: dict) -> dict:
        from lerobot.configs.types import FeatureType

        policy_features = original(features)
        if OBS_FORCE in policy_features:
            force = policy_features[OBS_FORCE]
            policy_features[OBS_FORCE] = replace(force, type=FeatureType(FORCE.upper()))
        return policy_features

    return dataset_to_policy_features


EXTENSIONS = (
    Extension(
        "lerobot.configs.types",
        "FeatureType",
        "Gains the member FORCE, so that a policy's features can say which of them is a force.",
        "STATE VISUAL ENV ACTION REWARD LANGUAGE",
    ),
    Extension(
        "lerobot.utils.feature_utils",
        "hw_to_dataset_features",
        "Knows joints and images only: a robot's force becomes the dataset feature `observation.force`.",
        "hw_features prefix use_video",
        _hw_to_dataset_features,
    ),
    Extension(
        "lerobot.utils.feature_utils",
        "build_dataset_frame",
        "Looks for each number of a feature under its own name: a vector is taken whole, and checked.",
        "ds_features values prefix",
        _build_dataset_frame,
    ),
    Extension(
        "lerobot.utils.feature_utils",
        "dataset_to_policy_features",
        "Calls every observation that is not an image STATE: `observation.force` is of type FORCE.",
        "features",
        _dataset_to_policy_features,
    ),
)
