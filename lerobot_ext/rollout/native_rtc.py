"""Policies that continue a chunk in a way of their own, instead of by LeRobot's RTC processor: GR00T.

GR00T N1.7 starts its denoising from the leftover's rows and slows their velocity down: to nothing for those that will
have been executed, less and less up to the horizon (its `rtc_ramp_rate`). So of a request's options the delay and the
horizon count; guidance, schedule and clamp are of the other way, in `guidance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lerobot_ext.rollout.guidance import Guidance


def continues_itself(policy: Any, postprocessor: Any = None) -> bool:
    """Whether the policy is one of these, and a leftover is of use to it.

    Not to a GR00T that makes relative actions: its leftover belongs to the state that it was made from. That it does
    is said by its config or, for statistics that came with the model, by the postprocessor only.
    """
    if any(getattr(step, "use_relative_action", False) for step in getattr(postprocessor, "steps", ())):
        return False
    if getattr(policy, "name", None) != "groot":
        return False
    return bool(policy.supports_rtc()) and not getattr(policy.config, "use_relative_actions", False)


def continuing(request: Guidance) -> dict[str, Any]:
    """The arguments of `predict_action_chunk` for one sample that shall continue its leftover.

    GR00T takes the end of a leftover that is longer than its horizon, LeRobot its begin, as everybody here: so it gets
    the rows before the horizon only.
    """
    rows = request.left_over[: request.rtc.execution_horizon]
    return {
        "prev_chunk_left_over": rows,
        "inference_delay": min(request.rtc.inference_delay, len(rows)),
    }
