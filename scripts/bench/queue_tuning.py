"""Which actions_per_chunk and chunk_size_threshold suit a link: empty queue, age of what is executed, smoothness.

The shipped engine and queue run in simulated time against a stand-in policy: smooth joint motion, and every chunk
departs from it in its own way, the more the further it looks ahead. Give the latency, or `--address` of your server
to have it measured on your own link with your own policy. What counts: no tick with an empty queue; then actions made
from a recent observation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import common
import numpy as np
from simulated import Executed, simulate

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.guidance import prefix_weights

ACTIONS_PER_CHUNK = (20, 30, 50, 100)
THRESHOLDS = (0.3, 0.5, 0.7)
DIM = 6


class StandIn:
    """A policy's chunks around one smooth motion.

    Its guidance is what guidance aims at: the new chunk is drawn to the leftover by the prefix weights.

    Args:
        ticks: Of the episode.
        fps: Ticks a second.
        chunk_size: Actions in a chunk.
        spread: By how much chunks depart from the motion at their far end, degrees (standard deviation).
        seed: Of motion and departures.
    """

    def __init__(self, ticks: int, fps: float, chunk_size: int, spread: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        seconds = np.arange(ticks + chunk_size)[:, None] / fps
        frequencies, phases = rng.uniform(0.05, 0.4, (3, DIM)), rng.uniform(0, 2 * np.pi, (3, DIM))
        waves = [np.sin(2 * np.pi * f * seconds + p) for f, p in zip(frequencies, phases, strict=True)]
        self._motion = (15 * np.mean(waves, axis=0)).astype(np.float32)
        ahead = np.arange(chunk_size)[:, None] / chunk_size
        self._chunk_size, self._seed = chunk_size, seed
        self._grow = spread * (0.3 + 0.7 * ahead)

    def __call__(self, request, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The chunk, and the same as the model's actions."""
        tick = request.observations[-1]["tick"]
        rng = np.random.default_rng((self._seed, tick))
        departure = rng.normal(size=(2, DIM))
        ahead = np.linspace(0, 1, self._chunk_size)[:, None]
        chunk = self._motion[tick : tick + self._chunk_size] + self._grow * (
            departure[0] * (1 - ahead) + departure[1] * ahead
        )
        if request.rtc is not None and request.left_over is not None:
            rtc, left_over = request.rtc, request.left_over[: self._chunk_size]
            horizon = min(rtc.execution_horizon, len(left_over))
            weights = prefix_weights(rtc.schedule, rtc.inference_delay, horizon, len(left_over)).numpy()[
                :, None
            ]
            chunk[: len(left_over)] += weights * (left_over - chunk[: len(left_over)])
        chunk = chunk.astype(np.float32)
        return chunk, chunk


def figures(run: Executed, fps: float) -> dict[str, float]:
    """What a run shows, after its first chunk arrived."""
    begun = int(np.argmin(run.starved))
    jumps = run.jumps()
    return {
        "empty": float(run.starved[begun:].mean() * 100),
        "age": float(run.age().mean()),
        "age_p95": float(np.percentile(run.age(), 95)),
        "jump": float(jumps.mean()) if len(jumps) else None,
        "jump_p95": float(np.percentile(jumps, 95)) if len(jumps) else None,
        "variation": float(np.abs(np.diff(run.actions[begun:], axis=0)).mean() * fps),
        "chunks/s": len(run.asked) / (len(run.actions) / fps),
    }


def best_of(rows: list[dict]) -> dict:
    """Fewest empty ticks (to a tenth of a percent), then the youngest actions."""
    return min(rows, key=lambda row: (round(row["empty"], 1), row["age"]))


def measured_latency(address: str, keys: str | None, count: int) -> tuple[list[float], int]:
    """Seconds from a made-up observation to its chunk, on the user's link with the server's policy; its chunk size."""
    from simplify_work.local import PolicyClient

    with PolicyClient(address, keys=keys, name="queue_tuning") as client:
        welcome = client.connect()
        shapes = {spec.name: (tuple(spec.sent.shape), np.dtype(spec.dtypes[0])) for spec in welcome.inputs}
        steps = () if welcome.n_obs_steps == 1 else (1,)
        arrays = {name: _plausible(steps + shape, dtype) for name, (shape, dtype) in shapes.items()}
        seconds = []
        for number in range(count + 3):
            started = time.perf_counter()
            client.infer(arrays)
            if number >= 3:  # the first ones meet a cold server, and `auto` still chooses its codec
                seconds.append(time.perf_counter() - started)
        return seconds, welcome.chunk_size


