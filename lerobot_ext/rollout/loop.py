"""The control loop with two rates: observations and actions at `policy_hz`, positions to the robot at `control_hz`.

It acts; chunks are made by the engine's threads. What is recorded and shown, and when LeRobot's strategies end an
episode, is said by callbacks (see `paced`).
"""

from __future__ import annotations

import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from lerobot.utils.robot_utils import precise_sleep

from lerobot_ext.errors import UserError
from lerobot_ext.rollout.engine import AsyncInferenceEngine
from lerobot_ext.rollout.monitor import Monitor, Tally
from lerobot_ext.rollout.resample import LOOK_AHEAD, Resampler

logger = logging.getLogger(__name__)

Observation = Mapping[str, Any]
Action = dict[str, float]

# From that share of late ticks on, the end of an episode says what may be done about it.
_MANY_LATE = 0.01
_SWITCH_INTERVAL_S = 0.0005


class Arm(Protocol):
    """What the loop needs of a robot."""

    def get_observation(self) -> dict[str, Any]:
        """What it sees now."""

    def send_action(self, action: dict[str, Any]) -> Any:
        """Go there."""


@dataclass(frozen=True)
class Send:
    """When a position was sent, by `time.perf_counter_ns`.

    Attributes:
        deadline_ns: When it was due.
        sent_ns: Right before `send_action` was called.
    """

    deadline_ns: int
    sent_ns: int


