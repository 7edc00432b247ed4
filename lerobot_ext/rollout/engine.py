"""LeRobot's inference engine `async`: a thread asks for chunks, the control loop takes actions.

When to ask and which answers count is decided here; the queue, the merge rules, the checks, the sources of chunks,
what is done about failures, and the telemetry have modules of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lerobot.rollout.inference.base import InferenceEngine

from lerobot_ext.rollout.checks import ActionChecks
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.ensemble import ACT_COEFF
from lerobot_ext.rollout.episode import EpisodeLog
from lerobot_ext.rollout.forecast import DelayForecast
from lerobot_ext.rollout.jobs import Job, Seen, Workers, join
from lerobot_ext.rollout.merge import merge_rule, replace
from lerobot_ext.rollout.monitor import EngineState
from lerobot_ext.rollout.observations import RecentObservations
from lerobot_ext.rollout.queue import ActionQueue
from lerobot_ext.rollout.recovery import Recovery
from lerobot_ext.rollout.sources import Answer, Request, Source
from lerobot_ext.rollout.telemetry import TelemetryWriter
from simplify_work.wire.errors import RemoteError, Superseded

logger = logging.getLogger(__name__)

# A source without a deadline of its own (a policy in this process) is waited for as LeRobot's RTC engine does.
_JOIN_S = 3.0


class AsyncInferenceEngine(InferenceEngine):
    """Inference engine `async`, for whatever source.

    The control loop calls `notify_observation` and then `get_action`, every policy step: every tick of LeRobot's loops,
    `policy_hz` times a second in ours (`loop`). An observation notified when t
    actions have been handed out belongs to timestep t. While no chunks come, what is queued is executed and then
    None is handed out, so that nothing is sent and the servos hold; see `AsyncInferenceConfig.when_lost`.

    Attributes:
        config: As given.
        action_names: The action's entries, in order.

    Args:
        config: Of `--inference.type=async`.
        source: Where chunks come from.
        merge: `rtc`, `aggregate`, `append` or `ensemble`; `rtc` needs a source that supports it.
        checks: What a chunk must be.
        fps: Actions a second; the config's `policy_hz` if that is given.
        rest_position: Where `when_lost: rest` goes, by action entry; None: where the episode started.
        warm_up: So many chunks are made before `ready` (for torch.compile).
        ensemble_coeff: Of `ensemble`.
        shutdown_event: LeRobot's; set when chunks have not come for `give_up_s`.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        config: AsyncInferenceConfig,
        source: Source,
        *,
        merge: str,
        checks: ActionChecks,
        fps: float,
        rest_position: Mapping[str, float] | None = None,
        warm_up: int = 0,
        ensemble_coeff: float = ACT_COEFF,
        shutdown_event: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.action_names = config, checks.names
        self._source, self._checks, self._clock = source, checks, clock
        self._fps = fps = config.policy_hz or fps
        self._merge, self._rule = merge, merge_rule(merge, config.aggregate, ensemble_coeff)
        self._writer = TelemetryWriter(config.telemetry_dir)
        self._log = EpisodeLog(self._writer, clock)
        self._forecast = DelayForecast(config.latency, config.latency_window)
        self._queue = ActionQueue()
        self._recovery = Recovery(
            config,
            names=checks.names,
            fps=fps,
            rest_position=rest_position,
            log=self._log,
            on_give_up=shutdown_event.set if shutdown_event is not None else lambda: None,
        )
        # Everything above and below is guarded by this condition; it is notified whenever a thread may find work.
        self._wake = threading.Condition()
        self._workers = Workers(self._make_chunks, self._crashed)
        self._stopping = False
        self._active = False
        self._warm_up = warm_up
        self._generation = 0  # an answer to a job of an older one is not wanted any more
        self._observations = 0
        self._jobs = 0
        self._length: int | None = None  # of the last chunk
        self._delay: int | None = None  # of the last chunk
        self._in_flight: dict[int, Job] = {}
        self._episode: int | None = None
        self._history = RecentObservations(source.n_obs_steps, source.windows)
        self._forget_episode()

    @property
    def ready(self) -> bool:
        """True once warm; also after giving up, so that nobody waits for it."""
        return self._warm_up <= 0 or self.failed

    @property
    def failed(self) -> bool:
        """True after giving up."""
        return self._recovery.failed

    def start(self) -> None:
        """Begin to make chunks, as soon as `resume` says that they are wanted."""
        with self._wake:
            if not self._workers.running:
                self._stopping = False
                self._workers.start(self.config.requests_in_flight)

    def stop(self) -> None:
        """End the threads and the episode's telemetry; waits for a call in flight as long as its deadline is."""
        with self._wake:
            threads = self._workers.release()
            self._stopping = True
            self._active = False
            self._generation += 1
            self._log.close()
            self._wake.notify_all()
        join(threads, self._source.patience_s or _JOIN_S)
        self._writer.close()

    def pause(self) -> None:
        """Ask for nothing more; an answer that is on its way is thrown away, what is queued stays."""
        with self._wake:
            self._active = False
            self._generation += 1
            self._forget_observation()
            self._recovery.paused(self._clock())

    def resume(self) -> None:
        """Go on, with the next observation."""
        with self._wake:
            if not self._active:
                self._active = True
                self._recovery.resumed(self._clock())
                self._wake.notify_all()

    def reset(self) -> None:
        """A new episode: nothing of the last one, be it queued, in flight or remembered by the policy, is used."""
        with self._wake:
            self._log.close()
            self._generation += 1
            self._queue.reset()
            self._recovery.new_episode()
            self._forget_episode()
            self._wake.notify_all()

    def start_episode(self, index: int) -> None:
        """The number that the coming episode has in the dataset; without, the telemetry takes the next free one."""
        with self._wake:
            self._episode = index

    def end_episode(self) -> None:
        """The episode is over: its telemetry ends, and nothing is asked for until the next begins."""
        with self._wake:
            self.pause()
            self.reset()
            self._episode = None

    def _forget_episode(self) -> None:
        self._forget_observation()
        self._asked = self._observations  # number of the newest observation that was asked with
        self._merged = 0  # number of the newest job whose chunk was merged
        self._requests = 0  # chunks asked for in this episode
        self._last: np.ndarray | None = None  # what was handed out last
        self._home: np.ndarray | None = None

    def _forget_observation(self) -> None:
        self._observation: Seen | None = None
        self._history.clear()

    # --- the control loop's side ---

    def notify_observation(self, obs: dict | None) -> None:
        """Show what the robot sees now, processed as the control loop does; None forgets what was shown last."""
        with self._wake:
            if obs is None or self._stopping:
                self._forget_observation()
                return
            if not self._log.is_open:
                self._open_episode(obs)
            self._observations += 1
            self._history.add(obs)
            ticks = self._log.counts.ticks
            self._observation = Seen(self._observations, self._queue.executed, ticks)
            self._wake.notify_all()

    def get_action(self, obs_frame: dict | None) -> torch.Tensor | None:
        """The next action, (dim,) float32, or None: send nothing. `obs_frame` is not looked at."""
        with self._wake:
            if self.failed or self._stopping:
                return None
            action = self._queue.pop()
            starved = action is None
            self._log.counts.ticks += 1
            self._log.counts.starved += starved
            self._log.event("tick", timestep=self._queue.executed, queue=len(self._queue), starved=starved)
            if starved:
                action = self._recovery.without_action(self._clock(), self._last, self._home)
            else:
                self._recovery.acted()
            self._wake.notify_all()
            if action is None:
                return None
            self._last = action
            return torch.from_numpy(action.copy())

    def ahead(self, count: int) -> np.ndarray:
        """The actions that will be handed out next, as far as is known now: (n, dim) float32, n up to `count`."""
        with self._wake:
            rows = self._queue.planned(self._queue.executed)
            return np.empty((0, len(self.action_names)), np.float32) if rows is None else rows[:count].copy()

    def state(self) -> EngineState:
        """How it is doing."""
        with self._wake:
            return EngineState(len(self._queue), self._delay, self._recovery.lost)

    def _open_episode(self, obs: Mapping[str, Any]) -> None:
        names = self.action_names
        home = np.array([float(obs.get(name, np.nan)) for name in names], np.float32)
        self._home = home if np.isfinite(home).all() else None
        self._log.open(
            self._episode,
            fps=self._fps,
            merge=self._merge,
            chunk_size=self._chunk_size,
            action_names=list(names),
        )
        self._recovery.episode_opened()

    # --- the threads that make chunks ---

    @property
    def _chunk_size(self) -> int | None:
        known = [self.config.actions_per_chunk, self._source.chunk_size or self._length]
        return min((size for size in known if size), default=None)

    def _crashed(self, error: Exception) -> None:
        with self._wake:
            self._recovery.give_up(f"a thread of the inference engine ended ({error!r}); please report it.")

    def _make_chunks(self) -> None:
        while (job := self._wait_for_job()) is not None:
            try:
                if job.request is None:
                    self._source.reset()
                    answer = None
                else:
                    answer = self._source.infer(job.request)
                    actions, model_actions = self._kept(answer.actions), self._kept(answer.model_actions)
                    refusal = self._checks.refusal(actions, model_actions)
            except Exception as error:  # whatever a policy raises, the arm must hold and the run must go on
                self._on_error(job, error)
                continue
            with self._finished(job) as wanted:
                if not wanted:
                    continue
                if answer is None:
                    self._recovery.source_was_reset(self._observations)
                elif refusal is not None:
                    self._recovery.refused(self._clock(), refusal, len(self._queue))
                elif job.number > self._merged and self._recovery.is_fresh(job.observation.number):
                    self._take_in(job, answer, actions, model_actions)

    def _wait_for_job(self) -> Job | None:
        """The next thing to do; None when the engine stops."""
        with self._wake:
            while not self._stopping:
                now = self._clock()
                job = self._next_job(now)
                if job is not None:
                    self._in_flight[job.number] = job
                    return job
                self._wake.wait(self._recovery.retry_in(now) or None if self._active else None)
        return None

    def _next_job(self, now: float) -> Job | None:
        """What to do now; None: nothing."""
        recovery, busy = self._recovery, bool(self._in_flight)
        if not self._active or not recovery.may_try(now):
            return None
        if busy and (recovery.lost or recovery.must_reset or self._warm_up > 0):
            return None
        if recovery.must_reset:
            return self._job()
        seen = self._observation
        if seen is None or seen.number <= self._asked or not recovery.is_fresh(seen.number):
            return None
        if busy and seen.number - self._asked < max(1, self._forecast.steps() // 2):
            return None  # two requests at once would say the same
        return self._ask(seen) if self._wants_chunk() else None

    def _wants_chunk(self) -> bool:
        queued = len(self._queue)
        if queued == 0 or self._warm_up > 0 or self._recovery.lost or self._merge == "ensemble":
            return True
        return queued <= self.config.chunk_size_threshold * (self._chunk_size or 0)

    def _ask(self, seen: Seen) -> Job:
        self._asked = seen.number
        forecast = self._forecast.steps()
        rtc = left_over = planned = None
        if self._merge == "rtc":
            left_over = self._queue.left_over(seen.timestep)
            planned = None if left_over is None else self._queue.planned(seen.timestep)
            rtc = self.config.rtc(forecast, 0 if left_over is None else len(left_over))
        self._log.event("request", timestep=seen.timestep, forecast=forecast)
        seed = None if self.config.seed is None else self.config.seed + self._requests
        self._requests += 1
        request = Request(tuple(self._history), rtc, left_over, planned, seed)
        return self._job(request=request, observation=seen, forecast=forecast)

    def _job(self, **what: Any) -> Job:
        self._jobs += 1
        return Job(self._generation, self._jobs, **what)

    @contextmanager
    def _finished(self, job: Job) -> Iterator[bool]:
        """Hold the lock after a job; False if nobody wants its outcome: of another episode, or of before a pause."""
        with self._wake:
            del self._in_flight[job.number]
            yield job.generation == self._generation and not self._stopping
            self._wake.notify_all()

    def _kept(self, actions: Any) -> np.ndarray | None:
        if actions is None:
            return None
        return np.asarray(actions, np.float32)[: self.config.actions_per_chunk]

    def _on_error(self, job: Job, error: Exception) -> None:
        logger.debug("a call of the chunks' source failed", exc_info=error)
        with self._finished(job) as wanted:
            # A newer observation took its place: no failure. That the link is down holds for the next episode, too.
            lasts = isinstance(error, RemoteError) and not self._stopping
            if (wanted or lasts) and not isinstance(error, Superseded):
                self._recovery.call_failed(self._clock(), error)

    def _take_in(
        self, job: Job, answer: Answer, actions: np.ndarray, model_actions: np.ndarray | None
    ) -> None:
        seen = job.observation
        self._merged, self._length = job.number, len(actions)
        rule = replace if self._recovery.chunk_came(self._clock()) else self._rule
        merged = self._queue.merge(rule, seen.timestep, actions, model_actions)
        arrived = self._queue.executed
        delay = self._delay = arrived - seen.timestep
        # Also the ticks on which the arm had to wait: with a longer queue they would have been steps.
        self._forecast.add(self._log.counts.ticks - seen.ticks)
        if self._warm_up > 0:
            self._warm_up -= 1
            self._forecast.clear()  # compiling is no delay to expect again
        self._log.counts.chunks += 1
        self._log.event(
            "chunk",
            timestep=seen.timestep,
            arrived=arrived,
            delay=delay,
            forecast=job.forecast,
            trimmed=merged.trimmed,
            actions=len(actions),
            jump=merged.jump,
            **answer.figures,
        )
