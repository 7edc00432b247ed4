"""Which arms and cameras a robot has, by the names that its observations and actions give them.

A robot of one arm is that arm. One of two arms, LeRobot's `bi_so_follower` or ours, puts `left_` and `right_` before
what belongs to an arm. Nothing here imports LeRobot: it is asked of robots and of their configurations as they are.
"""

from __future__ import annotations

from typing import Any

SIDES = ("left", "right")


def arms_of(robot: Any) -> dict[str, Any]:
    """The arms of a robot by the prefix of their joints' names: `{"": robot}`, or `{"left_": ..., "right_": ...}`."""
    arms = {f"{side}_": getattr(robot, f"{side}_arm", None) for side in SIDES}
    return arms if None not in arms.values() else {"": robot}


def cameras_of(robot: Any) -> dict[str, Any]:
    """The cameras of a robot by the names that its observations give them."""
    # LeRobot's robot of two arms gives the cameras at the top to its left arm.
    at_the_top = getattr(robot, "_top_level_cam_keys", ())
    found = {
        name if name in at_the_top else f"{prefix}{name}": camera
        for prefix, arm in arms_of(robot).items()
        for name, camera in (getattr(arm, "cameras", None) or {}).items()
    }
    return found or dict(getattr(robot, "cameras", None) or {})  # our robot of two arms holds them all itself


def camera_sections(config: Any) -> dict[str, dict[str, Any]]:
    """The camera sections of a robot's configuration, as they are, by the prefix of their cameras' names."""
    sections = {f"{side}_": getattr(config, f"{side}_arm_config", None) for side in SIDES}
    found = {"": getattr(config, "cameras", None)}
    found |= {prefix: getattr(section, "cameras", None) for prefix, section in sections.items()}
    return {prefix: cameras for prefix, cameras in found.items() if cameras}
