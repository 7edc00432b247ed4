"""A source of chunks that does what the test says, and a clock that the test sets."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from lerobot_ext.rollout.checks import ActionChecks
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.engine import AsyncInferenceEngine
from lerobot_ext.rollout.sources import Answer, Request

NAMES = ("pan.pos", "grip.pos")
FPS = 30.0
PATIENCE_S = 10.0  # for what happens at once unless it never does


class Clock:
    """Seconds that only pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class ScriptedSource:
    """Every call waits until the test says what comes of it.

    Attributes:
        asked: The requests so far.
        resets: How often it was reset.
    """

    chunk_size = 10
    n_obs_steps = 1
    windows = {}
    patience_s = 1.0

    def __init__(self, supports_rtc: bool = True) -> None:
        self.supports_rtc = supports_rtc
        self.asked: list[Request] = []
        self.resets = 0
        self.on_reset: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._answers: dict[int, Answer | Exception] = {}

    def reset(self) -> None:
        with self._changed:
            self.resets += 1
            self._changed.notify_all()
        self.on_reset()

    def infer(self, request: Request) -> Answer:
        with self._changed:
            index = len(self.asked)
            self.asked.append(request)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: index in self._answers, PATIENCE_S), (
                "the test never answered"
            )
            answer = self._answers[index]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait_asked(self, count: int) -> Request:
        """Wait until `count` requests have been made; the newest."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, PATIENCE_S)
            return self.asked[count - 1]

    def wait_reset(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.resets >= count, PATIENCE_S)

    def answer(self, index: int, outcome: Answer | Exception | np.ndarray) -> None:
        """Let the request of that number (from 0) end so."""
        if isinstance(outcome, np.ndarray):
            outcome = Answer(outcome.astype(np.float32), outcome.astype(np.float32), {"round_trip_s": 0.01})
        with self._changed:
            self._answers[index] = outcome
            self._changed.notify_all()


class Rig:
    """An engine on a scripted source, driven tick by tick."""

    def __init__(self, *, merge="append", names=NAMES, limits=None, rest_position=None, warm_up=0, **options):
        self.source = ScriptedSource()
        self.clock = Clock()
        self.shutdown = threading.Event()
        self.shown = 0
        self.engine = AsyncInferenceEngine(
            AsyncInferenceConfig(**options),
            self.source,
            merge=merge,
            checks=ActionChecks.of(names, limits),
            fps=FPS,
            rest_position=rest_position,
            warm_up=warm_up,
            shutdown_event=self.shutdown,
            clock=self.clock,
        )

    def __enter__(self):
        self.engine.reset()
        self.engine.start()
        self.engine.resume()
        return self

    def __exit__(self, *exc_info):
        for index in range(len(self.source.asked) + 2):
            self.source.answer(index, RuntimeError("the test is over"))
        self.engine.stop()

    def show(self, **more) -> dict:
        """Notify an observation; the engine can tell it from others by `shown`."""
        self.shown += 1
        observation = dict.fromkeys(NAMES, 1.0) | {"shown": self.shown} | more
        self.engine.notify_observation(observation)
        return observation

    def act(self) -> list[float] | None:
        action = self.engine.get_action(None)
        return None if action is None else [round(value, 4) for value in action.tolist()]

    def tick(self, count: int = 1, dt: float = 1 / FPS) -> list:
        """Show and act, `count` times; the actions."""
        actions = []
        for _ in range(count):
            self.show()
            actions.append(self.act())
            self.clock.now += dt
        return actions

    def blind(self, count: int, dt: float = 1 / FPS) -> list:
        """Act `count` times without showing anything, so that nothing is asked for meanwhile; the actions."""
        actions = []
        for _ in range(count):
            actions.append(self.act())
            self.clock.now += dt
        return actions

    def settle(self, condition: Callable[[], bool]) -> None:
        """Wait until the engine's threads have got so far."""
        with self.engine._wake:
            assert self.engine._wake.wait_for(condition, PATIENCE_S)

    def chunk(self, index: int, outcome) -> None:
        """Answer request `index` and wait until the engine has dealt with it."""
        self.source.wait_asked(index + 1)
        self.source.answer(index, outcome)
        self.settle(lambda: not any(job.request is self.source.asked[index] for job in self.in_flight))

    @property
    def in_flight(self):
        return self.engine._in_flight.values()


def chunk(start: float, length: int = 10, second: float = 0.0) -> np.ndarray:
    """Rows (start + i, second)."""
    rows = np.full((length, 2), second, np.float32)
    rows[:, 0] = start + np.arange(length)
    return rows
