"""Robots whose observations come to an end, such as `replay`: each play is an episode of LeRobot's loops.

Such a robot has `more` and `playing(at_end)`, see `ReplayRobot`; for any other robot nothing here changes anything.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any


def playing(robot: Any, events: dict | None) -> AbstractContextManager:
    """Around a loop with LeRobot's keyboard events: it ends with the robot's play, and the run with the last one."""
    robot = getattr(robot, "inner", robot)
    if not hasattr(robot, "playing") or events is None:
        return nullcontext()

    def at_end() -> None:
        events["exit_early"] = True
        if not robot.more:
            events["stop_recording"] = True

    return robot.playing(at_end)


def run_plays(run: Callable[[Any, Any], None], strategy: Any, ctx: Any) -> None:
    """LeRobot's `BaseStrategy.run`, once for each play of such a robot.

    Args:
        run: The method.
        strategy: Its `self`, with the engine.
        ctx: LeRobot's `RolloutContext`. Its `duration` counts for all plays together.
    """
    robot = ctx.hardware.robot_wrapper.inner
    if not hasattr(robot, "playing"):
        run(strategy, ctx)
        return
    engine, given, stop = strategy._engine, ctx.runtime.cfg, ctx.runtime.shutdown_event
    started = time.perf_counter()
    while robot.more and not stop.is_set():
        cfg = copy.copy(given)  # LeRobot loads the policy again for a `dataclasses.replace`
        if given.duration > 0:
            cfg.duration = given.duration - (time.perf_counter() - started)
            if cfg.duration <= 0:
                return
        over = _Either(stop)
        with robot.playing(over.set):
            engine.pause()
            engine.notify_observation(None)
            engine.reset()
            strategy._interpolator.reset()
            try:
                run(strategy, replace(ctx, runtime=replace(ctx.runtime, cfg=cfg, shutdown_event=over)))
            finally:
                if hasattr(engine, "end_episode"):
                    engine.end_episode()


class _Either(threading.Event):
    """Set when it is itself, or when another event is: the end of a play, or of the run."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()
