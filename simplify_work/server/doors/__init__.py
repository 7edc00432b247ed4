"""What a door is: a small server for one foreign protocol that lets its clients use our sessions.

A door translates names, shapes and bytes; what infers, batches and remembers is behind `Brain`. The table `DOORS`
names the doors; each is imported only when it is asked for, since some need packages that others do without.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from lerobot_ext.errors import UserError
from simplify_work.server.protocol import Inference, Served

DOORS: dict[str, str] = {
    "act_zmq": "simplify_work.server.doors.act_zmq:ActZmqDoor",
    "lerobot_grpc": "simplify_work.server.doors.lerobot_grpc:LeRobotGrpcDoor",
    "openpi_ws": "simplify_work.server.doors.openpi_ws:OpenPiWsDoor",
}


class BrainSession(Protocol):
    """One foreign client's robot. Any thread may call it."""

    def infer(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        task: str = "",
        robot_type: str = "",
        timeout_s: float,
    ) -> Inference:
        """The chunk for an observation; waits its turn like everybody's, and is inferred together with others'.

        Args:
            observation: Arrays by the names of `Brain.served.inputs`, as our own clients send them: pictures
                (H, W, 3) uint8, depth (H, W, 1), vectors (n,) float32. They are kept until the chunk is there.
            task: What the robot shall do, in words.
            robot_type: LeRobot's name of the robot.
            timeout_s: To wait for the chunk.

        Raises:
            FeatureMismatch: If the observation lacks something or has another shape.
            RemoteInferenceError: If the policy failed.
            ServerTimeout: If the chunk did not come in time; it is not inferred later.
            Superseded: If another thread asked for a newer observation of this session meanwhile.
            SessionLost: If the session was closed, or ended because it was silent for too long.
            ServerStopped: If the server ends.
        """

    def reset(self) -> None:
        """A new episode begins: takes effect before the next `infer`; an observation that waits is superseded.

        Raises:
            SessionLost: As `infer`.
            ServerStopped: As `infer`.
        """

    def close(self) -> None:
        """End the session; its place is free for another one. May be called twice."""


class Brain(Protocol):
    """One loaded checkpoint.

    Attributes:
        path: The checkpoint as it was given on the command line.
        served: What the policy wants and gives.
    """

    path: str

    @property
    def served(self) -> Served:
        """What the policy is, the same for as long as it is served."""

    def open_session(self, client: str) -> BrainSession:
        """A session for one more robot; foreign ones count like our own clients'.

        Args:
            client: Who is calling, for the server's log.

        Raises:
            ServerBusy: If the server holds as many sessions as it admits.
        """


class Door(Protocol):
    """A server for one foreign protocol; constructed with `(brains, host, port)`.

    Attributes:
        name: Its key in `DOORS`.
        endpoint: Where it answers, once started: `tcp://127.0.0.1:5555`.
    """

    name: str
    endpoint: str

    def __init__(self, brains: Sequence[Brain], host: str, port: int) -> None:
        """Keep what is given; port 0 means any free one."""

    def start(self) -> None:
        """Take the port and begin to answer.

        Raises:
            UserError: If the port cannot be had.
        """

    def stop(self) -> None:
        """Close the port and end all sessions; returns when no thread of the door is left. May be called twice."""


def load(name: str) -> type[Door]:
    """The class of a door.

    Raises:
        UserError: If there is no such door, or a package that it needs is not installed.
    """
    if name not in DOORS:
        raise UserError(f"there is no door '{name}'; there are: {', '.join(sorted(DOORS))}.")
    module, _, attribute = DOORS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UserError(
            f"door '{name}' needs the package '{error.name}', which is not installed ({error}); "
            "install it in the project's folder: pip install -e '.[doors]'."
        ) from error


def taken(name: str, host: str, port: int, error: Exception) -> UserError:
    """What to raise where a door's port cannot be had."""
    return UserError(
        f"door {name} cannot listen on {host}:{port} ({error}); stop the program that uses the port, or give another "
        f"one: --door={name}:PORT."
    )
