"""Asking a running lab: its status, the start and the end of an episode, to stop.

Needs pyzmq and msgspec only, so that a driver or a command can use it without the lab's own dependencies.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

import msgspec
import zmq

from lerobot_ext.virtual.link import Episode, Reply, Request, Status, lab_dir


class LabClient:
    """A connection to the lab in `directory`; usable as a context manager, by one thread at a time.

    Args:
        directory: The lab's directory; None: `LEROBOT_LAB_DIR` or `/tmp/lerobot_lab`.
        timeout_s: How long to wait for each answer.

    Raises:
        ConnectionError: From every method, if no lab answers.
        RuntimeError: From every method, if the lab refuses the request.
    """

    def __init__(self, directory: str | Path | None = None, timeout_s: float = 2.0) -> None:
        self.directory = lab_dir(directory).absolute()
        self.timeout_s = timeout_s
        self._context = zmq.Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the sockets back; harmless when repeated."""
        self._context.destroy(linger=0)

    def status(self) -> Status:
        """The truth, now."""
        return self._ask(Request("status"))

    def start_episode(self, operate: bool = True) -> Status:
        """Begin an episode of press with a new button height; `operate`: the scripted operator moves the leader."""
        return self._ask(Request("start_episode", operate=operate))

    def end_episode(self) -> Episode:
        """End the episode and return the lab's verdict on it.

        Raises:
            RuntimeError: If no episode is open.
        """
        before = self.status()
        if not before.in_episode:
            raise RuntimeError(f"no episode is open in the lab in {self.directory}; start one first.")
        return self._ask(Request("end_episode")).episodes[-1]

    def hand(self, pose: str) -> Status:
        """Let a hand take the arms, while unpowered, to `pose`: "middle", "sweep" (through their ranges), "home"."""
        return self._ask(Request("hand", pose=pose))

    def fault(self, device: str, fault: str = "") -> Status:
        """Give a device a fault, or none.

        Args:
            device: follower, leader, skin, side, wrist or ft300; with two arms follower_right, follower_left, …
            fault: "unplugged", "frozen", "" to mend it; an arm also "silent:ID", "overload:ID" and so on, see
                `trouble.py`.

        Raises:
            RuntimeError: There is no such device, or it cannot have that fault.
        """
        return self._ask(Request("fault", device=device, fault=fault))

    def stop(self, wait_s: float = 5.0) -> None:
        """Let the lab end, and wait until its files are gone.

        Raises:
            TimeoutError: If it has not ended within `wait_s`.
        """
        pid = self._ask(Request("stop")).pid
        end = time.monotonic() + wait_s
        while (self.directory / "lock").exists():
            if time.monotonic() > end:
                raise TimeoutError(
                    f"the lab in {self.directory} (pid {pid}) has not ended within {wait_s:g} s."
                )
            time.sleep(0.02)

    def wait_ready(self, timeout_s: float = 30.0) -> Status:
        """Wait until the lab answers, which it does when everything is open."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                return self.status()
            except ConnectionError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def _ask(self, request: Request) -> Status:
        path = self.directory / "control"
        nobody = ConnectionError(f"no lab answers in {self.directory}; start one with `lerobot-ext lab`.")
        if not path.is_socket():
            raise nobody
        # a socket a question: a REQ socket whose answer never came could not ask again
        socket = self._context.socket(zmq.REQ)
        try:
            socket.linger = 0
            socket.rcvtimeo = socket.sndtimeo = int(self.timeout_s * 1000)
            socket.connect(f"ipc://{path}")
            socket.send(msgspec.json.encode(request))
            reply = msgspec.json.decode(socket.recv(), type=Reply)
        except zmq.Again:
            raise nobody from None
        finally:
            socket.close()
        if reply.status is None:
            raise RuntimeError(f"the lab in {self.directory} refused '{request.op}': {reply.error}")
        return reply.status
