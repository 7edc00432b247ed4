"""How many robots one server carries: 1 to 16 clients at 10 Hz each, on two policies.

One is a stand-in that costs 20 ms for a batch of any size up to 16 (it sleeps, as a CPU waits for a GPU); the other is
small SmolVLA (LeRobot's own code on random weights, on the CPU). The server is a process of its own, the clients are
threads of this one, each a `PolicyClient` with its own session. An observation is one 64x64 RGB picture and six
joints, 12.3 kB: what is measured is the server, not the copying of pictures (see `remote_overhead`). A client asks on
its own beat and waits for the chunk; a beat that passes while it waits is skipped, so achieved Hz is at most the beat.
Latencies are round trips as the client sees them; batch sizes are read from the server's Prometheus endpoint.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import machine_line, parser, percentiles, print_table, progress, save

from simplify_work.local import PolicyClient
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.features import DTYPES, FeatureSpec

STATE, IMAGE = "observation.state", "observation.images.side"
INPUTS = (
    FeatureSpec(STATE, "vector", (6,), DTYPES["vector"]),
    FeatureSpec(IMAGE, "image", (64, 64, 3), DTYPES["image"]),
)
COST_S = 0.020
LARGEST_BATCH = 16
TASK = "Press the block with the jaw."
POLICIES = ("stand-in", "smolvla")
# The stand-in on 16 robots; a robot on its beat of 10 Hz gets 10.
GOAL_HZ = 9.0
_SWITCH_INTERVAL_S = 0.0005  # as `lerobot-ext serve`


class StandIn:
    """Sleeps for `cost_s` and repeats each robot's state as its chunk of 50."""

    def __init__(self, cost_s: float) -> None:
        from simplify_work.server.protocol import Served

        self.served = Served("stand-in", INPUTS, 6, 50, 50)
        self._cost_s = cost_s

    def open_session(self) -> StandIn:
        """Robots have no state here."""
        return self

    def reset(self) -> None:
        """Nothing is remembered."""

    def infer(self, requests: Sequence) -> Iterator[tuple[int, object]]:
        """All at once."""
        from simplify_work.server.protocol import Inference

        time.sleep(self._cost_s)
        for index, request in enumerate(requests):
            actions = np.repeat(request.observation[STATE][None], 50, axis=0)
            yield index, Inference(actions, 0.0, self._cost_s, 0.0, len(requests))


def small_smolvla(folder: Path, seed: int):
    """A warmed-up runner of SmolVLA's real code on 0.3 M random weights."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides
    from simplify_work.server.runner import PolicyRunner

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    options = smolvla_overrides(make_tiny_vlm(folder / "vlm"), chunk_size=50)
    config = make_policy_config(
        options.pop("type"),
        **options,
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (6,)),
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )
    stats = {name: {"mean": torch.zeros(6), "std": torch.ones(6)} for name in (STATE, "action")}
    get_policy_class("smolvla")(config).save_pretrained(folder / "checkpoint")
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder / "checkpoint")
    runner = PolicyRunner(folder / "checkpoint", device="cpu")
    runner.warm_up()
    return runner


def serve(policy: str, cost_s: float, seed: int, ready) -> None:
    """The server's process: tells its address and its metrics' URL, and ends when it is told to."""
    from simplify_work.server.server import PolicyServer

    with tempfile.TemporaryDirectory() as folder:
        runner = StandIn(cost_s) if policy == "stand-in" else small_smolvla(Path(folder), seed)
        socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
        address = listen.endpoint(socket)
        server = PolicyServer(runner, socket, max_batch=LARGEST_BATCH)
        metrics = server.metrics.serve(0)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        server.start()
        ready.send((address, metrics.url))
        ready.recv()
        server.stop()
        metrics.close()


@contextmanager
def server_of(policy: str, arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """A server in a process of its own: its address and its metrics' URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve, args=(policy, arguments.cost_ms / 1e3, arguments.seed, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        yield ours.recv()
        ours.send("end")
        process.join(20)
    except EOFError as error:
        raise SystemExit(
            f"the server of {policy} ended before it was ready; its traceback is above."
        ) from error
    finally:
        if process.is_alive():
            process.kill()
            process.join()


