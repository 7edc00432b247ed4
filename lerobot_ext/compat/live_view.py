"""The live view: more of the observation, by the robot behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext import patching
from lerobot_ext.extension import Extension


def _log_visualization_data(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def log_visualization_data(*args: Any, **kwargs: Any) -> None:
        from lerobot_ext.recording import live_view

        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        mode, action = given.arguments["display_mode"], given.arguments["action"]
        rest = live_view.show(mode, given.arguments["observation"])
        given.arguments["observation"] = rest
        original(*given.args, **given.kwargs)
        live_view.arrange(mode, rest, action)

    return log_visualization_data


def _teleop_loop(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def teleop_loop(*args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording import live_view

        live_view.watch(signature.bind(*args, **kwargs).arguments["robot"])
        return original(*args, **kwargs)

    return teleop_loop


EXTENSIONS = (
    Extension(
        "lerobot.utils.visualization_utils",
        "log_visualization_data",
        "Draws an observation without knowing the robot: in Rerun, depth gets its range, force its names and a pad its "
        "arrows, and the devices' ages and counts are shown.",
        "display_mode observation action compress_images",
        _log_visualization_data,
    ),
    Extension(
        "lerobot.scripts.lerobot_teleoperate",
        "teleop_loop",
        "Has no episodes: says to the live view which robot it drives.",
        "teleop robot fps teleop_action_processor robot_action_processor robot_observation_processor display_data "
        "display_mode duration display_compressed_images",
        _teleop_loop,
    ),
)
