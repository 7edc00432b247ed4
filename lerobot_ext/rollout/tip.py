"""The language tip at a rollout: told to a policy that was trained on tips, and to no other.

It becomes part of the task before the engine is made, by the function that appends it in training; so it is the same
text for every engine, and for a policy here or on a server. What is recorded follows what the policy was told.
"""

from __future__ import annotations

import logging
from typing import Any

from lerobot_ext.modality.step import with_tip
from lerobot_ext.recording.tips import TipPlan, tips

logger = logging.getLogger(__name__)

LEFT_OUT = (
    "language tip '%s' is left out: the policy was not trained on tips (train it with use_language_tip: true)"
)
NONE_GIVEN = (
    "the policy was trained on language tips and none is given: it is told the task alone, as for episodes without a "
    "tip; `lerobot-ext evaluate --dataset.language_tip=TEXT` gives one"
)


def tell(task: str | None, policy: Any, preprocessor: Any) -> str | None:
    """The task as the policy shall be told it, with the session's tip if the policy was trained on tips.

    Args:
        task: As the operator gave it.
        policy: A LeRobot policy; one of type `remote` says what its server says.
        preprocessor: The checkpoint's.
    """
    tip = tips.at(0)
    if not takes_tip(policy, preprocessor):
        if tip:
            logger.warning(LEFT_OUT, tip)
            tips.plan = TipPlan(("",))
        return task
    if not tip:
        logger.info(NONE_GIVEN)
    return with_tip(task or "", tip) if tip else task


def takes_tip(policy: Any, preprocessor: Any) -> bool:
    """Whether a policy was trained on language tips: its checkpoint's preprocessor knows, or its server."""
    welcome = getattr(policy, "welcome", None)
    if welcome is not None:
        return bool(welcome.takes_tip)
    return any(getattr(step, "takes_tip", False) for step in getattr(preprocessor, "steps", ()))
