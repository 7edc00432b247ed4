"""From chunks that come to chunks that do not, and back: hold, rest, try again, resume, give up.

A state machine that is told the time and what happened, and says what may be done. Not thread-safe: its owner locks.

    well --fault--> lost --source reset--> recovering --chunk of a fresh observation--> well
    lost or recovering --give_up_s, or an error that trying again does not mend--> failed
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.episode import EpisodeLog
from lerobot_ext.rollout.faults import LASTING, Outage, RestMotion, describe
from simplify_work.wire.errors import RemoteInferenceError

logger = logging.getLogger(__name__)

# A refusal alone may be chance; from the second in a row on, or with nothing left to execute, it is an outage.
_REFUSALS = 2


class Recovery:
    """What an engine does about failures.

    Attributes:
        must_reset: The source has to be reset before it is asked again: an episode begins, or it was away.
        failed: Given up.

    Args:
        config: The engine's.
        names: The robot's action entries.
        fps: Actions a second.
        rest_position: Where `when_lost: rest` goes, by action entry; None: where the episode started.
        log: Of the episode.
        on_give_up: Called once.
    """

    def __init__(
        self,
        config: AsyncInferenceConfig,
        *,
        names: Sequence[str],
        fps: float,
        rest_position: Mapping[str, float] | None,
        log: EpisodeLog,
        on_give_up: Callable[[], None],
    ) -> None:
        self._config, self._names, self._fps = config, tuple(names), fps
        self._rest_position, self._log, self._on_give_up = rest_position, log, on_give_up
        self.failed = False
        self._outage: Outage | None = None
        self._paused_at: float | None = None
        self.new_episode()

    def new_episode(self) -> None:
        """Forget the last episode; an outage goes on."""
        self.must_reset = True
        self._recovering = False
        self._fresh = 0
        self._refusals = 0
        self._held_since: float | None = None
        self._rest: RestMotion | None = None

    def episode_opened(self) -> None:
        """Tell the new episode's telemetry of an outage that goes on."""
        if self._outage is not None:
            self._note_fault(self._outage)

    def paused(self, now: float) -> None:
        """No chunks are wanted for a while."""
        self._held_since = None
        if self._paused_at is None:
            self._paused_at = now

    def resumed(self, now: float) -> None:
        """They are wanted again: the pause does not count for an outage, which is tried again at once."""
        if self._outage is not None and self._paused_at is not None:
            self._outage.since += now - max(self._paused_at, self._outage.since)
            self._outage.retry_at = now
        self._paused_at = None

    # --- may the source be asked? ---

    @property
    def lost(self) -> bool:
        """No chunks come."""
        return self._outage is not None

    def may_try(self, now: float) -> bool:
        """Whether the source may be called now."""
        return not self.failed and (self._outage is None or now >= self._outage.retry_at)

    def retry_in(self, now: float) -> float | None:
        """Seconds until it may be called again; None if that is not a question of time."""
        return None if self._outage is None else max(0.0, self._outage.retry_at - now)

    def source_was_reset(self, newest: int) -> None:
        """It answers: after an outage, only an observation with a number above `newest` shows what is now."""
        self.must_reset = False
        if self._outage is not None:
            self._recovering = True
            self._fresh = newest + 1

    def is_fresh(self, observation: int) -> bool:
        """Whether a chunk of the observation of that number may be asked for, and used."""
        return observation >= self._fresh and (self._outage is None or self._recovering)

    # --- what happened ---

    def chunk_came(self, now: float) -> bool:
        """A good chunk is there. True if it ends an outage: what is queued was planned before."""
        self._refusals = 0
        if self._outage is None:
            return False
        after_s = now - self._outage.since
        logger.info("chunks come again after %.1f s", after_s)
        self._log.event("resumed", after_s=round(after_s, 3))
        self._outage, self._recovering = None, False
        return True

    def refused(self, now: float, text: str, queued: int) -> None:
        """A chunk was refused whole, with `queued` actions left to execute."""
        self._note_refusal(text)
        if self._refusals >= _REFUSALS or queued == 0 or self._outage is not None:
            self._lose(now, "refused", text, told=self._refusals > 1)
        else:
            logger.warning("%s", text)

    def call_failed(self, now: float, error: Exception) -> None:
        """A call of the source failed."""
        kind, text = describe(error)
        if isinstance(error, RemoteInferenceError):
            # Also what the client says of a chunk that is not finite or not as wide as was announced.
            self._note_refusal(text)
        if isinstance(error, LASTING):
            self._lose(now, kind, text, told=True)  # by what follows
            self.give_up(text)
        else:
            self._lose(now, kind, text)

    def acted(self) -> None:
        """An action of a chunk was handed out."""
        self._held_since = self._rest = None

    def without_action(
        self, now: float, last: NDArray[np.float32] | None, home: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        """What to send on a tick without an action: None (hold), or a step of the way to the rest position.

        Args:
            now: The time.
            last: (dim,) what was sent last in this episode; None if nothing was.
            home: (dim,) position at the episode's start; None if the observation does not tell.
        """
        if self._held_since is None:
            self._held_since = now
        self._give_up_if_due(now)
        if self.failed or self._outage is None or self._config.when_lost != "rest":
            return None
        # While it recovers, the arm has to stay where the fresh observation sees it.
        if self._recovering or now - self._held_since < self._config.max_hold_s:
            return None
        if self._rest is None:
            self._rest = self._way_to_rest(home if last is None else last, home)
        return None if self._rest is None else self._rest.next()

    def _way_to_rest(
        self, start: NDArray[np.float32] | None, home: NDArray[np.float32] | None
    ) -> RestMotion | None:
        if start is None or (home is None and self._rest_position is None):
            return None
        target = start.copy() if self._rest_position is not None else home
        for name, value in (self._rest_position or {}).items():
            target[self._names.index(name)] = value
        logger.warning("no chunks for %g s: the arm goes to its rest position", self._config.max_hold_s)
        return RestMotion(start, target, self._config.rest_speed / self._fps)

    def _note_refusal(self, text: str) -> None:
        self._refusals += 1
        self._log.counts.refused += 1
        self._log.event("refused", text=text)

    def _note_fault(self, outage: Outage) -> None:
        self._log.counts.faults += 1
        self._log.event("fault", kind=outage.kind, text=outage.text)

    def _lose(self, now: float, kind: str, text: str, told: bool = False) -> None:
        """No chunks come from now on; `told`: the log has the reason already."""
        self.must_reset, self._recovering = True, False
        if self._outage is None:
            self._outage = Outage(now, kind, text)
            self._note_fault(self._outage)
            if not told:
                logger.warning(
                    "no chunks (%s): %s The arm executes what it has, then %s, and goes on by itself when chunks come "
                    "again; after %g s without, the run ends.",
                    kind,
                    text,
                    "holds" if self._config.when_lost == "hold" else "holds and goes to rest",
                    self._config.give_up_s,
                )
        self._outage.failed(now, text)
        self._give_up_if_due(now)

    def _give_up_if_due(self, now: float) -> None:
        # Also when a call neither returns nor fails, which is no outage yet.
        waits = [
            since for since in (self._held_since, self._outage and self._outage.since) if since is not None
        ]
        if waits and now - min(waits) >= self._config.give_up_s:
            why = self._outage.text if self._outage else "the policy has not answered at all."
            self.give_up(f"no chunks for {self._config.give_up_s:g} s: {why}")

    def give_up(self, why: str) -> None:
        """End the run."""
        if self.failed:
            return
        self.failed = True
        logger.error("the run ends: %s", why)
        self._log.event("fault", kind="gave_up", text=why)
        self._on_give_up()
