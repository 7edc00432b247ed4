"""What is known about an observation beside its numbers: how old its parts are, and what went wrong on the way."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObservationReport:
    """Of one observation.

    Attributes:
        ages_ms: By device: how long before the joints were read its picture or sample was taken; a little negative
            if it was taken after. A device that does not tell when is not in it.
        counts: Since the robot was connected: `arm.retries` (instructions on the bus that were tried again),
            `arm.reopened` (times the port was opened again), `<device>.skipped` (observations that waited for it),
            `left_arm.retries` and so on of a robot of two arms,
            and what a camera or sensor counts itself: `<camera>.received`, `.dropped`, `.repeated`, `.reconnects`.
    """

    ages_ms: dict[str, float]
    counts: dict[str, int]

    def log(self) -> None:
        """Write the ages into the log, at debug."""
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("observation_ages_ms: %s", {name: round(ms, 1) for name, ms in self.ages_ms.items()})
