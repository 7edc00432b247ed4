"""Our real server around a policy that answers at once (or after a while), in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from simplify_work.server.protocol import Inference, Served
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.errors import AddressError
from simplify_work.wire.features import FeatureSpec

SIDE, DEPTH, STATE = "observation.images.side", "observation.images.side_depth", "observation.state"
DIM, CHUNK = 6, 10


class StandIn:
    """A policy whose actions tell what it saw: the state, plus the mean grey level over 1000."""

    def __init__(self, height: int = 480, width: int = 640, depth: bool = False, **served) -> None:
        inputs = [
            FeatureSpec(STATE, "vector", (DIM,), ("float32",)),
            FeatureSpec(SIDE, "image", (height, width, 3), ("uint8",)),
        ]
        if depth:
            inputs.append(FeatureSpec(DEPTH, "depth", (height, width, 1), ("uint16",)))
        self.served = Served("stand-in", tuple(inputs), DIM, CHUNK, CHUNK, **served)
        self.seen: list = []
        self.resets = 0
        self.delay_s = 0.0
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.leave.set()

    def open_session(self):
        return self

    def reset(self) -> None:
        self.resets += 1

    def infer(self, requests):
        for index, request in enumerate(requests):
            self.seen.append(request)
            self.entered.set()
            time.sleep(self.delay_s)
            self.leave.wait(20)
            actions = actions_for(request.observation)
            model = actions / 2 if request.model_actions else None
            yield index, Inference(actions, 0.0, self.delay_s, 0.0, model_actions=model)


def actions_for(observation) -> np.ndarray:
    """The chunk for an observation, (10, 6) float32."""
    state = observation[STATE].reshape(-1, DIM)[-1]
    return np.repeat((state + observation[SIDE].mean() / 1000).astype(np.float32)[None], CHUNK, axis=0)


def observation(
    seed: int = 0, height: int = 480, width: int = 640, depth: bool = False
) -> dict[str, np.ndarray]:
    """A picture of gradients, edges and a little noise, as a camera's."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width]
    levels = 90 + 60 * v / height + 40 * np.sin(u / 23) + 25 * ((u // 37 + v // 29) % 3)
    colour = levels[..., None] * np.array([1.0, 0.8, 0.6]) + rng.normal(0, 2, (height, width, 3))
    found = {STATE: rng.uniform(-90, 90, DIM).astype(np.float32), SIDE: colour.clip(0, 255).astype(np.uint8)}
    if depth:
        found[DEPTH] = (500 + 3 * levels + rng.normal(0, 2, levels.shape)).astype(np.uint16)[..., None]
    return found


def start(runner: StandIn, address: str = "tcp://127.0.0.1:0", **options) -> tuple[PolicyServer, str]:
    """A server in this process, with its address."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket = listen.bind(parse_address(address), **options)
            break
        except AddressError:  # the port of a server that was stopped is free a moment later
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    endpoint = listen.endpoint(socket)
    server = PolicyServer(runner, socket)
    server.start()
    return server, endpoint


class StandInProcess:
    """The same in a process that can be killed."""

    def __init__(self, address: str = "tcp://127.0.0.1:0") -> None:
        root = Path(__file__).resolve().parents[1]
        self.process = subprocess.Popen(
            [sys.executable, __file__, address], stdout=subprocess.PIPE, text=True, cwd=root
        )
        self.address = self.process.stdout.readline().strip()

    def __enter__(self) -> StandInProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    _, where = start(StandIn(), sys.argv[1])
    sys.stdout.write(f"{where}\n")
    sys.stdout.flush()
    threading.Event().wait()