class PacedLoop:
    """Drives one episode.

    Deadlines lie on a grid of `1 / control_hz` from the first one on. A tick waits for its deadline, sends the position
    that is due, and has the policy step recorded that began with it. If the next tick begins a policy step, the
    observation for it is read then: right after a send, so that there is a whole control period for it. A read that
    takes longer makes the tick late; deadlines that are missed altogether are left out, and the motion goes on where it
    was, never in a burst. What `get_observation` and `send_action` raise ends the episode, as in LeRobot's loops.

    Whether to stop is asked before an observation is read: one that was read gets its step, as in LeRobot's loops, so
    that the last frame of a replay, which ends the episode, is acted on and recorded.

    Without an action (no chunks yet, or none any more) the way is finished, then nothing is sent and the servos hold.

    Attributes:
        tally: Of the last episode.
        sends: The times of its sends, if they are kept.

    Args:
        engine: With `policy_hz` and `control_hz`; started, reset and resumed by the caller.
        robot: The arm.
        process_observation: What the robot gave -> what the engine and `on_step` get.
        process_action: (position by entry, the last observation as the robot gave it) -> what is sent.
        on_step: Called after the first send of a policy step, with its observation and its action (None if there was
            none).
        stop: Asked before the first observation and after every tick.
        keep_sends: Keep the times of sends.
    """

    def __init__(
        self,
        engine: AsyncInferenceEngine,
        robot: Arm,
        *,
        process_observation: Callable[[dict[str, Any]], Observation] | None = None,
        process_action: Callable[[Action, Observation], dict[str, Any]] | None = None,
        on_step: Callable[[Observation, Action | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
        keep_sends: bool = False,
    ) -> None:
        self._engine, self._robot, self._config = engine, robot, engine.config
        self._process_observation = process_observation or (lambda observation: observation)
        self._process_action = process_action or (lambda action, observation: action)
        self._on_step = on_step or (lambda observation, action: None)
        self._stop = stop or (lambda: False)
        self._keep_sends = keep_sends
        self._resampler = Resampler(engine.action_names, engine.config)
        self.tally = Tally()
        self.sends: list[Send] = []

    def warm_up(self) -> bool:
        """Show the engine observations, at `policy_hz`, until it is ready; False if the episode is to end before.

        As LeRobot's loops do it while torch compiles a policy; what was made meanwhile is thrown away.
        """
        if self._engine.ready:
            return True
        while not self._engine.ready:
            if self._stop():
                return False
            began = time.perf_counter()
            self._observe()
            time.sleep(max(0.0, 1 / self._config.policy_hz - (time.perf_counter() - began)))
        self._engine.reset()
        self._engine.resume()
        return True

    def run(self, duration_s: float = math.inf) -> Tally:
        """Drive until it is told to stop, `duration_s` is over, or `max_steps` actions have had their time.

        Returns:
            What was done; it is in the log, too.

        Raises:
            UserError: `max_step` is given, but the observation does not tell where the joints are.
        """
        self.tally, self.sends = Tally(), []
        try:
            if self._stop():
                return self.tally
            self._observe()
            self._resampler.reset(self._measured())
            with (
                Monitor(self._config.monitor_s, self.tally, self._engine.state),
                _old_objects_left_alone(),
                _woken_soon(),
            ):
                self._drive(duration_s)
        finally:
            self.tally.ended_s = time.perf_counter()
            logger.info("paced loop: over; %s; the arm holds", self.tally)
            self._advise()
        return self.tally

    def _drive(self, duration_s: float) -> None:
        period, tally, resampler = 1 / self._config.control_hz, self.tally, self._resampler
        ticks = math.ceil(duration_s / period - 1e-6) if math.isfinite(duration_s) else math.inf
        tally.started_s = start = time.perf_counter()
        due = 0  # ticks of the grid, those that are missed included
        while due < ticks:
            begins_step = resampler.begins_step
            precise_sleep(start + due * period - time.perf_counter())
            missed = max(0, math.floor((time.perf_counter() - start) / period) - due)
            due += missed
            deadline = start + due * period
            if begins_step:
                self._begin_step()
            sent = self._send(deadline)
            tally.ticks += 1
            tally.missed += missed
            tally.late += missed + (sent - deadline > period / 2)
            if begins_step:
                with self._timed("recording and showing a policy step"):
                    self._on_step(self._seen, self._action)
            due += 1
            if self._stop():
                break
            if resampler.begins_step and due < ticks:
                if tally.steps == self._config.max_steps:
                    break
                self._observe()

    def _observe(self) -> None:
        with self._timed("reading an observation"):
            self._raw = self._robot.get_observation()
            self._seen = self._process_observation(self._raw)
        self._engine.notify_observation(self._seen)

    def _measured(self) -> list[float] | None:
        names = self._engine.action_names
        # What is not finite says nothing, and would be in every position that is counted from there.
        missing = [name for name in names if not math.isfinite(self._seen.get(name, math.nan))]
        if not missing:
            return [float(self._seen[name]) for name in names]
        if self._config.max_step is not None:
            raise UserError(
                f"inference.max_step is {self._config.max_step}, but the robot's observation does not tell where "
                f"{', '.join(missing)} is, so the first action of an episode could be further away; set "
                "inference.max_step=null."
            )
        return None

    def _begin_step(self) -> None:
        action = self._engine.get_action(None)
        rows = None if action is None else action.numpy()
        self._resampler.step(rows, () if rows is None else self._engine.ahead(LOOK_AHEAD))
        self._action = None if rows is None else self._by_entry(rows)
        self.tally.steps += rows is not None

    def _send(self, deadline: float) -> float:
        """Send the position that is due, if there is one; the time right before."""
        position = self._resampler.tick()
        command = None if position is None else self._process_action(self._by_entry(position), self._raw)
        now = time.perf_counter()
        if command is not None:
            if self._keep_sends:
                self.sends.append(Send(round(deadline * 1e9), round(now * 1e9)))
            with self._timed("sending a position"):
                self._robot.send_action(command)
            self.tally.sent += 1
        return now

    def _by_entry(self, values: np.ndarray) -> Action:
        return dict(zip(self._engine.action_names, values.tolist(), strict=True))

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        slowest = self.tally.slowest_s
        slowest[what] = max(slowest.get(what, 0.0), time.perf_counter() - began)

    def _advise(self) -> None:
        period, tally = 1 / self._config.control_hz, self.tally
        if tally.late_share < _MANY_LATE or not tally.slowest_s:
            return
        what, took = max(tally.slowest_s.items(), key=lambda each: each[1])
        logger.warning(
            "paced loop: %.1f %% of the ticks were late. A control period is %.1f ms; %s took up to %.1f ms. If that is "
            "more than chance, mend it or lower inference.control_hz; if not, something else keeps the machine busy.",
            100 * tally.late_share,
            1e3 * period,
            what,
            1e3 * took,
        )


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Python's collector does not look at what exists by now: with torch loaded that takes tenths of a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _woken_soon() -> Iterator[None]:
    """The loop waits no longer than that for the interpreter when its deadline has come.

    Beside a thread that runs Python code (cameras, a policy's preprocessor, a dataset's writers) every wait for it
    takes CPython's switch interval: measured, the loop is 5 ms late by default, half a period at 100 Hz, and 0.8 ms so.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
