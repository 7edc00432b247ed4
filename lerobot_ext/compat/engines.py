"""Inference engines: one more, and nothing stale in LeRobot's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext.extension import Extension


def register(module: Any) -> None:
    """Let LeRobot know our engines' configurations, once it knows its own."""
    import lerobot_ext.rollout.config  # noqa: F401


def _create_inference_engine(original: Callable) -> Callable:
    def create_inference_engine(config: Any, **kwargs: Any) -> Any:
        from lerobot_ext.rollout.config import AsyncInferenceConfig
        from lerobot_ext.rollout.open_loop import watching
        from lerobot_ext.rollout.tip import tell

        kwargs["task"] = tell(kwargs.get("task"), kwargs["policy"], kwargs["preprocessor"])
        rate_hz = getattr(config, "policy_hz", None) or kwargs["fps"]
        watching.meet(kwargs["robot_wrapper"], kwargs["ordered_action_keys"], rate_hz)
        if not isinstance(config, AsyncInferenceConfig):
            return original(config, **kwargs)
        from lerobot_ext.rollout.factory import make_engine

        return make_engine(config, **kwargs)

    return create_inference_engine


def _rtc_reset(original: Callable) -> Callable:
    def reset(self: Any) -> None:
        original(self)
        _recent(self).clear()
        if self._action_queue is None:
            return
        # Its thread takes the queue first and the observation second, so whoever gets the new queue gets no old
        # observation; an inference in flight merges into the old queue, where nobody looks.
        with self._obs_lock:
            self._obs_holder["obs"] = None
        self._action_queue = type(self._action_queue)(self._rtc_config)

    return reset


def _rtc_notify_observation(original: Callable) -> Callable:
    def notify_observation(self: Any, obs: dict | None) -> None:
        if obs is None:
            _recent(self).clear()
        original(self, None if obs is None else _recent(self).add(obs))

    return notify_observation


def _recent(engine: Any) -> Any:
    """What an RTC engine has been shown; made with its first observation."""
    if not hasattr(engine, "_lerobot_ext_recent"):
        from lerobot_ext.rollout.observations import RecentObservations, vector_history

        windows = vector_history(engine._policy, engine._preprocessor)
        engine._lerobot_ext_recent = RecentObservations(1, windows)
    return engine._lerobot_ext_recent


EXTENSIONS = (
    Extension(
        "lerobot.rollout.inference.factory",
        "create_inference_engine",
        "Knows its own engines only: makes the engine `async`, too. Knows no language tip: a policy that was trained "
        "on tips gets the task with its tip.",
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
        "lerobot.rollout.inference.rtc",
        "RTCInferenceEngine.notify_observation",
        "Preprocesses an observation only where it asks for a chunk: the last samples of force go along with each.",
        "self obs",
        _rtc_notify_observation,
    ),
)
