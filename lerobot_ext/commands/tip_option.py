"""`dataset.language_tip` of `record` and `evaluate`: taken out of the YAML and the options, which LeRobot reads too.

LeRobot's dataset config does not know it, so its parser must not see it. What it may be is in `recording.tips`.
"""

from __future__ import annotations

import difflib
from typing import Any

import yaml

from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording.tips import TipPlan

OPTION = f"dataset.{TIP}"
NEAR = 0.8  # how alike a misspelt key must be


def take_option(argv: list[str]) -> tuple[list[str], str | None]:
    """Take the option out of `argv`.

    Returns:
        The other words in their order, and its value; None if it is not there.
    """
    rest: list[str] = []
    value = None
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, text = word.partition("=")
        if key != f"--{OPTION}":
            rest.append(word)
        elif equals or not words:
            value = text
        else:
            value = words.pop(0)
    return rest, value


def take(data: dict[str, Any], option: str | None, source: str) -> TipPlan | None:
    """Take the tips out of the YAML's `data`, in which the option, where it is given, is laid over them.

    Raises:
        UserError: They are nothing that tips can be.
    """
    dataset = data.get("dataset")
    value = None
    if isinstance(dataset, dict):
        value = dataset.pop(TIP, None)
        for key in dataset:
            if difflib.get_close_matches(str(key), [TIP], cutoff=NEAR):
                raise UserError(f"{source}: there is no key 'dataset.{key}'; did you mean '{OPTION}'?")
    if option is not None:
        # A text may have any characters; only what looks like a list or a mapping is read as one.
        value = yaml.safe_load(option) if option[:1] in "[{" and option else option
    return None if value is None else TipPlan.of(value, OPTION)


def one(plan: TipPlan | None) -> None:
    """Refuse several tips where one is wanted.

    Raises:
        UserError: There are several.
    """
    if plan is not None and (plan.by_episode or len(plan.choices) > 1):
        raise UserError(
            f"{OPTION} has several texts; a policy is told one, the same in every episode: give that one, and another "
            "run for another."
        )
