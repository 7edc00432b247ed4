"""Configuration of the inference engine `async`: `lerobot-rollout --inference.type=async`.

Registered with LeRobot when this module is imported, which `compat` does once LeRobot's engines are; nothing heavy is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lerobot.rollout.inference.factory import InferenceEngineConfig

from lerobot_ext.rollout.forecast import percentile_of
from lerobot_ext.rollout.merge import MERGES, WEIGHTS
from simplify_work.wire.messages import MAX_GUIDANCE_WEIGHT, Rtc

CHOICES = {
    "merge": ("auto", *MERGES),
    "aggregate": tuple(WEIGHTS),
    "requests_in_flight": (1, 2),
    "guidance": ("identity", "jacobian"),
    "schedule": ("zeros", "ones", "linear", "exp"),
    "when_lost": ("hold", "rest"),
    "resample": ("linear", "hold", "cubic"),
}


@InferenceEngineConfig.register_subclass("async")
@dataclass
class AsyncInferenceConfig(InferenceEngineConfig):
    """Chunks are asked for in the background while the control loop executes the last one.

    Joints may be named with or without their ending: `shoulder_pan` or `shoulder_pan.pos`.

    Attributes:
        actions_per_chunk: Actions of a chunk that are kept; all if None.
        chunk_size_threshold: Ask again when at most this share of a chunk is queued, 0 to 1.
        merge: `rtc`, `aggregate`, `append` or `ensemble` (ACT's temporal ensembling: a chunk is asked for at every
            step); `auto`: `rtc` where the policy can, `ensemble` where the checkpoint says so, else `aggregate`.
        aggregate: How `aggregate` mixes actions for the same timestep: `weighted_average` (0.3 old + 0.7 new),
            `latest_only`, `average`, `conservative` (0.7 old + 0.3 new).
        ensemble_coeff: Of `ensemble`: chunk i of those for a timestep, the oldest being 0, weighs exp(-coeff * i); if
            None the checkpoint's, or that of the original work (0.01) if it has none.
        requests_in_flight: 2: a second request may leave before the first is answered.
        latency: The delay that is expected: `max` of the recent ones, or a percentile as `p95`.
        latency_window: How many recent ones.
        guidance: Of `rtc`: `identity` (LeRobot's) or `jacobian` (the paper's).
        schedule: Of `rtc`: how the binding to the old chunk falls: `zeros`, `ones`, `linear`, `exp`.
        execution_horizon: Of `rtc`: steps from which on nothing binds (the paper's H - s); all that is left if None.
        max_guidance_weight: Of `rtc`: clamp of the guidance (the paper's beta).
        seed: Makes chunks repeatable: the n-th that an episode asks for draws its noise from `seed + n`; if None, of a
            policy of type `remote` that one's own seed counts.
        when_lost: When no chunks come: `hold` the last position, or go to `rest` after `max_hold_s`.
        max_hold_s: Seconds.
        give_up_s: The rollout ends when chunks have not come for so long.
        rest_position: Where `rest` is, by joint, in the action's units; that of the episode's start if None.
        rest_speed: Of the fastest joint on the way there, in the action's units a second.
        action_limits: By joint, [least, greatest]; they come before those derived from the robot's calibration.
        limit_slack: How far beyond a derived limit an action may be, as a share of the joint's range.
        telemetry_dir: Gets one `episode_000000.jsonl` an episode; none if None.
        policy_hz: Policy steps a second: observations read and recorded, actions taken from a chunk. With it and
            `control_hz` our own loop runs an episode, see `rollout.loop`; without both LeRobot's does.
        control_hz: Positions commanded a second; `policy_hz` or more, any ratio.
        resample: The way from one action to the next: `linear`, `cubic` (smooth at the actions, never beyond them),
            or `hold` (each stays until the next).
        hold_joints: Joints that are not resampled: each action stays until the next. For grippers.
        max_step: Largest change of a joint's commanded position from one send to the next, in the action's units.
        max_steps: Policy steps of an episode, which then ends.
        monitor_s: Seconds between two lines in the log on how the loop is doing; 0: none.
    """

    actions_per_chunk: int | None = None
    chunk_size_threshold: float = 0.5
    merge: str = "auto"
    aggregate: str = "weighted_average"
    ensemble_coeff: float | None = None
    requests_in_flight: int = 1
    latency: str = "max"
    latency_window: int = 10
    guidance: str = "identity"
    schedule: str = "linear"
    execution_horizon: int | None = None
    max_guidance_weight: float = 10.0
    seed: int | None = None
    when_lost: str = "hold"
    max_hold_s: float = 2.0
    give_up_s: float = 60.0
    rest_position: dict[str, float] | None = None
    rest_speed: float = 20.0
    action_limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    limit_slack: float = 0.1
    telemetry_dir: str | None = None
    policy_hz: float | None = None
    control_hz: float | None = None
    resample: str = "linear"
    hold_joints: list[str] = field(default_factory=list)
    max_step: float | None = None
    max_steps: int | None = None
    monitor_s: float = 5.0

    def __post_init__(self) -> None:
        """Check what can be checked without a robot.

        Raises:
            ValueError: With one sentence that names the option, what it is and what it may be.
        """
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), "one of " + ", ".join(map(str, choices)))
        for name in ("actions_per_chunk", "execution_horizon"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _wrong(name, value, "1 or more, or null")
        if not 0 <= self.chunk_size_threshold <= 1:
            raise _wrong("chunk_size_threshold", self.chunk_size_threshold, "a share of the chunk, 0 to 1")
        if self.latency_window < 1:
            raise _wrong("latency_window", self.latency_window, "1 or more")
        percentile_of(self.latency)
        if self.ensemble_coeff is not None and not math.isfinite(self.ensemble_coeff):
            raise _wrong("ensemble_coeff", self.ensemble_coeff, "a number, or null")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise _wrong("seed", self.seed, "0 to 2**32 - 1, or null")
        if not 0 < self.max_guidance_weight <= MAX_GUIDANCE_WEIGHT:
            raise _wrong(
                "max_guidance_weight",
                self.max_guidance_weight,
                f"a number above 0, up to {MAX_GUIDANCE_WEIGHT:g}",
            )
        for name in ("give_up_s", "rest_speed"):
            if not getattr(self, name) > 0:
                raise _wrong(name, getattr(self, name), "a number above 0")
        for name in ("max_hold_s", "limit_slack"):
            if not getattr(self, name) >= 0:
                raise _wrong(name, getattr(self, name), "0 or more")
        for joint, limits in self.action_limits.items():
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise _wrong(f"action_limits.{joint}", list(limits), "[least, greatest]")
        for joint, value in (self.rest_position or {}).items():
            if not math.isfinite(value):
                raise _wrong(f"rest_position.{joint}", value, "a finite number, in the action's units")
        if self.rest_position and self.when_lost != "rest":
            raise ValueError(
                f"inference.rest_position is given, but inference.when_lost is {self.when_lost}, so the arm would never "
                "go there: set inference.when_lost=rest, or leave rest_position out."
            )
        self._check_pace()

    def _check_pace(self) -> None:
        if self.policy_hz is None and self.control_hz is None:
            for name, unset in (
                ("resample", "linear"),
                ("hold_joints", []),
                ("max_step", None),
                ("max_steps", None),
                ("monitor_s", 5.0),
            ):
                if getattr(self, name) != unset:
                    raise ValueError(
                        f"inference.{name} is {getattr(self, name)}, but it is for the loop with two rates: give "
                        "inference.policy_hz and inference.control_hz, too (they may be equal)."
                    )
            return
        for name, other in (("policy_hz", "control_hz"), ("control_hz", "policy_hz")):
            value = getattr(self, name)
            if value is None:
                raise ValueError(
                    f"inference.{other} is {getattr(self, other)}, but inference.{name} is not given; "
                    "give both (they may be equal), or neither for LeRobot's own loop."
                )
            if not (value > 0 and math.isfinite(value)):
                raise _wrong(name, value, "a number above 0")
        if self.control_hz < self.policy_hz:
            raise _wrong("control_hz", self.control_hz, f"at least inference.policy_hz, {self.policy_hz}")
        if self.max_step is not None and not self.max_step > 0:
            raise _wrong("max_step", self.max_step, "a number above 0, or null")
        if self.max_steps is not None and self.max_steps < 1:
            raise _wrong("max_steps", self.max_steps, "1 or more, or null")
        if not (self.monitor_s >= 0 and math.isfinite(self.monitor_s)):
            raise _wrong("monitor_s", self.monitor_s, "0 or more")

    @property
    def paced(self) -> bool:
        """Whether our own loop runs an episode, at `policy_hz` and `control_hz`."""
        return self.policy_hz is not None

    def rtc(self, delay: int, left: int) -> Rtc:
        """How to continue what is left of the old chunk.

        All of it binds, as in the paper (H - s), unless `execution_horizon` says less; what will have been executed
        when the new chunk arrives binds in any case.

        Args:
            delay: The forecast, in steps.
            left: Rows of the leftover.
        """
        delay = min(delay, left)
        horizon = left if self.execution_horizon is None else min(self.execution_horizon, left)
        return Rtc(delay, max(horizon, delay), self.guidance, self.schedule, self.max_guidance_weight)


def _wrong(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"inference.{name} is {value}, expected {expected}.")