class Robot(threading.Thread):
    """Asks for a chunk at each beat.

    Attributes:
        round_trips_s: Of the chunks that came.
        skipped: Beats that passed while it waited.
    """

    def __init__(
        self, address: str, number: int, hz: float, begin: threading.Barrier, seconds: float
    ) -> None:
        super().__init__(daemon=True)
        rng = np.random.default_rng(number)
        self._observation = {
            STATE: rng.uniform(-90, 90, 6).astype(np.float32),
            IMAGE: rng.integers(0, 256, (64, 64, 3), np.uint8),
        }
        self._address, self._hz, self._begin, self._seconds = address, hz, begin, seconds
        self._phase = rng.uniform(0, 1 / hz)
        self.round_trips_s: list[float] = []
        self.skipped = 0

    def run(self) -> None:
        """Until the time is over."""
        with PolicyClient(self._address, timeout_s=30, connect_timeout_s=30) as client:
            client.infer(self._observation, task=TASK)
            self._begin.wait()
            beat = time.perf_counter() + self._phase
            end = beat + self._seconds
            while beat < end:
                time.sleep(max(0.0, beat - time.perf_counter()))
                self.round_trips_s.append(client.infer(self._observation, task=TASK).round_trip_s)
                late = max(0, int((time.perf_counter() - beat) * self._hz))
                self.skipped += late
                beat += (1 + late) / self._hz


def measure(address: str, metrics: str, clients: int, hz: float, seconds: float) -> dict:
    """One row of the table."""
    begin = threading.Barrier(clients + 1)
    robots = [Robot(address, number, hz, begin, seconds) for number in range(clients)]
    for robot in robots:
        robot.start()
    begin.wait()
    before = scraped(metrics)
    for robot in robots:
        robot.join()
    after = scraped(metrics)
    count, total = (after[name] - before[name] for name in ("count", "sum"))
    by_size = {size: after["by_size"][size] - before["by_size"][size] for size in after["by_size"]}
    rates = [len(robot.round_trips_s) / seconds for robot in robots]
    times = percentiles(second for robot in robots for second in robot.round_trips_s)
    return {
        "clients": clients,
        "hz_min": min(rates),
        "hz_mean": float(np.mean(rates)),
        "p50_ms": times["p50"],
        "p95_ms": times["p95"],
        "skipped": sum(robot.skipped for robot in robots),
        "batch_mean": total / count if count else 0.0,
        "chunks_by_batch": {size: int(chunks) for size, chunks in by_size.items() if chunks},
    }


def scraped(url: str) -> dict:
    """The histogram of batch sizes, as the server's Prometheus endpoint tells it."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    name = "lerobot_server_batch_size"
    found = {part: float(re.search(rf"^{name}_{part} (\S+)$", text, re.M)[1]) for part in ("count", "sum")}
    upto, by_size = 0.0, {}
    for bound, value in re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)$', text, re.M):
        by_size[f"<={bound}"] = float(value) - upto
        upto = float(value)
    return found | {"by_size": by_size}


def main() -> int:
    """Measure, print, save."""
    options = parser(__doc__)
    options.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options.add_argument("--hz", type=float, default=10.0, help="of each client (default %(default)s)")
    options.add_argument(
        "--seconds", type=float, default=10.0, help="of each measurement (default %(default)s)"
    )
    options.add_argument("--cost_ms", type=float, default=COST_S * 1e3, help="of the stand-in's batch")
    options.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    arguments = options.parse_args()
    if arguments.quick:
        arguments.clients, arguments.seconds = [1, 16], 2.0
    print(machine_line())
    results = {}
    for policy in arguments.policies:
        with server_of(policy, arguments) as (address, metrics):
            rows = [
                measure(address, metrics, clients, arguments.hz, arguments.seconds)
                for clients in progress(arguments.clients, policy, "run")
            ]
        results[policy] = rows
        print_table(
            [{name: value for name, value in row.items() if name != "chunks_by_batch"} for row in rows],
            f"{policy}: clients at {arguments.hz:g} Hz for {arguments.seconds:g} s, observations of 12.3 kB",
        )
        for row in rows:
            print(f"  {row['clients']:>2} clients, chunks by size of their batch: {row['chunks_by_batch']}")
    if "stand-in" in results and (most := results["stand-in"][-1])["clients"] == 16:
        kept = "kept" if most["hz_min"] >= GOAL_HZ else "MISSED"
        print(f"\ngoal, 16 clients on the stand-in get {GOAL_HZ:g} Hz each: {kept} ({most['hz_min']:.2f} Hz)")
    save("many_robots", results, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