def _plausible(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros; but a colour picture with structure and noise, since it must be as hard to compress as a camera's."""
    if dtype != np.uint8 or shape[-1] != 3:
        return np.zeros(shape, dtype)
    rng = np.random.default_rng(0)
    height, width = shape[-3:-1]
    blocks = rng.uniform(40, 215, (-(-height // 32), -(-width // 32), 3))
    picture = np.kron(blocks, np.ones((32, 32, 1)))[:height, :width] + rng.normal(0, 4, (height, width, 3))
    return np.broadcast_to(picture.clip(0, 255).astype(np.uint8), shape).copy()


def main(argv: list[str] | None = None) -> int:
    """Measure the latency if there is an address, simulate all combinations, print and save."""
    args = _arguments().parse_args(argv)
    rng = np.random.default_rng(args.seed)
    sizes = sorted(set(args.actions_per_chunk))
    if args.address:
        sample, chunk_size = measured_latency(args.address, args.keys, 10 if args.quick else 50)
        link = common.percentiles(sample)
        common.print_table([link], f"latency of {args.address} in ms, made-up observations")
        sizes = [size for size in sizes if size <= chunk_size] or [chunk_size]
        latency: Callable[[], float] = lambda: float(rng.choice(sample))  # noqa: E731
    else:
        link = {"latency_ms": args.latency_ms, "jitter_ms": args.jitter_ms}
        latency = lambda: (args.latency_ms + rng.exponential(args.jitter_ms)) / 1e3  # noqa: E731
    ticks = round((10 if args.quick else args.seconds) * args.fps)

    rows = []
    for size in common.progress(sizes, "simulating", "chunk size"):
        for threshold in args.chunk_size_threshold:
            config = AsyncInferenceConfig(
                actions_per_chunk=size,
                chunk_size_threshold=threshold,
                aggregate=args.aggregate,
                requests_in_flight=args.requests_in_flight,
                latency=args.latency,
            )
            run = simulate(
                config,
                args.merge,
                StandIn(ticks, args.fps, max(sizes), args.spread, args.seed),
                [{}] * ticks,
                chunk_size=max(sizes),
                dim=DIM,
                fps=args.fps,
                latency=latency,
            )
            rows.append({"actions_per_chunk": size, "threshold": threshold, **figures(run, args.fps)})
    best = best_of(rows)
    common.print_table(
        [{**row, "best": "<--" if row is best else ""} for row in rows],
        f"merge {args.merge}, {args.fps:g} Hz; empty: % of ticks; age: ticks since the observation; jump, variation: "
        "degrees",
    )
    print(
        f"best: --inference.actions_per_chunk={best['actions_per_chunk']} "
        f"--inference.chunk_size_threshold={best['threshold']} (fewest empty ticks, then the youngest actions; its "
        f"{best['chunks/s']:.1f} chunks/s must suit the server)"
    )
    common.save("queue_tuning", {"link": link, "rows": rows, "best": best}, args)
    return 0


def _arguments():
    parser = common.parser(__doc__)
    parser.add_argument(
        "--latency_ms", type=float, default=100.0, help="observation to chunk (default %(default)s)"
    )
    parser.add_argument("--jitter_ms", type=float, default=0.0, help="mean of an exponential part on top")
    parser.add_argument("--address", help="measure the latency of this server instead, host:port or ipc:///…")
    parser.add_argument("--keys", help="folder of the client's keys for --address")
    parser.add_argument(
        "--fps", type=float, default=30.0, help="control ticks a second (default %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, each (default %(default)s)")
    parser.add_argument("--actions_per_chunk", type=int, nargs="+", default=list(ACTIONS_PER_CHUNK))
    parser.add_argument("--chunk_size_threshold", type=float, nargs="+", default=list(THRESHOLDS))
    parser.add_argument("--merge", choices=("rtc", "aggregate", "append"), default="rtc")
    parser.add_argument("--aggregate", default="weighted_average", help="of merge=aggregate")
    parser.add_argument("--requests_in_flight", type=int, choices=(1, 2), default=1)
    parser.add_argument("--latency", default="max", help="forecast: max or a percentile as p95")
    parser.add_argument("--spread", type=float, default=2.0, help="how far chunks depart, degrees")
    return parser


if __name__ == "__main__":
    sys.exit(main())
