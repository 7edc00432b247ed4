"""A policy that answers at once or when it is told to, with the protocol that `PolicyServer` serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from simplify_work.server.protocol import Inference, Request, Served
from simplify_work.wire.features import DTYPES, FeatureSpec

STATE = "observation.state"


class Session:
    """One robot."""

    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


class StandIn:
    """Gives 50 actions that repeat the robot's state, and notes what was inferred together.

    Attributes:
        batches: Requests of each call.
        entered: Set while a call waits for `go`.
        go: Cleared, the policy is busy until it is set.
    """

    def __init__(self, n_obs_steps: int = 1) -> None:
        state = FeatureSpec(STATE, "vector", (6,), DTYPES["vector"])
        self.served = Served("stand-in", (state,), 6, 50, 50, n_obs_steps=n_obs_steps)
        self.batches: list[Sequence[Request]] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def open_session(self) -> Session:
        return Session()

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference | Exception]]:
        self.batches.append(requests)
        self.entered.set()
        self.go.wait(20)
        self.entered.clear()
        for index, request in enumerate(requests):
            actions = np.repeat(request.observation[STATE][None], 50, axis=0)
            yield index, Inference(actions, 0.0, 0.0, 0.0, len(requests))


def state(value: float) -> dict[str, np.ndarray]:
    return {STATE: np.full(6, value, np.float32)}
