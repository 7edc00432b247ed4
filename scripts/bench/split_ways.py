"""Ways to hand an observation to another process on this machine and get a chunk back: ours, a queue, and memcpy.

The other side answers at once, so that what is measured is the way there and back. `split_process` prints it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers

from simplify_work.local import PolicyClient
from simplify_work.server.protocol import Inference, Request, Served
from simplify_work.wire.features import FeatureSpec

CAMERAS = ("top", "left", "right")
SHAPE = (480, 640, 3)
JOINTS, CHUNK = 14, 100
OURS, QUEUE, MEMCPY = "ours, ipc, shared memory", "multiprocessing.Queue", "memcpy, twice"


def observation(seed: int) -> dict[str, np.ndarray]:
    """Three pictures and 14 joints, by LeRobot's keys."""
    rng = np.random.default_rng(seed)
    found = {f"observation.images.{name}": rng.integers(0, 256, SHAPE, np.uint8) for name in CAMERAS}
    return found | {"observation.state": rng.uniform(-90, 90, JOINTS).astype(np.float32)}


def chunk_of(state: np.ndarray) -> np.ndarray:
    """The stand-in's answer, (100, 14) float32, which shows what it was made from."""
    return np.repeat(np.asarray(state, np.float32)[None], CHUNK, axis=0)


class StandIn:
    """A policy that answers at once."""

    def __init__(self) -> None:
        images = (FeatureSpec(f"observation.images.{name}", "image", SHAPE, ("uint8",)) for name in CAMERAS)
        state = FeatureSpec("observation.state", "vector", (JOINTS,), ("float32",))
        self.served = Served("stand-in", (*images, state), JOINTS, CHUNK, CHUNK)

    def open_session(self) -> StandIn:
        """It remembers nothing."""
        return self

    def reset(self) -> None:
        """There is nothing to forget."""

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference]]:
        """Answer each by itself, at once."""
        for index, request in enumerate(requests):
            yield index, Inference(chunk_of(request.observation["observation.state"]), 0.0, 0.0, 0.0)


def _serve(ready: Any, address: str) -> None:
    from simplify_work.server.server import PolicyServer
    from simplify_work.wire import listen
    from simplify_work.wire.address import parse_address

    sys.setswitchinterval(0.0005)  # as `lerobot-ext serve` does
    socket = listen.bind(parse_address(address))
    server = PolicyServer(StandIn(), socket)
    server.start()
    ready.send(listen.endpoint(socket))
    ready.poll(None)  # until the parent closes its end


class Ours:
    """Our client with our server."""

    def __init__(self, folder: Path) -> None:
        self._server = peers.Process(_serve, f"ipc://{folder}/brain")
        self._client = PolicyClient(self._server.said, timeout_s=30)
        self._client.connect()

    def ask(self, seen: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        chunk = self._client.infer(seen)
        if chunk.codec != "shared":
            raise RuntimeError(
                f"the arrays travelled '{chunk.codec}' and not through shared memory; see the log."
            )
        return chunk.actions

    def close(self) -> None:
        """End both."""
        self._client.close()
        self._server.close()


def _answer(asked: Any, answers: Any) -> None:
    while (seen := asked.get()) is not None:
        answers.put(chunk_of(seen["observation.state"]))


class Queues:
    """Two queues between two processes, as most projects would begin."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._asked, self._answers = context.Queue(), context.Queue()
        self._process = context.Process(target=_answer, args=(self._asked, self._answers), daemon=True)
        self._process.start()

    def ask(self, seen: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        self._asked.put(seen)
        return self._answers.get(timeout=60)

    def close(self) -> None:
        """End it."""
        self._asked.put(None)
        self._process.join(10)


class Memcpy:
    """The bytes into memory that another process could see, and out of it; nobody is told."""

    def __init__(self) -> None:
        import mmap

        seen = observation(0)
        self._shared = {name: np.frombuffer(mmap.mmap(-1, a.nbytes), np.uint8) for name, a in seen.items()}
        self._out = {name: np.empty(a.nbytes, np.uint8) for name, a in seen.items()}

    def ask(self, seen: dict[str, np.ndarray]) -> np.ndarray:
        """A chunk."""
        for name, array in seen.items():
            self._shared[name][:] = array.reshape(-1).view(np.uint8)
        for name, shared in self._shared.items():
            self._out[name][:] = shared
        return chunk_of(self._out["observation.state"].view(np.float32)).copy()

    def close(self) -> None:
        """There is nothing to end."""


def hand_over(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds from an observation to its chunk, by way.

    Raises:
        RuntimeError: If an answer is wrong.
    """
    seen = observation(arguments.seed)
    expected = chunk_of(seen["observation.state"])
    with contextlib.ExitStack() as stack:
        ways = {MEMCPY: Memcpy(), OURS: Ours(folder), QUEUE: Queues()}
        for way in ways.values():
            stack.callback(way.close)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in common.progress(range(arguments.rounds + 1), "handing over", "turn"):
            for name, way in ways.items():
                for _ in range(arguments.calls):
                    started = time.perf_counter()
                    chunk = way.ask(seen)
                    taken = time.perf_counter() - started
                    if turn:  # the first turn warms up
                        times[name].append(taken)
                    if not np.array_equal(chunk, expected):
                        raise RuntimeError(f"{name} answered with another chunk than the stand-in's.")
    return {name: common.percentiles(sample) for name, sample in times.items()}


def show(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Print the table; the ratios of the medians."""
    one_way = sum(array.nbytes for array in observation(0).values())
    floor, ours, queue = (figures[name]["p50"] for name in (MEMCPY, OURS, QUEUE))
    rows = [
        {
            "milliseconds": name,
            "p50": figure["p50"],
            "p95": figure["p95"],
            "min": figure["min"],
            "GB/s": 2 * one_way / figure["p50"] / 1e6,
            "of memcpy's speed": f"{100 * floor / figure['p50']:.0f} %",
            "ours is": f"{common.ratio(ours, figure['p50']):.1f} times as fast",
        }
        for name, figure in figures.items()
    ]
    common.print_table(
        rows, "An observation to another process, its chunk back; the other side answers at once"
    )
    print(f"an observation has {one_way} bytes, so {2 * one_way} are copied (in and out); GB/s are of those")
    return {"queue / ours": queue / ours, "memcpy / ours": floor / ours, "bytes copied": 2 * one_way}
