"""When an episode starts and ends, for whoever has to prepare for it.

LeRobot's loops do not announce episodes. `compat` wraps the two places where one begins (`record_loop` with a
dataset, the episodic rollout's `_policy_loop`) and calls `start(robot)` and `end(robot)` here. Taring and the
virtual lab listen; neither knows of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lerobot.robots import Robot


@dataclass(frozen=True)
class EpisodeListener:
    """Callbacks around one episode; `order` sorts them at the start (low first), reversed at the end.

    Attributes:
        name: One listener a name; adding a second one replaces the first.
        on_start: Called before the episode's first observation, with the connected robot.
        on_end: Called after the episode's last action, with the same robot, also when the episode failed.
        order: The world is reset at 0, sensors are tared at 10.
    """

    name: str
    on_start: Callable[[Robot], None] | None = None
    on_end: Callable[[Robot], None] | None = None
    order: int = 10


_listeners: dict[str, EpisodeListener] = {}


def add_listener(listener: EpisodeListener) -> None:
    """Call `listener` around every episode from now on."""
    _listeners[listener.name] = listener


def remove_listener(name: str) -> None:
    """Stop calling the listener of that name; unknown names are ignored."""
    _listeners.pop(name, None)


@contextmanager
def episode(robot: Robot) -> Iterator[None]:
    """Announce one episode of `robot`: its start on entry, its end on exit."""
    with ExitStack() as ends:
        for listener in sorted(_listeners.values(), key=lambda listener: listener.order):
            if listener.on_end is not None:
                ends.callback(listener.on_end, robot)
            if listener.on_start is not None:
                listener.on_start(robot)
        yield
