"""A 10 Hz policy on a 100 Hz arm: how evenly positions are sent and how smooth they are, ours against LeRobot's.

The policy is scripted: chunks of a smooth motion, each put off by another amount, so that there is a jump where a new
one takes over, and each late by a quarter of a second, more or less. The n-th chunk of every contender is made of the
same numbers. The arm notes when each position was sent; reading its joints takes 2 ms.

LeRobot's side is its own code: strategy `base` at 10 Hz with `interpolation_multiplier=10`, once with its own
asynchronous engine (`rtc`, whose queue lets a new chunk take the old one's place), once with our engine at one rate,
which hands it the very actions that ours resamples, so that what is left is the loop and the interpolation. Each
contender runs on a machine that has nothing else to do, and beside a process that keeps another core busy, in turns.

    python scripts/bench/fast_arm.py [--quick]
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import common
import numpy as np

JOINTS, CHUNK = 6, 16
POLICY_HZ, CONTROL_HZ = 10.0, 100.0
BUS_S = 0.002
DELAY_S, DELAY_SPREAD_S = 0.25, 0.08
JUMP = 3.0  # degrees, standard deviation of what a chunk is put off by
MAX_STEP = 0.6  # degrees a control tick: the motion itself needs 0.5
SKIP_S = 2.0
LEROBOT, LEROBOT_OURS = "LeRobot x10, its engine", "LeRobot x10, our engine"
# Name to (resample, max_step).
OURS = {
    "ours, linear": ("linear", None),
    "ours, linear, max_step": ("linear", MAX_STEP),
    "ours, cubic": ("cubic", None),
    "ours, cubic, max_step": ("cubic", MAX_STEP),
}
ALL = (LEROBOT, LEROBOT_OURS, *OURS)


class Script:
    """The policy: the n-th chunk that it is asked for, and how long that takes.

    Args:
        seed: Of offsets and delays.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._began: float | None = None
        self.made = 0

    def chunk(self) -> np.ndarray:
        """(16, 6) float32 degrees, from now on at 10 Hz; comes after its delay."""
        asked = time.perf_counter()
        self._began = asked if self._began is None else self._began
        rng = np.random.default_rng((self._seed, self.made))
        self.made += 1
        offset = rng.normal(0, JUMP, JOINTS)
        times = (asked - self._began) + np.arange(CHUNK)[:, None] / POLICY_HZ
        phases = np.arange(JOINTS)
        motion = 30 * np.sin(2 * np.pi * 0.25 * times + phases)
        time.sleep(max(0.0, rng.normal(DELAY_S, DELAY_SPREAD_S)))
        return (motion + offset).astype(np.float32)


class _Source:
    """The script for our engine."""

    chunk_size, n_obs_steps, windows, supports_rtc, patience_s = CHUNK, 1, {}, True, None

    def __init__(self, script: Script) -> None:
        self._script = script

    def reset(self) -> None:
        """It is started once."""

    def infer(self, request: Any) -> Any:
        from lerobot_ext.rollout.sources import Answer

        chunk = self._script.chunk()
        return Answer(chunk, chunk)


