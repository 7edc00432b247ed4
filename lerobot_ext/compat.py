"""Every place where LeRobot is extended: what, why, and how it must look for the extension to fit.

Nothing else in this package replaces or wraps a name of LeRobot's. `apply` installs all of it; each extension is
made when LeRobot's module is there, or right after its import, so that nothing is imported for its sake.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lerobot_ext import patching
from lerobot_ext.extension import Extension, check_version
from lerobot_ext.features import FORCE, OBS_FORCE, VectorFeature

logger = logging.getLogger(__name__)

OBSERVATION = "observation"


def table() -> list[tuple[str, str]]:
    """What is extended: (full name, reason), in the order of the docs."""
    return [(extension.name, extension.reason) for extension in EXTENSIONS]


def apply() -> None:
    """Extend LeRobot, in what is imported by now and in what will be; again does nothing.

    Raises:
        ImportError: LeRobot's version or one of the names is not what we know how to extend.
    """
    check_version(importlib.metadata.version("lerobot"))
    if _applied:
        return
    patching.install()
    for extension in EXTENSIONS:
        patching.after_import.when_imported([extension.module], extension.apply)
    patching.after_import.when_imported(["lerobot.rollout.inference.factory"], _register_inference_engine)
    _applied.append(True)


_applied: list[bool] = []


# --- features: a vector beside the joints and the images ---


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
    if value.shape != tuple(feature["shape"]):
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


# --- episodes: announced to whoever has to prepare for them ---


def _record_loop(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def record_loop(*args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording.episodes import episode

        given = signature.bind(*args, **kwargs).arguments
        dataset = given.get("dataset")
        with nullcontext() if dataset is None else episode(given["robot"], dataset):
            return original(*args, **kwargs)

    return record_loop


def _policy_loop(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def _policy_loop(self: Any, ctx: Any, robot: Any, *args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording.episodes import episode

        given = signature.bind(self, ctx, robot, *args, **kwargs).arguments
        dataset, events = given["dataset"], given["events"]
        # An asynchronous engine runs by now and holds the last episode's last observation: actions computed from
        # it while the sensors are tared would be the first ones of this episode.
        engine = self._engine
        engine.pause()
        with episode(getattr(robot, "inner", robot), dataset):
            engine.notify_observation(None)
            engine.reset()
            if hasattr(engine, "start_episode"):
                engine.start_episode(dataset.num_episodes)
            engine.resume()
            try:
                result = original(self, ctx, robot, *args, **kwargs)
            finally:
                if hasattr(engine, "end_episode"):
                    engine.end_episode()
        if dataset is not None and not dataset.has_pending_frames():
            _discard_empty_episode(ctx, events)
        return result

    return _policy_loop


def _discard_empty_episode(ctx: Any, events: dict) -> None:
    """Spare the run LeRobot's attempt to save an episode without frames, which is an error that ends it."""
    events["rerecord_episode"] = True
    if ctx.runtime.shutdown_event.is_set():
        events["stop_recording"] = True
    else:
        logger.warning("no action was sent in this episode, so nothing was recorded; it is recorded again")


