"""From a config and what LeRobot's rollout has prepared to an engine; `compat` calls it where LeRobot makes engines."""

from __future__ import annotations

import logging
from threading import Event
from typing import Any

from lerobot_ext.rollout.checks import ActionChecks, by_entry, limits_of
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.engine import AsyncInferenceEngine
from lerobot_ext.rollout.ensemble import ACT_COEFF
from lerobot_ext.rollout.open_loop import watching
from lerobot_ext.rollout.sources import LocalSource, RemoteSource, Source

logger = logging.getLogger(__name__)


def make_engine(
    config: AsyncInferenceConfig,
    *,
    policy: Any,
    preprocessor: Any,
    postprocessor: Any,
    robot_wrapper: Any,
    hw_features: dict,
    dataset_features: dict,
    ordered_action_keys: list[str],
    task: str,
    fps: float,
    device: str | None,
    use_torch_compile: bool = False,
    compile_warmup_inferences: int = 2,
    shutdown_event: Event | None = None,
) -> AsyncInferenceEngine:
    """The engine for a policy and a robot; the arguments are those of LeRobot's `create_inference_engine`.

    Raises:
        ValueError: The policy cannot merge as asked, or the config names a joint that the robot does not have.
    """
    names = list(ordered_action_keys)
    source: Source
    if policy.config.type == "remote":
        source = RemoteSource(policy, features=hw_features, task=task)
    else:
        source = LocalSource(
            policy,
            preprocessor,
            postprocessor,
            features=hw_features,
            action_names=names,
            task=task,
            robot_type=robot_wrapper.robot_type,
            device=device,
        )
    source = watching.watched(source)
    limits = limits_of(robot_wrapper.inner, config.limit_slack)
    limits |= by_entry(config.action_limits, names, "inference.action_limits")
    without = [name for name in names if name not in limits]
    if without:
        logger.info("no limits are known for %s; inference.action_limits sets them", ", ".join(without))
    checks = ActionChecks.of(names, limits)
    rest_position = config.rest_position
    if rest_position is not None:
        rest_position = by_entry(rest_position, names, "inference.rest_position")
        checks.check_rest_position(rest_position)
    by_entry(dict.fromkeys(config.hold_joints), names, "inference.hold_joints")
    merge = choose_merge(
        config.merge, source.supports_rtc, policy.config.type, ensembles=source.ensemble_coeff is not None
    )
    if merge in ("rtc", "aggregate") and config.chunk_size_threshold == 0:
        logger.warning(
            "inference.merge is %s, but with inference.chunk_size_threshold=0 a chunk is asked for when the last one is "
            "used up, and nothing is left to go on from; 0.5 asks at half of it",
            merge,
        )
    coeffs = (config.ensemble_coeff, source.ensemble_coeff, ACT_COEFF)
    logger.info("inference engine async: policy %s, merge %s", policy.config.type, merge)
    return AsyncInferenceEngine(
        config,
        source,
        merge=merge,
        checks=checks,
        fps=fps,
        rest_position=rest_position,
        warm_up=max(1, compile_warmup_inferences) if use_torch_compile else 0,
        ensemble_coeff=next(coeff for coeff in coeffs if coeff is not None),
        shutdown_event=shutdown_event,
    )


def choose_merge(wanted: str, supports_rtc: bool, policy: str, ensembles: bool = False) -> str:
    """The merge rule: `auto` takes `rtc` where it can, `ensemble` where the checkpoint says so.

    Raises:
        ValueError: `rtc` is wanted of a policy that cannot.
    """
    if wanted == "auto":
        return "rtc" if supports_rtc else "ensemble" if ensembles else "aggregate"
    if wanted == "rtc" and not supports_rtc:
        raise ValueError(
            f"inference.merge is rtc, but policy '{policy}' cannot continue a given chunk (it is no flow-matching "
            "policy with LeRobot's RTC, or its server says so); use inference.merge=aggregate or append."
        )
    return wanted
