"""`predict_from_server(batch)`: one line where a policy would have been called, for people who have their own loop."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simplify_work.local.batch import observation_from_batch, task_of
from simplify_work.local.client import TIMEOUT_S, PolicyClient
from simplify_work.wire.address import DEFAULT_ADDRESS

if TYPE_CHECKING:
    import torch

ADDRESS_VARIABLE = "LEROBOT_EXT_SERVER"

_clients: dict[str, PolicyClient] = {}
_lock = threading.Lock()


def predict_from_server(
    batch: Mapping[str, Any],
    address: str | None = None,
    *,
    task: str | None = None,
    seed: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> torch.Tensor:
    """Ask a policy server for the chunk of actions that follows an observation.

    The first call connects; later calls to the same address use that connection. Give the observation as it is
    before any preprocessor: the server normalises and tokenises as the checkpoint says.

    Args:
        batch: One observation, torch tensors or NumPy arrays by LeRobot's keys (see `observation_from_batch`). Nothing
            is remembered between calls: a vector of which the policy wants the last samples is given as a window.
        address: Of the server; else the environment's LEROBOT_EXT_SERVER, else tcp://127.0.0.1:5555.
        task: What the robot shall do; else the batch's `task`.
        seed: Seed of the policy's noise.
        timeout_s: Longest wait for the answer.

    Returns:
        (1, n, dim) float32 on the CPU, in the robot's units.

    Raises:
        RemoteError: One of its kinds, see `PolicyClient.infer`.
    """
    import torch

    client = _client(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
    welcome = client.welcome or client.connect()
    observation = observation_from_batch(batch, welcome.inputs, welcome.policy_type)
    chunk = client.infer(
        observation, task=task_of(batch) if task is None else task, seed=seed, timeout_s=timeout_s
    )
    return torch.from_numpy(chunk.actions).unsqueeze(0)


def _client(address: str) -> PolicyClient:
    with _lock:
        if address not in _clients:
            _clients[address] = client = PolicyClient(address)
            atexit.register(client.close)
        return _clients[address]
