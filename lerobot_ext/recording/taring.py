"""Sensors are tared at the start of every episode, whether a person or a policy drives the arm.

What taring is, a sensor knows; when an episode starts, `episodes` knows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from lerobot_ext.recording.episodes import EpisodeListener, add_listener

if TYPE_CHECKING:
    from lerobot.robots import Robot

logger = logging.getLogger(__name__)


def install() -> None:
    """Tare at the start of every episode from now on."""
    add_listener(EpisodeListener(name="taring", on_start=tare, order=10))


def tare(robot: Robot) -> None:
    """Tare the force sensors of `robot`, if it has any, and log each baseline.

    Raises:
        ConnectionError: A sensor gave too few samples; the episode must not start.
    """
    robot = getattr(robot, "inner", robot)
    if not hasattr(robot, "tare"):
        return
    for name, baseline in robot.tare().items():
        numbers = np.array2string(baseline, precision=2, separator=", ", max_line_width=np.inf)
        logger.info("tared '%s' at the episode's start, baseline %s", name, numbers)