class _Policy:
    """The script for LeRobot's engine."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.config = SimpleNamespace(use_amp=False)

    def reset(self) -> None:
        """It is started once."""

    def predict_action_chunk(self, batch: dict, **_: Any) -> Any:
        import torch

        return torch.from_numpy(self._script.chunk()).unsqueeze(0)


class _Same:
    """A pipeline that changes nothing."""

    steps: tuple = ()

    def __call__(self, data: Any) -> Any:
        return data

    def reset(self) -> None:
        """There is nothing to forget."""


def _our_engine(script: Script, names: list[str], **options: Any) -> Any:
    from lerobot_ext.rollout.checks import ActionChecks
    from lerobot_ext.rollout.config import AsyncInferenceConfig
    from lerobot_ext.rollout.engine import AsyncInferenceEngine

    # `rtc` lets the new chunk take the old one's place, as LeRobot's queue does; nothing guides this script.
    config = AsyncInferenceConfig(merge="rtc", chunk_size_threshold=0.5, **options)
    checks = ActionChecks.of(names)
    return AsyncInferenceEngine(config, _Source(script), merge="rtc", checks=checks, fps=POLICY_HZ)


def _context(name: str, script: Script, robot: Any, seconds: float) -> Any:
    import arms

    names = list(robot.action_features)
    if name in OURS:
        resample, max_step = OURS[name]
        rates = {"policy_hz": POLICY_HZ, "control_hz": CONTROL_HZ}
        engine = _our_engine(script, names, **rates, resample=resample, max_step=max_step)
        return arms.rollout_context(robot, engine, fps=POLICY_HZ, seconds=seconds)
    multiplier = round(CONTROL_HZ / POLICY_HZ)
    if name == LEROBOT_OURS:
        engine = _our_engine(script, names)
        return arms.rollout_context(robot, engine, fps=POLICY_HZ, seconds=seconds, multiplier=multiplier)
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.inference.rtc import RTCInferenceEngine

    ctx = arms.rollout_context(robot, None, fps=POLICY_HZ, seconds=seconds, multiplier=multiplier)
    ctx.policy.inference = RTCInferenceEngine(
        policy=_Policy(script),
        preprocessor=_Same(),
        postprocessor=_Same(),
        robot_wrapper=ctx.hardware.robot_wrapper,
        rtc_config=RTCConfig(enabled=True, execution_horizon=CHUNK),
        hw_features=ctx.data.hw_features,
        task="",
        fps=POLICY_HZ,
        device="cpu",
        rtc_queue_threshold=CHUNK // 2,
        shutdown_event=ctx.runtime.shutdown_event,
    )
    return ctx


@dataclass
class Turn:
    """What one contender did in one turn: its sends, our loop's own count of ticks (None of LeRobot's), and chunks."""

    sends: Any
    tally: Any
    chunks: int


def measure(name: str, loaded: bool, seed: int, seconds: float) -> Turn:
    """One turn of a contender."""
    import arms

    robot = arms.BenchArm(arms.BenchArmConfig(joints=JOINTS, bus_s=BUS_S))
    robot.connect()
    script = Script(seed)
    ctx = _context(name, script, robot, seconds + SKIP_S + 30)
    robot.run_for(seconds + SKIP_S, ctx.runtime.shutdown_event)
    with _busy() if loaded else contextlib.nullcontext():
        tally = arms.run(ctx)
    return Turn(arms.Sends.of(robot, CONTROL_HZ, SKIP_S), tally, script.made)


def pooled(name: str, loaded: bool, turns: list[Turn]) -> dict[str, Any]:
    """One row: all turns of a contender together."""
    errors = common.percentiles(np.concatenate([turn.sends.interval_errors() for turn in turns]))
    jerks = np.concatenate([turn.sends.jerks() for turn in turns])
    intervals = np.concatenate([turn.sends.intervals for turn in turns])
    ticks = sum(turn.tally.ticks + turn.tally.missed for turn in turns if turn.tally is not None)
    return {
        "load": loaded,
        "loop": name,
        "interval off ms p50": errors["p50"],
        "p99": errors["p99"],
        "max": errors["max"],
        "Hz": float(1 / intervals.mean()),
        "late %": 100 * float(np.mean([turn.sends.late for turn in turns])),
        "by its clock %": 100 * sum(turn.tally.late for turn in turns) / ticks if ticks else None,
        "largest step": float(max(turn.sends.steps().max() for turn in turns)),
        "largest jerk": float(jerks.max()),
        "jerk p95": float(np.percentile(jerks, 95)),
        "chunks": sum(turn.chunks for turn in turns),
        "sent": sum(len(turn.sends.times) for turn in turns),
    }


def _burn() -> None:
    while True:
        pass


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A process that never rests, on the last core where one can be chosen; this process may use all of them."""
    process = multiprocessing.get_context("spawn").Process(target=_burn, daemon=True)
    process.start()
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        time.sleep(1.0)  # it has begun
        yield
    finally:
        process.kill()
        process.join()


def show(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the tables; the ratios."""
    common.print_table(
        rows,
        f"{POLICY_HZ:g} Hz policy, {CONTROL_HZ:g} Hz arm, chunks that jump by {JUMP:g} degrees (standard deviation). "
        "Steps in degrees a tick,\njerk in degrees/s^3 at the nominal rate, of the joint that has the largest",
    )
    ratios = []
    for loaded in sorted({row["load"] for row in rows}):
        by = {row["loop"]: row for row in rows if row["load"] == loaded}
        for peer in (LEROBOT, LEROBOT_OURS):
            ratios += [
                {"load": loaded, "LeRobot / ours": f"{peer} / {name}"}
                | {
                    what: common.ratio(by[name][what], by[peer][what])
                    for what in ("interval off ms p50", "p99", "largest step", "largest jerk")
                }
                for name in OURS
                if name in by and peer in by
            ]
    common.print_table(ratios, "LeRobot's figure over ours: above 1, ours is the smaller one")
    return ratios


def main(argv: list[str] | None = None) -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="of control, each, in each turn, after the first 2 (default %(default)s)",
    )
    parser.add_argument(
        "--turns",
        type=int,
        default=3,
        help="rounds of all contenders, so that what else the machine does meets all (default %(default)s)",
    )
    parser.add_argument("--loops", nargs="+", choices=ALL, default=list(ALL))
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seconds, arguments.turns = 2.0, 1
    import lerobot_ext

    lerobot_ext.register()
    logging.getLogger().setLevel(logging.ERROR)  # LeRobot's loop warns at each late tick
    kinds = [(name, loaded) for loaded in (False, True) for name in arguments.loops]
    found: dict[tuple[str, bool], list[Turn]] = {kind: [] for kind in kinds}
    for turn, kind in common.progress([(t, k) for t in range(arguments.turns) for k in kinds], "arms", "run"):
        found[kind].append(measure(*kind, arguments.seed + turn, arguments.seconds))
    rows = [pooled(*kind, turns) for kind, turns in found.items()]
    ratios = show(rows)
    common.save("fast_arm", {"rows": rows, "ratios": ratios}, arguments)


if __name__ == "__main__":
    main()
