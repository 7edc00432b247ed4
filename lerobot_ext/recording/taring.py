"""Sensors are tared at the start of every episode, whether a person or a policy drives the arm.

What taring is, a sensor knows; when an episode starts, `episodes` knows. Here is what happens when a sensor refuses
because something touches it, and the check at the episode's end that its zero has not wandered.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.errors import UserError
from lerobot_ext.recording.episodes import EpisodeListener, add_listener

if TYPE_CHECKING:
    from lerobot.robots import Robot

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0  # for a person to see the message and let go
PAUSE_S = 0.2
SHOWN = 3  # channels of a baseline in the log line; all of them are in the journal

TOUCHED = "%s Waiting up to %.0f s for it to be let go; the episode starts then."
STILL_TOUCHED = (
    "{refused} It was tried for {patience_s:.0f} s. No episode was started; the episodes saved before are safe. Let go "
    "of the sensor and go on with --resume=true."
)
DRIFTED = (
    "force sensor '%s' drifted: at the episode's end channel %s is %.3g %s from zero, more than %.3g. If something "
    "still touches it, let go before an episode ends; if nothing does, keep episodes short, and let the sensor warm up."
)


class Taring:
    """Tares at each episode's start, checks the zero at its end, and remembers both for the journal.

    Attributes:
        patience_s: How long a person has for letting go of a sensor that refuses.
        baselines: Of the last tare: each sensor's baseline (raw channels,), in raw units, by its name.
        drifts: Of the last episode that ended: how far the channel that moved most is from zero, by the sensor's
            name, in that channel's unit. A sensor that cannot tell, because it is touched, is left out.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        """Nothing is tared yet."""
        self.patience_s = patience_s
        self.baselines: dict[str, NDArray[np.float32]] = {}
        self.drifts: dict[str, float] = {}

    def tare(self, robot: Robot) -> None:
        """Tare the force sensors of `robot`, if it has any, and log each baseline.

        Raises:
            UserError: A sensor was touched for `patience_s`; the episode must not start.
            ConnectionError: A sensor gave too few samples; likewise.
        """
        from lerobot_ext.sensors.zero import TareRefused

        self.baselines, self.drifts = {}, {}
        robot = getattr(robot, "inner", robot)
        if not hasattr(robot, "tare"):
            return
        give_up_s = time.perf_counter() + self.patience_s
        said = False
        while True:
            try:
                self.baselines = robot.tare()
                break
            except TareRefused as refused:
                if time.perf_counter() >= give_up_s:
                    text = STILL_TOUCHED.format(refused=_sentence(refused), patience_s=self.patience_s)
                    raise UserError(text) from refused
                if not said:
                    logger.warning(TOUCHED, _sentence(refused), self.patience_s)
                    said = True
                time.sleep(PAUSE_S)
        if said:
            logger.info("nothing touches the sensors any more; the episode starts")
        for name, baseline in self.baselines.items():
            logger.info("tared '%s': baseline %s", name, _short(baseline))

    def check(self, robot: Robot) -> None:
        """Warn of each sensor of `robot` whose zero wandered during the episode; never fails."""
        robot = getattr(robot, "inner", robot)
        for name, sensor in getattr(robot, "force_sensors", {}).items():
            if name not in self.baselines:
                continue
            try:
                drift = sensor.drift()
            except (ConnectionError, TimeoutError, RuntimeError) as error:
                # The sensor's own reads have said so by now, or the next tare will.
                logger.debug("drift of '%s' is unknown: %s", name, error)
                continue
            if drift is None:
                continue
            self.drifts[name] = drift.amount
            if drift.exceeds:
                logger.warning(DRIFTED, name, drift.channel, drift.amount, drift.unit, drift.allowed)


taring = Taring()


def install() -> None:
    """Tare at the start of every episode from now on, and check for drift at its end."""
    add_listener(EpisodeListener(name="taring", on_start=taring.tare, on_end=taring.check, order=10))


def _sentence(error: Exception) -> str:
    return f"{str(error).rstrip(' .')}."


def _short(baseline: NDArray[np.float32]) -> str:
    shown = ", ".join(f"{value:.1f}" for value in baseline[:SHOWN])
    return f"[{shown}{', …' if len(baseline) > SHOWN else ''}]"
