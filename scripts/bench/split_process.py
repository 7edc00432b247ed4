"""A robot's process and an inference process on one machine: what handing over costs, and whether 60 Hz are kept.

First: three 480x640 RGB pictures and 14 joints go to another process, a chunk comes back; the other side answers at
once. Ours over `ipc://` with shared memory to the real server; a `multiprocessing.Queue`, which pickles; and the floor,
memcpy of the same bytes, once into shared memory and once out of it. They take turns.
Second: the control loop at 60 Hz on a robot with these cameras, while a small ACT (LeRobot's, random weights) infers.
Ours as `evaluate --split` runs it; our loop with the policy in its own process; LeRobot's own loop with its
synchronous engine, and with its asynchronous one (`rtc`, told not to guide, since ACT cannot be guided).

    python scripts/bench/split_process.py [--quick]
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import common
import split_loops
import split_ways


def main(argv: list[str] | None = None) -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="turns of handing over (default %(default)s)")
    parser.add_argument("--calls", type=int, default=20, help="calls in a turn (default %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=35.0,
        help="of control, each, after the first 3 (default %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, help="processor threads of the inference process (default: as --split chooses)"
    )
    parser.add_argument(
        "--loops",
        nargs="*",
        choices=split_loops.ALL,
        default=list(split_loops.ALL),
        help="none: handing over only",
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.calls, arguments.seconds = 3, 5, 4.0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="split_process") as name:
        folder = Path(name)
        figures = split_ways.hand_over(arguments, folder)
        results["hand_over_ms"], results["ratios"] = figures, split_ways.show(figures)
        if arguments.loops:
            rows = split_loops.measure(arguments, folder)
            results["loops"] = rows
            results["aim"] = split_loops.show(rows)
    common.save("split_process", results, arguments)


if __name__ == "__main__":
    main()
