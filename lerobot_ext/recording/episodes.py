"""When an episode starts, gains a frame, ends, is saved or is thrown away, for whoever has to know.

LeRobot's loops do not announce episodes. `compat` wraps the two places where one begins (`record_loop` with a
dataset, the episodic rollout's `_policy_loop`) with `episode`; the dataset's writer (`writer`) announces frames and
what becomes of them. Taring, the recording's journal and the virtual lab listen; none of them knows of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset
    from lerobot.robots import Robot


@dataclass(frozen=True)
class Episode:
    """The episode that is going on.

    Attributes:
        robot: The connected robot.
        dataset: Where it is recorded; None if it is not.
    """

    robot: Robot
    dataset: LeRobotDataset | None = None


@dataclass(frozen=True)
class EpisodeListener:
    """Callbacks around one episode; `order` sorts them at the start (low first), reversed at the end.

    Attributes:
        name: One listener a name; adding a second one replaces the first.
        on_start: Called before the episode's first observation, with the connected robot.
        on_end: Called after the episode's last action, with the same robot, also when the episode failed.
        on_frame: Called after a frame was added to the dataset, with the robot.
        on_saved: Called when an episode is safe on disk, with the dataset's folder and the episode's index.
        on_discarded: Called when the frames since the last episode were thrown away.
        order: The world is reset at 0, sensors are tared at 10.
    """

    name: str
    on_start: Callable[[Robot], None] | None = None
    on_end: Callable[[Robot], None] | None = None
    on_frame: Callable[[Robot], None] | None = None
    on_saved: Callable[[Path, int], None] | None = None
    on_discarded: Callable[[], None] | None = None
    order: int = 10


_listeners: dict[str, EpisodeListener] = {}
_current: list[Episode] = []


def add_listener(listener: EpisodeListener) -> None:
    """Call `listener` around every episode from now on."""
    _listeners[listener.name] = listener


def remove_listener(name: str) -> None:
    """Stop calling the listener of that name; unknown names are ignored."""
    _listeners.pop(name, None)


def current() -> Episode | None:
    """The episode that is going on, None between episodes."""
    return _current[-1] if _current else None


@contextmanager
def episode(robot: Robot, dataset: LeRobotDataset | None = None) -> Iterator[None]:
    """Announce one episode of `robot`: its start on entry, its end on exit."""
    with ExitStack() as ends:
        _current.append(Episode(robot, dataset))
        ends.callback(_current.pop)
        for listener in _sorted():
            if listener.on_end is not None:
                ends.callback(listener.on_end, robot)
            if listener.on_start is not None:
                listener.on_start(robot)
        yield


def frame_added() -> None:
    """Announce that the current episode's dataset has one frame more; outside an episode nobody is told."""
    going_on = current()
    if going_on is None:
        return
    for listener in _sorted():
        if listener.on_frame is not None:
            listener.on_frame(going_on.robot)


def episode_saved(root: Path, index: int) -> None:
    """Announce that episode `index` of the dataset in `root` is safe on disk."""
    for listener in _sorted():
        if listener.on_saved is not None:
            listener.on_saved(root, index)


def episode_discarded() -> None:
    """Announce that the frames that were not saved yet are thrown away."""
    for listener in _sorted():
        if listener.on_discarded is not None:
            listener.on_discarded()


def _sorted() -> list[EpisodeListener]:
    return sorted(_listeners.values(), key=lambda listener: listener.order)
