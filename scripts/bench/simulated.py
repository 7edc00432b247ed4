"""The shipped inference engine `async` in simulated time: as fast as it computes, and the same at every run.

The engine is used by its public methods, with its own thread; only its clock is ours, and the condition on which its
threads wait, so that a tick ends when they have nothing left to do. What reaches the robot is returned tick by tick,
with the share that each chunk has in it. Not a benchmark itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common  # noqa: F401  (puts the repository on the path)
import numpy as np

from lerobot_ext.rollout.checks import ActionChecks
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.engine import AsyncInferenceEngine
from lerobot_ext.rollout.sources import Answer, Request

# Makes a chunk: (request, number of the chunk) -> (actions, model_actions or None); the observation is the request's.
MakeChunk = Callable[[Request, int], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Executed:
    """What happened in a simulated episode of n ticks.

    Attributes:
        actions: (n, dim) float32; on a tick with an empty queue the last one again, as the servos hold it.
        shares: (n, chunks) float32: of what chunk each action is, or how a rule mixed it; zeros where starved.
        starved: (n,) bool: nothing was in the queue.
        asked: (chunks,) int: tick of the observation that each chunk was made from.
        delays: (chunks,) int: ticks from there to its arrival; negative if it never came.
    """

    actions: np.ndarray
    shares: np.ndarray
    starved: np.ndarray
    asked: np.ndarray
    delays: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """(n - 1,): largest change of a joint from tick to tick."""
        return np.abs(np.diff(self.actions, axis=0)).max(1)

    def jumps(self) -> np.ndarray:
        """For each chunk after the first: the largest step at a tick where its share grows, also after a hold."""
        grows = np.diff(self.shares, axis=0) > 1e-4
        columns = [self.steps[grows[:, chunk]] for chunk in range(1, self.shares.shape[1])]
        return np.array([steps.max() for steps in columns if len(steps)])

    def inner(self) -> np.ndarray:
        """Steps at ticks where no share changes, inside a chunk."""
        same = np.abs(np.diff(self.shares, axis=0)).max(1) <= 1e-4
        return self.steps[same & ~self.starved[1:]]

    def age(self) -> np.ndarray:
        """Ticks since the observation of what is executed, of mixed actions the mean; starved ticks left out."""
        ticks = np.arange(len(self.actions)) - self.shares @ self.asked
        return ticks[~self.starved]


class _Parking:
    """Knows when every thread of the engine is parked: it waits for work, or in the source for its answer's time."""

    def __init__(self, threads: int) -> None:
        self._threads, self._parked = threads, 0
        self._changed = threading.Condition()

    def park(self, by: int) -> None:
        with self._changed:
            self._parked += by
            self._changed.notify_all()

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until all are parked.

        Raises:
            RuntimeError: If they are not after `timeout` seconds of real time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._parked >= self._threads, timeout):
                raise RuntimeError(f"the engine's thread is still busy after {timeout:g} s; see its log.")


class _Condition(threading.Condition):
    """The engine's condition; a thread is parked from its wait to the notification that wakes it, not a moment less."""

    def __init__(self, parking: _Parking) -> None:
        super().__init__()
        self._parking, self._sleepers = parking, 0

    def wait(self, timeout: float | None = None) -> bool:
        self._sleepers += 1
        self._parking.park(1)
        # Simulated time does not pass meanwhile, so a timeout would only ask the same question again.
        return super().wait()

    def notify_all(self) -> None:
        self._parking.park(-self._sleepers)
        self._sleepers = 0
        super().notify_all()


class _Source:
    """Makes chunks; an answer leaves when simulated time has come. Appends to each action whose it is."""

    n_obs_steps = 1
    windows: dict[str, int] = {}
    supports_rtc = True
    patience_s = None

    def __init__(self, make: MakeChunk, chunk_size: int, most: int, latency, parking: _Parking) -> None:
        self._make, self.chunk_size, self._most, self._latency = make, chunk_size, most, latency
        self._parking = parking
        self._flying: list[tuple[float, int, threading.Event]] = []
        self.now = 0.0
        self.asked: list[int] = []
        self.arrived: dict[int, int] = {}

    def reset(self) -> None:
        """Nothing is remembered."""

    def infer(self, request: Request) -> Answer:
        """The chunk, with a column for each chunk there may be: 1 in its own."""
        number = len(self.asked)
        self.asked.append(request.observations[-1]["tick"])
        due, due_now = self.now + self._latency(), threading.Event()
        actions, model_actions = self._make(request, number)
        whose = np.zeros((len(actions), self._most), np.float32)
        whose[:, number] = 1
        answer = Answer(np.hstack([actions, whose]).astype(np.float32), model_actions)
        self._flying.append((due, number, due_now))
        self._parking.park(1)
        due_now.wait()
        return answer

    def deliver(self, tick: int | None) -> None:
        """Let the answers go that are due, one after another; None: all, the episode is over."""
        self._parking.settle()
        while self._flying:
            due, number, due_now = min(self._flying, key=lambda flight: flight[:2])
            if tick is not None and due > self.now + 1e-9:
                return
            self._flying.remove((due, number, due_now))
            self.arrived.setdefault(number, -1 if tick is None else tick)
            self._parking.park(-1)
            due_now.set()
            if tick is not None:
                self._parking.settle()


def simulate(
    config: AsyncInferenceConfig,
    merge: str,
    make: MakeChunk,
    observations: Sequence[dict[str, Any]],
    *,
    chunk_size: int,
    dim: int,
    fps: float,
    latency: Callable[[], float],
) -> Executed:
    """Run one episode.

    In a tick: answers that have come are merged, the observation is shown, an action is taken. The engine asks by its
    own rule, with the newest observation.

    Args:
        config: Of the engine.
        merge: `rtc`, `aggregate` or `append`.
        make: The policy.
        observations: One for each tick; `tick` is added to each.
        chunk_size: Actions in a chunk.
        dim: Width of an action.
        fps: Ticks a second.
        latency: Seconds from an observation to its chunk, for the next one.
    """
    most = len(observations) + 2
    parking = _Parking(config.requests_in_flight)
    source = _Source(make, chunk_size, most, latency, parking)
    names = [f"joint_{i}" for i in range(dim)] + [f"chunk_{i}" for i in range(most)]
    engine = AsyncInferenceEngine(
        config, source, merge=merge, checks=ActionChecks.of(names), fps=fps, clock=lambda: source.now
    )
    engine._wake = _Condition(parking)
    engine.start()
    engine.resume()
    rows: list[np.ndarray | None] = []
    try:
        for tick, observation in enumerate(observations):
            source.now = tick / fps
            source.deliver(tick)
            engine.notify_observation({**observation, "tick": tick})
            source.deliver(tick)
            action = engine.get_action(None)
            rows.append(None if action is None else action.numpy())
            parking.settle()
    finally:
        engine.pause()
        source.deliver(None)
        engine.stop()
    return _executed(rows, source, dim)


def _executed(rows: list[np.ndarray | None], source: _Source, dim: int) -> Executed:
    held = next((row for row in rows if row is not None), np.zeros(dim, np.float32))[:dim]
    chunks = len(source.asked)
    actions, shares = [], np.zeros((len(rows), chunks), np.float32)
    for tick, row in enumerate(rows):
        if row is not None:
            held, shares[tick] = row[:dim], row[dim : dim + chunks]
        actions.append(held)
    delays = [
        arrived - asked
        for asked, (_, arrived) in zip(source.asked, sorted(source.arrived.items()), strict=True)
    ]
    starved = np.array([row is None for row in rows])
    return Executed(np.stack(actions), shares, starved, np.array(source.asked), np.array(delays))
