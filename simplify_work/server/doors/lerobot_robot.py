"""One robot that LeRobot's client drives: its newest observation waits here until the client asks for actions.

The rules are those of LeRobot's policy server: the newest observation wins, and one with the timestep of the last
one that was inferred is left out unless the client must have it. Knows nothing of gRPC but how to ask whether a call
is still there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from simplify_work.server.doors.guests import Guest
from simplify_work.server.doors.lerobot_messages import Instructions, Observed
from simplify_work.wire.errors import WireFormatError

Waiting = tuple[Observed, dict[str, np.ndarray]]


class Call(Protocol):
    """A call that is being answered."""

    def is_active(self) -> bool:
        """Whether somebody waits for the answer."""


class Robot:
    """State of one connection; any thread may call it.

    Attributes:
        guest: Its session.
        instructions: What its client asked for.
    """

    def __init__(self, guest: Guest, instructions: Instructions) -> None:
        self.guest = guest
        self.instructions = instructions
        self._changed = threading.Condition()
        self._waiting: Waiting | None = None
        self._begun: int | None = None
        self._ended = False
        self._sending = threading.Lock()
        self._calls: set[Call] = set()
        self._last_s = time.monotonic()

    @property
    def present(self) -> bool:
        """Whether its client waits for actions now."""
        with self._changed:
            return any(call.is_active() for call in self._calls)

    @property
    def silent_s(self) -> float:
        """Seconds since the client was last there."""
        with self._changed:
            return 0.0 if self._calls or self._sending.locked() else time.monotonic() - self._last_s

    def put(self, observed: Observed, frame: dict[str, np.ndarray]) -> None:
        """Keep an observation in place of the one that waits, unless nothing was executed since the last inferred one."""
        with self._changed:
            if observed.timestep != self._begun or observed.must_go:
                self._waiting = observed, frame
                self._changed.notify()

    def take(self, timeout_s: float) -> Waiting | None:
        """The observation to infer; None if there is none in time, or the robot's session has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._ended, timeout_s)
            taken, self._waiting = self._waiting, None
            if taken is not None:
                self._begun = taken[0].timestep
            return taken

    def failed(self, observed: Observed) -> None:
        """No chunk came of it: another one of the same timestep is welcome."""
        with self._changed:
            if self._begun == observed.timestep:
                self._begun = None

    def end(self) -> None:
        """Let who waits know, and end the session."""
        with self._changed:
            self._ended = True
            self._waiting = None
            self._changed.notify_all()
        self.guest.close()

    @contextlib.contextmanager
    def asking(self, call: Call) -> Iterator[None]:
        """While the client waits for actions."""
        with self._changed:
            self._calls.add(call)
        try:
            yield
        finally:
            with self._changed:
                self._calls.discard(call)
                self._last_s = time.monotonic()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """While the client sends an observation; it sends one after the other.

        Raises:
            WireFormatError: If it sends another one already.
        """
        if not self._sending.acquire(blocking=False):
            raise WireFormatError(
                "two observations come at once over one connection; send one after the other."
            )
        try:
            yield
        finally:
            self._sending.release()
            with self._changed:
                self._last_s = time.monotonic()
