"""LeRobot's strategies on the paced loop: what they record, show and stop for; and what does not go with two rates.

`compat` calls it where LeRobot runs an episode. The loop itself is in `loop`.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STR
from lerobot.utils.feature_utils import build_dataset_frame

from lerobot_ext.errors import UserError
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.loop import Action, Observation, PacedLoop

logger = logging.getLogger(__name__)

STRATEGIES = ("base", "episodic")


def is_paced(engine: Any) -> bool:
    """Whether a strategy's engine wants our loop."""
    config = getattr(engine, "config", None)
    return isinstance(config, AsyncInferenceConfig) and config.paced


def check(cfg: Any) -> None:
    """Look at a rollout's configuration before anything is connected; the dataset gets the policy's rate.

    Args:
        cfg: LeRobot's `RolloutConfig`.

    Raises:
        UserError: It asks for two rates and for something that does not go with them.
    """
    if not isinstance(cfg.inference, AsyncInferenceConfig) or not cfg.inference.paced:
        return
    policy_hz = cfg.inference.policy_hz
    if cfg.strategy.type not in STRATEGIES:
        raise UserError(
            f"strategy.type is {cfg.strategy.type}, and inference.policy_hz is given: two rates go with the "
            f"strategies {' and '.join(STRATEGIES)}; choose one of them, or leave policy_hz and control_hz out."
        )
    if cfg.interpolation_multiplier != 1:
        raise UserError(
            f"interpolation_multiplier is {cfg.interpolation_multiplier}, and inference.policy_hz is given, which "
            "resamples itself: leave interpolation_multiplier out."
        )
    if cfg.dataset is None:
        return
    if policy_hz != int(policy_hz):
        raise UserError(
            f"inference.policy_hz is {policy_hz}, and episodes are recorded, one frame a policy step: a dataset's "
            "rate is a whole number; choose such a policy_hz, or strategy.type=base, which records nothing."
        )
    if cfg.dataset.fps != policy_hz:
        logger.warning(
            "dataset.fps is %s; it is set to inference.policy_hz, %d: one frame is recorded a policy step",
            cfg.dataset.fps,
            policy_hz,
        )
        cfg.dataset.fps = int(policy_hz)


def run_base(strategy: Any, ctx: Any) -> None:
    """What `BaseStrategy.run` does: one episode, not recorded, for `duration` seconds (0: no end)."""
    engine, cfg = strategy._engine, ctx.runtime.cfg

    def on_step(seen: Observation, action: Action | None) -> None:
        strategy._log_telemetry(seen, action, ctx.runtime)

    loop = _loop(engine, ctx, ctx.hardware.robot_wrapper, on_step, ctx.runtime.shutdown_event.is_set)
    engine.resume()
    if loop.warm_up():
        loop.run(cfg.duration if cfg.duration > 0 else math.inf)


def run_episode(
    strategy: Any,
    ctx: Any,
    robot: Any,
    events: dict,
    features: dict,
    fps: float,
    control_time_s: float,
    dataset: Any,
    single_task: str,
) -> None:
    """What `EpisodicStrategy._policy_loop` does: one episode, a frame recorded at each policy step that has an action.

    The arguments are those of LeRobot's method; `fps` is not looked at, the engine has its own rates.

    Raises:
        UserError: The dataset, which is continued, has another rate than the policy.
    """
    engine = strategy._engine
    if dataset.fps != engine.config.policy_hz:
        raise UserError(
            f"the dataset in {dataset.root} has {dataset.fps} frames a second, inference.policy_hz is "
            f"{engine.config.policy_hz}: one frame is recorded a policy step, so they must be equal."
        )

    def on_step(seen: Observation, action: Action | None) -> None:
        if action is None:
            return
        frame = build_dataset_frame(features, seen, prefix=OBS_STR)
        frame |= build_dataset_frame(features, action, prefix=ACTION)
        dataset.add_frame({**frame, "task": single_task})
        strategy._log_telemetry(seen, action, ctx.runtime)

    def stop() -> bool:
        if events["exit_early"]:
            events["exit_early"] = False
            return True
        return ctx.runtime.shutdown_event.is_set()

    loop = _loop(engine, ctx, robot, on_step, stop)
    if loop.warm_up():
        loop.run(control_time_s)


def _loop(engine: Any, ctx: Any, robot: Any, on_step: Any, stop: Any) -> PacedLoop:
    processors = ctx.processors
    return PacedLoop(
        engine,
        robot,
        process_observation=processors.robot_observation_processor,
        process_action=lambda action, raw: processors.robot_action_processor((action, raw)),
        on_step=on_step,
        stop=stop,
    )
