"""What asking a remote policy costs on one machine, over what the bytes themselves cost.

Three 480x640 RGB pictures, 6 joints and 15 force channels go to another process, a chunk of 50x6 comes back; the
policy answers at once. Ours over TCP, over TCP with CURVE, and over `ipc://` with shared memory; LeRobot's
`async_inference`; a pickled dictionary over ZeroMQ; and the floor, a bare zero-copy ZeroMQ exchange of the same
bytes. They take turns in rounds, so that whatever else the machine does hits all alike.

    python scripts/bench/remote_overhead.py [--quick]
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import peers

from simplify_work.wire.keys import make_keys

GOALS = {
    "median over TCP is at most 2 times the floor": lambda p50: p50["ours, tcp"] <= 2 * p50["floor"],
    "median over TCP is at least 10 times below LeRobot's": lambda p50: (
        10 * p50["ours, tcp"] <= p50["lerobot"]
    ),
    "shared memory is below the TCP floor": lambda p50: p50["ours, ipc, shared"] < p50["floor"],
}


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="turns that each takes (default %(default)s)")
    parser.add_argument("--calls", type=int, default=20, help="calls in a turn (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.calls = 5, 10
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        everyone = _everyone(Path(folder), stack)
        times = measure(everyone, arguments.rounds, arguments.calls, arguments.seed)
        codecs = {name: peer.last.codec for name, peer in everyone.items() if isinstance(peer, peers.Ours)}
    figures = {name: common.percentiles(sample) for name, sample in times.items()}
    p50 = {name: figure["p50"] for name, figure in figures.items()}
    rows = [
        {
            "milliseconds": name,
            "p50": figure["p50"],
            "p95": figure["p95"],
            "min": figure["min"],
            "of the floor": figure["p50"] / p50["floor"],
            "LeRobot's is": f"{common.ratio(figure['p50'], p50['lerobot']):.1f} times it",
        }
        for name, figure in figures.items()
    ]
    common.print_table(
        rows, "From observation to chunk, a policy that answers at once, loopback, two processes"
    )
    goals = {name: bool(met(p50)) for name, met in GOALS.items()}
    print()
    for name, met in goals.items():
        print(f"{'yes' if met else 'NO '}  {name}")
    results = {"milliseconds": figures, "codecs": codecs, "goals": goals}
    common.save(
        "remote_overhead",
        results | {"p50_over_floor": {n: v / p50["floor"] for n, v in p50.items()}},
        arguments,
    )


def measure(everyone: dict, rounds: int, calls: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of each call, by peer; each answer is compared with what it has to be.

    Raises:
        RuntimeError: If an answer is wrong.
    """
    observation = peers.observation(seed=seed)
    expected = peers.chunk_of(observation["observation.state"])
    times: dict[str, list[float]] = {name: [] for name in everyone}
    for turn in range(rounds + 1):
        for name, peer in everyone.items():
            for _ in range(calls):
                started = time.perf_counter()
                chunk = peer.ask(observation)
                taken = time.perf_counter() - started
                if turn:  # the first round warms up
                    times[name].append(taken)
            if name != "floor" and not np.allclose(chunk, expected, atol=1e-4):
                raise RuntimeError(f"{name} answered with another chunk than the stand-in's.")
    return times


def _everyone(folder: Path, stack: contextlib.ExitStack) -> dict:
    make_keys(folder / "keys", ["bench"])
    made = {
        "floor": peers.Floor(),
        "ours, tcp": peers.Ours().connect(),
        "ours, tcp, curve": peers.Ours(keys=folder / "keys").connect(),
        "ours, ipc, shared": peers.Ours(f"ipc://{folder}/brain").connect(),
        "pickle, zmq": peers.Pickled(),
        "lerobot": peers.LeRobots().connect(),
    }
    for peer in made.values():
        stack.callback(peer.close)
    return made


if __name__ == "__main__":
    main()