def _build_rollout_context(original: Callable) -> Callable:
    def build_rollout_context(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        from lerobot.rollout import context

        # LeRobot takes every tuple among the robot's features for a camera and compares these with the policy's
        # images. With a vector among them the comparison is made here, and before anything is connected.
        make_robot, rename_map = context.make_robot_from_config, cfg.rename_map
        context.make_robot_from_config = partial(_make_checked_robot, make_robot, cfg)
        try:
            return original(cfg, *args, **kwargs)
        finally:
            context.make_robot_from_config, cfg.rename_map = make_robot, rename_map

    return build_rollout_context


def _make_checked_robot(make_robot: Callable, cfg: Any, robot_cfg: Any) -> Any:
    robot = make_robot(robot_cfg)
    features = robot.observation_features
    if cfg.rename_map or not any(isinstance(value, VectorFeature) for value in features.values()):
        return robot
    provided = {
        f"observation.images.{key}"
        for key, value in features.items()
        if isinstance(value, tuple) and not isinstance(value, VectorFeature)
    }
    expected = {key for key, feature in cfg.policy.input_features.items() if feature.type.value == "VISUAL"}
    if not (expected <= provided or provided <= expected):
        raise ValueError(
            f"the policy expects the images {sorted(expected)}, the robot gives {sorted(provided)}; name the robot's "
            "cameras as they were named in training, or map them with --rename_map."
        )
    # Any map, also one that renames nothing, turns LeRobot's own check off.
    cfg.rename_map = {OBS_FORCE: OBS_FORCE}
    return robot


# --- inference engines: one more, and nothing stale in LeRobot's own ---


def _register_inference_engine(module: Any) -> None:
    import lerobot_ext.rollout.config  # noqa: F401


def _create_inference_engine(original: Callable) -> Callable:
    def create_inference_engine(config: Any, **kwargs: Any) -> Any:
        from lerobot_ext.rollout.config import AsyncInferenceConfig

        if not isinstance(config, AsyncInferenceConfig):
            return original(config, **kwargs)
        from lerobot_ext.rollout.factory import make_engine

        return make_engine(config, **kwargs)

    return create_inference_engine


def _rtc_reset(original: Callable) -> Callable:
    def reset(self: Any) -> None:
        original(self)
        if self._action_queue is None:
            return
        # Its thread takes the queue first and the observation second, so whoever gets the new queue gets no old
        # observation; an inference in flight merges into the old queue, where nobody looks.
        with self._obs_lock:
            self._obs_holder["obs"] = None
        self._action_queue = type(self._action_queue)(self._rtc_config)

    return reset


# --- recordings: an interrupt waits for the disk ---


def _undisturbed(doing: str) -> Callable[[Callable], Callable]:
    def make(original: Callable) -> Callable:
        def undisturbed(*args: Any, **kwargs: Any) -> Any:
            from lerobot_ext.recording.interrupts import deferred_interrupts

            with deferred_interrupts(doing):
                return original(*args, **kwargs)

        return undisturbed

    return make


# --- training: only the chosen modalities ---


def _make_train_eval_datasets(original: Callable) -> Callable:
    def make_train_eval_datasets(cfg: Any) -> Any:
        if getattr(cfg, "selection", None) is None:
            return original(cfg)
        from lerobot_ext.modality.training import make_selected_datasets

        return make_selected_datasets(original, cfg)

    return make_train_eval_datasets


def _make_pre_post_processors(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def make_pre_post_processors(*args: Any, **kwargs: Any) -> Any:
        processors = original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        policy_cfg = given["policy_cfg"]
        if getattr(getattr(policy_cfg, "_runtime_dataset_meta", None), "selection", None) is None:
            return processors
        from lerobot_ext.modality.training import add_selection_step

        return add_selection_step(policy_cfg, given.get("pretrained_path"), processors)

    return make_pre_post_processors


# --- devices: what would take the process down ---


def _stop_read_thread(original: Callable) -> Callable:
    def _stop_read_thread(self: Any) -> None:
        if self.stop_event is not None and self.thread is not None:
            self.stop_event.set()
            self.thread.join(self.timeout_ms / 1e3 + 1)
        original(self)

    return _stop_read_thread


def _cleanup(original: Callable) -> Callable:
    def _cleanup(self: Any) -> None:
        if self.thread is not None:
            self._stop_read_thread()
        original(self)

    return _cleanup


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
    Extension(
        "lerobot.scripts.lerobot_record",
        "record_loop",
        "Does not announce episodes: sensors are tared before one that is recorded.",
        "robot events fps teleop_action_processor robot_action_processor "
        "robot_observation_processor dataset teleop control_time_s single_task display_data "
        "display_mode display_compressed_images",
        _record_loop,
    ),
    Extension(
        "lerobot.rollout.strategies.episodic",
        "EpisodicStrategy._policy_loop",
        "Does not announce episodes: sensors are tared before one, while the policy waits. One without a frame is "
        "recorded again, where saving it would end the run.",
        "self ctx robot events features fps control_time_s dataset single_task",
        _policy_loop,
    ),
    Extension(
        "lerobot.rollout.context",
        "build_rollout_context",
        "Takes every tuple of the robot's features for a camera when it compares them with the policy's images.",
        "cfg shutdown_event teleop_action_processor robot_action_processor robot_observation_processor",
        _build_rollout_context,
    ),
    Extension(
        "lerobot.rollout.inference.factory",
        "create_inference_engine",
        "Knows its own engines only: makes the engine `async`, too.",
        "config policy preprocessor postprocessor robot_wrapper hw_features dataset_features ordered_action_keys "
        "task fps device use_torch_compile compile_warmup_inferences shutdown_event",
        _create_inference_engine,
    ),
    Extension(
        "lerobot.rollout.inference.rtc",
        "RTCInferenceEngine.reset",
        "Lets an inference in flight merge its chunk into the next episode: that chunk is dropped.",
        "self",
        _rtc_reset,
    ),
    Extension(
        "lerobot.datasets.lerobot_dataset",
        "LeRobotDataset.save_episode",
        "Can be interrupted between videos and table, which leaves a folder that cannot be opened: Ctrl-C waits.",
        "self episode_data parallel_encoding",
        _undisturbed("saving the episode"),
    ),
    Extension(
        "lerobot.datasets.lerobot_dataset",
        "LeRobotDataset.finalize",
        "Can be interrupted before the files have their ends: Ctrl-C waits.",
        "self",
        _undisturbed("finishing the dataset"),
    ),
    Extension(
        "lerobot.datasets.factory",
        "make_train_eval_datasets",
        "Decodes everything that was recorded: with a selection, what is not wanted is never decoded.",
        "cfg",
        _make_train_eval_datasets,
    ),
    Extension(
        "lerobot.policies.factory",
        "make_pre_post_processors",
        "Saves the processors with a checkpoint: with a selection, its step comes first among them.",
        "policy_cfg pretrained_path pretrained_revision kwargs",
        _make_pre_post_processors,
    ),
    Extension(
        "lerobot.cameras.zmq.camera_zmq",
        "ZMQCamera._stop_read_thread",
        "Gives up on a thread that waits for a frame longer than two seconds: the thread is waited for.",
        "self",
        _stop_read_thread,
    ),
    Extension(
        "lerobot.cameras.zmq.camera_zmq",
        "ZMQCamera._cleanup",
        "Closes the socket under the thread that reads it when connecting fails, which aborts the process.",
        "self",
        _cleanup,
    ),
)
