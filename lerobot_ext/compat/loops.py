"""LeRobot's loops: episodes are announced, and a rollout's robot may have more than cameras."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from lerobot_ext import patching
from lerobot_ext.extension import Extension
from lerobot_ext.features import OBS_FORCE, VectorFeature

logger = logging.getLogger(__name__)


def _record_loop(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def record_loop(*args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording.episodes import episode
        from lerobot_ext.rollout.plays import playing

        given = signature.bind(*args, **kwargs).arguments
        robot, dataset = given["robot"], given.get("dataset")
        if dataset is None:
            return original(*args, **kwargs)
        with episode(robot, dataset), playing(robot, given["events"]):
            result = original(*args, **kwargs)
        _forget_late_end(given["events"])
        return result

    return record_loop


def _policy_loop(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def _policy_loop(self: Any, ctx: Any, robot: Any, *args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording.episodes import episode
        from lerobot_ext.rollout import paced, plays

        given = signature.bind(self, ctx, robot, *args, **kwargs).arguments
        dataset, events = given["dataset"], given["events"]
        # An asynchronous engine runs by now and holds the last episode's last observation: actions computed from
        # it while the sensors are tared would be the first ones of this episode.
        engine = self._engine
        engine.pause()
        loop = paced.run_episode if paced.is_paced(engine) else original
        with episode(getattr(robot, "inner", robot), dataset), plays.playing(robot, events):
            engine.notify_observation(None)
            engine.reset()
            if hasattr(engine, "start_episode"):
                engine.start_episode(dataset.num_episodes)
            engine.resume()
            try:
                result = loop(self, ctx, robot, *args, **kwargs)
            finally:
                if hasattr(engine, "end_episode"):
                    engine.end_episode()
        _forget_late_end(events)
        if ctx.runtime.shutdown_event.is_set():
            events["stop_recording"] = True  # no way back to the initial position: the next thing is the end
        if dataset is not None and not dataset.has_pending_frames():
            _discard_empty_episode(ctx, events)
        return result

    return _policy_loop


def _forget_late_end(events: dict) -> None:
    """A key, or a replay's last frame, that came when the loop was ending by itself does not end the next one, too."""
    if events.get("exit_early"):
        events["exit_early"] = False


def _base_run(original: Callable) -> Callable:
    def run(self: Any, ctx: Any) -> None:
        from lerobot_ext.rollout import paced, plays

        return plays.run_plays(paced.run_base if paced.is_paced(self._engine) else original, self, ctx)

    return run


def _discard_empty_episode(ctx: Any, events: dict) -> None:
    """Spare the run LeRobot's attempt to save an episode without frames, which is an error that ends it."""
    events["rerecord_episode"] = True
    if ctx.runtime.shutdown_event.is_set():
        events["stop_recording"] = True
    else:
        logger.warning("no action was sent in this episode, so nothing was recorded; it is recorded again")


def _build_rollout_context(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def build_rollout_context(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        from lerobot.rollout import context

        from lerobot_ext.rollout import paced
        from lerobot_ext.rollout.start import starting

        paced.check(cfg)
        shutdown = signature.bind(cfg, *args, **kwargs).arguments.get("shutdown_event")
        # LeRobot takes every tuple among the robot's features for a camera and compares these with the policy's
        # images. With a vector among them the comparison is made here, and before anything is connected.
        make_robot, rename_map = context.make_robot_from_config, cfg.rename_map
        with starting(cfg, shutdown, partial(_make_checked_robot, make_robot, cfg)) as start:
            context.make_robot_from_config = start.robot
            try:
                ctx = original(cfg, *args, **kwargs)
            finally:
                context.make_robot_from_config, cfg.rename_map = make_robot, rename_map
            start.finish(ctx)
        return ctx

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


EXTENSIONS = (
    Extension(
        "lerobot.scripts.lerobot_record",
        "record_loop",
        "Does not announce episodes: sensors are tared before one that is recorded. A replay's end ends the episode.",
        "robot events fps teleop_action_processor robot_action_processor "
        "robot_observation_processor dataset teleop control_time_s single_task display_data "
        "display_mode display_compressed_images",
        _record_loop,
    ),
    Extension(
        "lerobot.rollout.strategies.episodic",
        "EpisodicStrategy._policy_loop",
        "Does not announce episodes: sensors are tared before one, while the policy waits. One without a frame is "
        "recorded again, where saving it would end the run. An engine with two rates gets a loop that has them. A replay's "
        "end ends the episode.",
        "self ctx robot events features fps control_time_s dataset single_task",
        _policy_loop,
    ),
    Extension(
        "lerobot.rollout.strategies.base",
        "BaseStrategy.run",
        "Reads, infers and acts at one rate: an engine with two gets a loop that has them. Goes on when a replay is over: "
        "each play is a loop of its own.",
        "self ctx",
        _base_run,
    ),
    Extension(
        "lerobot.rollout.context",
        "build_rollout_context",
        "Takes every tuple of the robot's features for a camera when it compares them with the policy's images. "
        "Knows one rate: what does not go with two is refused. Loads the policy before it connects the robot, and begins "
        "at once: a robot may go to its initial position first, beside a policy that another process loads.",
        "cfg shutdown_event teleop_action_processor robot_action_processor robot_observation_processor",
        _build_rollout_context,
    ),
)
