"""Share of observations that fail when packets of the servo bus are corrupted, and the control rate that is kept.

LeRobot's own SO follower (as it comes, and with as many retries as ours) and ours, one after the other on the same
virtual lab, which flips one bit in that share of the follower's status packets. Each is asked for a loop of
observation and action at 60 Hz; an observation that raises counts as failed, and the loop goes on.

    python scripts/bench/bus_faults.py [--quick] [--seconds=20] [--fault=corrupt] [--shares 0.001 0.01 0.05]
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
from lerobot.robots import Robot
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.robots.so_follower_ext import SO101FollowerExt
from lerobot_ext.virtual.testing import RunningLab, running_lab

CONNECT_TRIES = 5  # on a busy computer the lab may answer late
OURS, STOCK, STOCK_PATIENT = "ours", "LeRobot's", "LeRobot's, 3 retries"


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each loop (default %(default)s)")
    parser.add_argument("--hz", type=float, default=60, help="asked of the loop (default %(default)s)")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.001, 0.01, 0.05],
        help="of status packets (default %(default)s)",
    )
    parser.add_argument(
        "--fault",
        choices=("corrupt", "drop", "truncate"),
        default="corrupt",
        help="what happens to packets (default %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 3)
    logging.getLogger("lerobot").setLevel(logging.ERROR)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="bench") as folder,
        running_lab(Path(folder), no_operator=True, seed=arguments.seed) as lab,
    ):
        for share in common.progress([0.0, *arguments.shares], "shares", "share"):
            for who in (STOCK, STOCK_PATIENT, OURS):
                with connected(who, lab) as robot:
                    lab.client.fault("follower", f"{arguments.fault}:{share}")
                    try:
                        found = loop(robot, arguments.seconds, arguments.hz)
                    finally:
                        lab.client.fault("follower")
                rows.append({"packets": f"{share:.1%}", "follower": who, **found})
    common.print_table(
        rows, f"{arguments.fault} packets, {arguments.hz:g} Hz asked, {arguments.seconds:g} s each"
    )
    print()
    failures = {(row["packets"], row["follower"]): row["failed %"] for row in rows}
    rates = {(row["packets"], row["follower"]): row["Hz kept"] for row in rows}
    for share in arguments.shares:
        key = f"{share:.1%}"
        stock, ours = failures[key, STOCK], failures[key, OURS]
        times = (
            f"LeRobot's fails {stock / ours:.0f} times as often"
            if ours
            else f"LeRobot's fails {stock:.2f} %, ours never"
        )
        print(f"{key:>5} of packets: {times}; rate {rates[key, STOCK]:.1f} and {rates[key, OURS]:.1f} Hz")
    goals = {
        "no observation of ours fails": all(row["failed %"] == 0 for row in rows if row["follower"] == OURS),
        "ours keeps 95 % of the rate": all(
            row["Hz kept"] >= 0.95 * arguments.hz for row in rows if row["follower"] == OURS
        ),
    }
    for goal, met in goals.items():
        print(f"{'yes' if met else 'NO '}  {goal}")
    common.save("bus_faults", {"rows": rows, "goals": goals}, arguments)


@contextmanager
def connected(who: str, lab: RunningLab) -> Iterator[Robot]:
    """That follower, connected to the lab."""
    given = {"port": str(lab.follower), "id": "follower", "calibration_dir": lab.calibration}
    if who == OURS:
        robot: Robot = SO101FollowerExt(SO101FollowerExtConfig(**given))
    else:
        more = {"num_read_retries": 3} if who == STOCK_PATIENT else {}
        robot = SO101Follower(SO101FollowerConfig(**given, **more))
    for left in reversed(range(CONNECT_TRIES)):
        try:
            robot.connect()
            break
        except (
            ConnectionError,
            RuntimeError,
        ):  # LeRobot's takes a hundred packets, each of them asked for once
            if robot.bus.is_connected:
                robot.bus.disconnect(disable_torque=False)
            if not left:
                raise
    try:
        yield robot
    finally:
        robot.disconnect()


def loop(robot: Robot, seconds: float, hz: float) -> dict[str, float | int | None]:
    """Observe and act at `hz`; a turn that takes too long delays the ones after it, as in LeRobot's loops."""
    action = robot.get_observation()
    observed, acted, failed = [], 0, 0
    start = due = time.perf_counter()
    while (turn := time.perf_counter()) - start < seconds:
        try:
            robot.get_observation()
        except ConnectionError:
            failed += 1
        else:
            robot.send_action(action)
            acted += 1
        observed.append(time.perf_counter() - turn)
        due = max(due + 1 / hz, time.perf_counter())  # a turn that was late is not caught up
        time.sleep(due - time.perf_counter() if due > time.perf_counter() else 0)
    took = time.perf_counter() - start
    figures = common.percentiles(observed)
    report = getattr(robot, "last_report", None)
    return {
        "turns": len(observed),
        "failed": failed,
        "failed %": 100 * failed / len(observed),
        "Hz kept": acted / took,
        "p50 ms": figures["p50"],
        "p95 ms": figures["p95"],
        "max ms": figures["max"],
        "retries": report.counts["arm.retries"] if report else None,
        "reopened": report.counts["arm.reopened"] if report else None,
    }


if __name__ == "__main__":
    main()
