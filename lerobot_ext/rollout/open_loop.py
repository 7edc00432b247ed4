"""Open-loop evaluation: what a policy predicts for recorded observations, against what was recorded.

Chunks are seen on their way from the source to the engine, so that nothing runs otherwise than with a robot. Here are
the numbers; the page is `recording.visualize.open_loop`, the table `commands.open_loop`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.errors import UserError
from lerobot_ext.robots.replay import FRAME, ReplayRobot
from lerobot_ext.rollout.observations import RecentObservations
from lerobot_ext.rollout.sources import Answer, Request, Source

SHOWN_CHUNKS = 600
"""Chunks that are kept whole, for the curves; of all others only the errors are."""

_ROUND_TRIPS = 10_000
_RATE_TOLERANCE = 0.01


class Errors:
    """Errors by horizon step and joint, summed up; all figures in the action's units.

    Args:
        width: Joints.

    Attributes:
        count: (steps,) errors of each step, for every joint.
    """

    def __init__(self, width: int) -> None:
        self.count = np.zeros(0, np.int64)
        self._sums = np.zeros((3, 0, width))  # of absolute values, of squares; largest absolute value

    def add(self, errors: NDArray) -> None:
        """Take in (n, joints) errors of the steps 0 to n - 1."""
        steps = len(errors)
        if steps > len(self.count):
            more = steps - len(self.count)
            self.count = np.pad(self.count, (0, more))
            self._sums = np.pad(self._sums, ((0, 0), (0, more), (0, 0)))
        size = np.abs(np.asarray(errors, np.float64))
        self.count[:steps] += 1
        self._sums[0, :steps] += size
        self._sums[1, :steps] += size**2
        self._sums[2, :steps] = np.maximum(self._sums[2, :steps], size)

    def by_joint_and_step(self) -> dict[str, NDArray]:
        """`mae`, `rmse` and `max`, (steps, joints) each."""
        return self._figures(self._sums, self.count[:, None])

    def by_joint(self) -> dict[str, NDArray]:
        """`mae`, `rmse` and `max` over all steps, (joints,) each."""
        return self._figures(self._pooled(1), self.count.sum())

    def by_step(self) -> dict[str, NDArray]:
        """`mae`, `rmse` and `max` over all joints, (steps,) each."""
        return self._figures(self._pooled(2), self.count * self._sums.shape[2])

    def overall(self) -> dict[str, float]:
        """`mae`, `rmse` and `max` over everything; NaN without any."""
        sums = self._sums.reshape(3, -1)
        pooled = np.array([sums[0].sum(), sums[1].sum(), sums[2].max(initial=0)])
        figures = self._figures(pooled, self.count.sum() * self._sums.shape[2])
        return {name: float(value) for name, value in figures.items()}

    def _pooled(self, axis: int) -> NDArray:
        return np.concatenate(
            [self._sums[:2].sum(axis=axis), self._sums[2:].max(axis=axis, initial=0)], axis=0
        )

    @staticmethod
    def _figures(sums: NDArray, count: NDArray) -> dict[str, NDArray]:
        known = np.where(np.asarray(count) > 0, count, np.nan)
        return {"mae": sums[0] / known, "rmse": np.sqrt(sums[1] / known), "max": sums[2] + 0 * known}


class OpenLoop:
    """The comparison of one run; threads may add to it.

    Action i of a chunk that was made from frame t is compared with the action that was recorded i frames later (i shown
    frames: a replay's stride counts). What lies beyond the episode's end is compared with nothing.

    Args:
        robot: The connected replay.
        names: The action's entries, in the policy's order.

    Attributes:
        names: As given.
        recorded: (rows, joints) recorded actions.
        times_s: (rows,) seconds in the episode.
        step_s: Seconds from one step to the next, as recorded.
        predicted: Errors of the chunks.
        chunks: Chunks so far.
        shown: Row and actions of those that are kept whole.
    """

    def __init__(self, robot: ReplayRobot, names: Sequence[str]) -> None:
        recording = robot.recording
        self.names, self.step_s = tuple(names), robot.frame_s
        self.recorded = recording.actions(self.names)
        self.times_s = recording.times_s
        self.episodes = {episode: recording.rows(episode) for episode in dict.fromkeys(robot.config.episodes)}
        self.predicted = Errors(len(self.names))
        self.chunks = 0
        self.shown: list[tuple[int, NDArray[np.float32]]] = []
        self._robot, self._stride = robot, robot.config.stride
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._lock = threading.Lock()

    def add(self, row: int, actions: NDArray[np.float32], figures: Mapping[str, Any]) -> None:
        """Compare a chunk, (n, joints), that was made from the frame in `row`."""
        actions = np.asarray(actions, np.float32)
        recorded = self.after(row, len(actions))
        with self._lock:
            self.chunks += 1
            self.predicted.add(actions[: len(recorded)] - recorded)
            if len(self.shown) < SHOWN_CHUNKS:
                self.shown.append((row, actions[: len(recorded)].copy()))
            if isinstance(figures.get("round_trip_s"), float):
                self._round_trips.append(figures["round_trip_s"])

    def after(self, row: int, steps: int) -> NDArray[np.float32]:
        """(n, joints) what was recorded from `row` on, at most `steps` of them and none of another episode."""
        stop = self.episode_of(row)[1].stop
        return self.recorded[row : min(stop, row + steps * self._stride) : self._stride]

    def episode_of(self, row: int) -> tuple[int, range]:
        """The episode that a row belongs to, and its rows."""
        return next((episode, rows) for episode, rows in self.episodes.items() if row in rows)

    def executed(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What a robot would have got in the plays: (n,) row of the frame that was shown last, (n, joints) action."""
        order = [list(self._robot.action_features).index(name) for name in self.names]
        sent = [each for each in self._robot.sent if each.in_play]
        rows = np.array([each.row for each in sent], np.int64)
        actions = np.array([each.action[order] for each in sent], np.float32)
        return rows, actions.reshape(len(sent), len(self.names))

    def report(self) -> dict[str, Any]:
        """All figures, as JSON can hold them; None where there is nothing to compare."""
        rows, actions = self.executed()
        executed = Errors(len(self.names))
        for difference in actions - self.recorded[rows]:
            executed.add(difference[None])
        trips = np.array(self._round_trips)
        return _plain(
            {
                "dataset": str(self._robot.config.root or self._robot.config.repo_id),
                "episodes": list(self.episodes),
                "joints": list(self.names),
                "step_s": self.step_s,
                "chunks": self.chunks,
                "predicted": {
                    "overall": self.predicted.overall(),
                    "by_joint": self._by_name(self.predicted.by_joint()),
                    "by_step": {"count": self.predicted.count, **self.predicted.by_step()},
                    "by_joint_and_step": self._by_name(self.predicted.by_joint_and_step()),
                },
                "executed": {
                    "actions": len(rows),
                    "overall": executed.overall(),
                    "by_joint": self._by_name(executed.by_joint()),
                },
                "round_trip_s": {
                    f"p{share}": float(np.percentile(trips, share)) if len(trips) else None
                    for share in (50, 95)
                },
            }
        )

    def _by_name(self, figures: Mapping[str, NDArray]) -> dict[str, Any]:
        return {
            name: {figure: values[..., i] for figure, values in figures.items()}
            for i, name in enumerate(self.names)
        }


class Watching:
    """Sees the chunks of an engine whose robot is a replay; off until somebody asks.

    Attributes:
        result: The comparison, once there is an engine.
        source: The engine's, watched; None with an engine that has none (`sync`).
        robot: The replay.
    """

    def __init__(self) -> None:
        self._on = False
        self._forget()

    def _forget(self) -> None:
        self.result: OpenLoop | None = None
        self.source: Source | None = None
        self.robot: ReplayRobot | None = None

    @contextmanager
    def session(self) -> Iterator[Watching]:
        """Watch for the length of a `with` block."""
        self._forget()
        self._on = True
        try:
            yield self
        finally:
            self._on = False

    def meet(self, robot: Any, names: Sequence[str], rate_hz: float) -> None:
        """An engine is made for this robot.

        Args:
            robot: Connected, or LeRobot's wrapper around it; any that is no replay is ignored.
            names: The action's entries, in the policy's order.
            rate_hz: Steps of the policy a second.

        Raises:
            UserError: The loop and the replay have different ideas of how long a step is.
        """
        robot = getattr(robot, "inner", robot)
        if not self._on or not isinstance(robot, ReplayRobot):
            return
        check_rate(robot, rate_hz)
        robot.mark_frames = True
        self.robot, self.result = robot, OpenLoop(robot, names)

    def watched(self, source: Source) -> Source:
        """`source`, with an eye on what it answers if there is a replay to compare with."""
        if not self._on or self.result is None:
            return source
        self.source = _WatchedSource(source, self.result.add)
        return self.source


watching = Watching()


class _WatchedSource:
    """A source whose chunks are shown to somebody; everything else is the source's."""

    def __init__(self, source: Source, show: Callable[[int, NDArray, Mapping[str, Any]], None]) -> None:
        self._source, self._show = source, show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def infer(self, request: Request) -> Answer:
        """The chunk for a request."""
        answer = self._source.infer(request)
        self._show(int(request.observations[-1][FRAME]), answer.actions, answer.figures)
        return answer


def check_rate(robot: ReplayRobot, rate_hz: float) -> None:
    """Refuse a loop in which a step of the policy is not one shown frame; at speed 0 it always is.

    Raises:
        UserError: Says at which rate it would be.
    """
    config = robot.config
    shown_hz = config.speed / robot.frame_s
    if config.speed and abs(rate_hz - shown_hz) > _RATE_TOLERANCE * shown_hz:
        raise UserError(
            f"the policy runs at {rate_hz:g} Hz, but the replay shows {shown_hz:g} frames a second (recorded at "
            f"{config.stride / robot.frame_s:g} Hz, robot.stride {config.stride}, robot.speed {config.speed:g}), so its "
            f"actions would be compared with those of other moments; set fps (or inference.policy_hz) to {shown_hz:g}."
        )


def predict(
    source: Source, robot: ReplayRobot, every: int, seed: int, progress: Callable[[Iterator], Iterator] = iter
) -> None:
    """Ask for a chunk at every n-th frame, one after the other, with no loop and no clock.

    Every play begins anew, and no chunk knows of another: with the same seed the same chunks come out.

    Args:
        source: Watched.
        robot: Connected, with speed 0.
        every: A chunk is asked for at each so many-th shown frame.
        seed: The n-th chunk draws its noise from `seed + n`.
        progress: Wraps the frames.
    """
    chunks = 0
    for position, seen in progress(_frames(source, robot)):
        if position % every == 0:
            source.infer(Request(tuple(seen), seed=seed + chunks))
            chunks += 1


def _frames(source: Source, robot: ReplayRobot) -> Iterator[tuple[int, RecentObservations]]:
    """Position in its play, and what is seen, of each shown frame."""
    while robot.more:
        over = threading.Event()
        seen, position = RecentObservations(source.n_obs_steps, source.windows), 0
        source.reset()
        with robot.playing(over.set):
            while not over.is_set():
                seen.add(robot.get_observation())
                yield position, seen
                position += 1


def _plain(value: Any) -> Any:
    """Lists and numbers in place of arrays, None in place of NaN, six digits."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value
