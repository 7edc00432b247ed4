"""What the matrix of policies and selections needs: a recording of the lab, a server in this process, and what was seen.

What is noted is noted where the parts meet: at the network's input, at the server's runner, at the source of chunks, at
the robot's `send_action`. Nothing there is a stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.rollout.robot_wrapper import ThreadSafeRobot

from lerobot_ext.commands.demo import CONFIGS, write_config
from lerobot_ext.rollout.sources import LocalSource, RemoteSource
from lerobot_ext.virtual.testing import RunningLab
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import tcp_address

HEIGHT, WIDTH, FPS = 96, 128, 15
CAMERAS = {"width": WIDTH, "height": HEIGHT, "fps": FPS}
TIP = "until the lamp is green"


@dataclass
class Seen:
    """What happened in one evaluation.

    Attributes:
        network: Shape of each observation that the network got, by key.
        tasks: What it was told to do.
        sent: Bytes of each array of one observation that the server got, by key; empty where there is none.
        actions: Each action that the robot was sent.
        first: The first request of the engine, and the chunk that answered it.
    """

    network: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)
    actions: list[list[float]] = field(default_factory=list)
    first: tuple[Any, np.ndarray] | None = None


def yaml_of(lab: RunningLab, name: str, path: Path, **changes: Any) -> str:
    """The words that name a copy of `configs/<name>` on this lab, with its small pictures; in `changes` a__b is a.b."""
    here = {f"robot.cameras.{camera}.{key}": n for camera in ("side", "wrist") for key, n in CAMERAS.items()}
    # Few: a machine with other work gives the lab's skin late.
    here |= {"robot.force_sensors.skin.tare_samples": 5, "dataset.fps": FPS}
    here |= {key.replace("__", "."): value for key, value in changes.items()}
    write_config(CONFIGS / name, path, lab.directory, lab.wrist_port, here)
    return f"--config_path={path}"


@contextmanager
def serving(checkpoint: Path) -> Iterator[str]:
    """The address of a server of this checkpoint: what `lerobot-ext serve` runs, in threads of this process."""
    runner = PolicyRunner(str(checkpoint), device="cpu")
    runner.warm_up()
    socket = listen.bind(tcp_address("127.0.0.1", 0))
    address = listen.endpoint(socket)
    server = PolicyServer(runner, socket)
    server.start()
    try:
        yield address
    finally:
        server.stop()


@contextmanager
def watched(ask_first: Any = None) -> Iterator[Seen]:
    """Note what happens until the end of the block.

    Args:
        ask_first: A request that the source is asked before its own first one; its answer is noted as the first.
    """
    seen = Seen()

    def at_the_network(original):
        def predict(policy, batch, *args, **kwargs):
            seen.network = {
                key: tuple(value.shape) for key, value in batch.items() if key.startswith("observation.")
            }
            seen.tasks |= {batch["task"]} if isinstance(batch["task"], str) else set(batch["task"])
            return original(policy, batch, *args, **kwargs)

        return predict

    def at_the_source(original):
        def infer(source, request):
            if seen.first is None:
                asked = ask_first or request
                seen.first = (asked, original(source, asked).actions)
            return original(source, request)

        return infer

    def at_the_server(original):
        def infer(runner, requests):
            for request in requests:
                seen.sent = {key: array.nbytes for key, array in request.observation.items()}
            return original(runner, requests)

        return infer

    def at_the_robot(original):
        def send_action(robot, action):
            seen.actions.append(list(action.values()))
            return original(robot, action)

        return send_action

    with pytest.MonkeyPatch.context() as patch:
        for kind, name, note in (
            (ACTPolicy, "predict_action_chunk", at_the_network),
            (SmolVLAPolicy, "predict_action_chunk", at_the_network),
            (LocalSource, "infer", at_the_source),
            (RemoteSource, "infer", at_the_source),
            (PolicyRunner, "infer", at_the_server),
            (ThreadSafeRobot, "send_action", at_the_robot),
        ):
            patch.setattr(kind, name, note(getattr(kind, name)))
        yield seen


def wire_bytes(dataset_root: Path) -> int:
    """Bytes that the first chunk's message had, by the telemetry of the first episode."""
    lines = map(json.loads, (dataset_root / "telemetry" / "episode_000000.jsonl").open())
    return next(line["sent_bytes"] for line in lines if line["event"] == "chunk")
