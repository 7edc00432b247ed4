"""A policy server of its own process with the product's real wire, whose policy is simple and can be told to misbehave.

`python stand_in.py ADDRESS` serves; each line on its standard input changes what the next chunks are like, see `MOODS`.
It starts in a second, since it needs neither torch nor LeRobot, and can be killed like any other.
"""

from __future__ import annotations

import argparse
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from simplify_work.server.protocol import Inference, Request, Served
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.features import DTYPES, FeatureSpec

STATE = "observation.state"
DIM = 6
CHUNK = 36  # 1.2 s at 30 Hz
STEP = 0.6  # degrees of the first joint a step
CENTRE = -16.0  # degrees: the lab's home
TURN = 20.0  # to either side of it

MOODS = ("good", "nan", "limits", "width", "slow")
SLOW_S = 0.5


class Swing:
    """A policy that swings the first joint and holds the others where they were first seen."""

    def __init__(self) -> None:
        self.mood = "good"
        self.served = Served(
            policy_type="swing",
            inputs=(FeatureSpec(STATE, "vector", (DIM,), DTYPES["vector"]),),
            action_dim=DIM,
            chunk_size=CHUNK,
            n_action_steps=CHUNK,
        )

    def open_session(self) -> Session:
        return Session()

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference]]:
        if self.mood == "slow":
            time.sleep(SLOW_S)
        for index, request in enumerate(requests):
            actions = request.session.chunk(request.observation[STATE])
            if self.mood == "nan":
                actions[CHUNK // 2, 1] = np.nan
            elif self.mood == "limits":
                actions[CHUNK // 2, 0] = 700.0
            elif self.mood == "width":
                actions = np.concatenate([actions, actions[:, :1]], axis=1)
            yield index, Inference(actions, 0.0, 0.0, 0.0)


class Session:
    """One robot."""

    def __init__(self) -> None:
        self._start: np.ndarray | None = None
        self._direction = 1.0

    def reset(self) -> None:
        """The swing goes on."""

    def chunk(self, state: np.ndarray) -> np.ndarray:
        """(CHUNK, 6) from where the arm is, turning at the ends."""
        if self._start is None:
            self._start = state.copy()
        actions = np.tile(self._start, (CHUNK, 1))
        pan = float(state[0])
        for row in actions:
            if abs(pan - CENTRE) > TURN:
                self._direction = 1.0 if pan < CENTRE else -1.0
            pan += self._direction * STEP
            row[0] = pan
        return actions


class StandIn:
    """The process, ready when this returns, and gone when the `with` block ends.

    Args:
        address: To listen on.
        options: Of `main`.
    """

    def __init__(self, address: str, *options: str) -> None:
        self.address = address
        self._process = subprocess.Popen(
            [sys.executable, __file__, address, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        while "ready" not in (line := self._lines.get(timeout=60)):
            if not line:
                raise RuntimeError("".join(self.log))

    def be(self, mood: str) -> None:
        """Take on a mood, and wait until it has."""
        self._process.stdin.write(mood + "\n")
        self._process.stdin.flush()
        while mood not in self._lines.get(timeout=60):
            pass

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Let it live and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End `pause`."""
        self._process.send_signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kill it, and free what belonged to it."""
        self.kill()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put("")


def say(word: str) -> None:
    """To whoever started this."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--max_sessions", type=int, default=4)
    parser.add_argument("--keys")
    parser.add_argument("--metrics_port", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    policy = Swing()
    address = parse_address(args.address)
    if args.keys:
        from simplify_work.wire.keys import ServerKeys

        socket = listen.bind(address, ServerKeys.load(args.keys))
    else:
        socket = listen.bind(address)
    server = PolicyServer(policy, socket, max_sessions=args.max_sessions)
    if args.metrics_port:
        server.metrics.serve(args.metrics_port)
    server.start()
    say("ready")
    for line in sys.stdin:
        assert line.strip() in MOODS, line
        policy.mood = line.strip()
        say(policy.mood)
    server.stop()


if __name__ == "__main__":
    main()
