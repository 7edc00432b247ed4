"""The record of one episode of the engine: its clock, its counts, its lines in the telemetry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lerobot_ext.rollout.telemetry import TelemetryWriter

logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What happened so far.

    Attributes:
        ticks: How often an action was wanted.
        starved: How often none of a chunk was there.
        chunks: That were merged.
        refused: That were refused whole.
        faults: Outages.
    """

    ticks: int = 0
    starved: int = 0
    chunks: int = 0
    refused: int = 0
    faults: int = 0


class EpisodeLog:
    """Opens with an episode's first observation, closes with its end; between episodes events are not written.

    Args:
        writer: Where the lines go.
        clock: Monotonic, in seconds.
    """

    def __init__(self, writer: TelemetryWriter, clock: Callable[[], float]) -> None:
        self._writer, self._clock = writer, clock
        self._started: float | None = None
        self._episode = 0
        self.counts = Counts()

    @property
    def is_open(self) -> bool:
        """Whether an episode is on."""
        return self._started is not None

    def open(self, episode: int | None, **fields: Any) -> None:
        """The first observation is there."""
        self._started = self._clock()
        self.counts = Counts()
        self._episode = self._writer.start(episode, **fields)

    def event(self, name: str, **fields: Any) -> None:
        """Write a line, if an episode is on."""
        if self._started is not None:
            self._writer.event(name, self._clock() - self._started, **fields)

    def close(self) -> None:
        """The episode is over."""
        if self._started is None:
            return
        counts = self.counts
        self.event("end", **asdict(counts))
        self._started = None
        logger.info(
            "episode %d: %d control ticks, %d of them without an action; %d chunks, %d refused, %d faults",
            self._episode,
            counts.ticks,
            counts.starved,
            counts.chunks,
            counts.refused,
            counts.faults,
        )
