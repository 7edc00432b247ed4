"""Whether a training step takes longer through our wrapper: LeRobot's own train with and without a selection of everything.

A dataset of the lab that stock LeRobot can train on (two RGB cameras and joints), ACT and SmolVLA, both small. Runs of
LeRobot's `train` alternate in one process: `lerobot-train`'s config, and the same with a selection of everything. A step
is what comes after its batch is loaded: colour to float, the preprocessor (here our step comes first), forward,
backward, optimizer. Loading is shown beside it, because ours takes less. Two runs of the same train may differ by 10 % on a
shared machine, so the one thing that is added to a step, our step of the preprocessor, is also timed by itself. For
information, ours with depth and force, which stock cannot train on.

    python scripts/bench/step_time.py [--quick]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import lab_dataset

SIZE = (64, 96)
ALLOWED = 0.02
WARM_UP = 3  # steps of each run that do not count
WHO = ("LeRobot", "ours")
ALL = "ours, with depth and force"


class Clock:
    """Times of each step of a run: when its batch had been loaded, and when the policy was updated.

    Each is wall time and this process's processor time, in seconds; what else the machine does is not in the latter.
    """

    def __init__(self) -> None:
        self.loaded: list[tuple[float, float]] = []
        self.updated: list[tuple[float, float]] = []
        self.added: list[float] = []

    def figures(self) -> dict[str, list[float]]:
        """Seconds a step for loading and for all the rest, without the first steps."""
        steps = range(WARM_UP, len(self.updated))
        return {
            "step": [self.updated[i][0] - self.loaded[i][0] for i in steps],
            "processor": [self.updated[i][1] - self.loaded[i][1] for i in steps],
            "loading": [self.loaded[i][0] - self.updated[i - 1][0] for i in steps],
            "added": self.added[WARM_UP:] or [0.0],
        }


def now() -> tuple[float, float]:
    """Wall time and this process's processor time."""
    return time.perf_counter(), time.process_time()


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Let the clock see LeRobot's train: its batches come out of `cycle`, and go into `update_policy`."""
    from lerobot.scripts import lerobot_train

    from lerobot_ext.modality import ModalityStep

    cycle, update, select = lerobot_train.cycle, lerobot_train.update_policy, ModalityStep.__call__

    def timed_cycle(loader: Any) -> Iterator[Any]:
        for batch in cycle(loader):
            clock.loaded.append(now())
            yield batch

    def timed_update(*args: Any, **kwargs: Any) -> Any:
        done = update(*args, **kwargs)
        clock.updated.append(now())
        return done

    def timed_select(self: ModalityStep, transition: Any) -> Any:
        started = time.perf_counter()
        selected = select(self, transition)
        clock.added.append(time.perf_counter() - started)
        return selected

    lerobot_train.cycle, lerobot_train.update_policy = timed_cycle, timed_update
    ModalityStep.__call__ = timed_select
    try:
        yield
    finally:
        lerobot_train.cycle, lerobot_train.update_policy = cycle, update
        ModalityStep.__call__ = select


def train(
    who: str, policy: str, root: Path, arguments: argparse.Namespace, folder: Path
) -> dict[str, list[float]]:
    """One run of LeRobot's train; the seconds of its steps."""
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.scripts import lerobot_train

    from lerobot_ext.commands.train import TrainConfig

    kind, more = TrainPipelineConfig, {}
    if who != "LeRobot":
        kind, more = TrainConfig, {"use_depth_image": who == ALL, "use_force": who == ALL}
    config = kind(
        dataset=DatasetConfig(repo_id=lab_dataset.REPO_ID, root=str(root)),
        policy=make_config(policy, folder),
        output_dir=folder / "run",
        steps=arguments.steps + WARM_UP,
        batch_size=arguments.batch,
        num_workers=0,
        log_freq=0,
        save_checkpoint=False,
        seed=arguments.seed,
        **more,
    )
    shutil.rmtree(config.output_dir, ignore_errors=True)
    clock = Clock()
    with watched(clock):
        lerobot_train.train.__wrapped__(config)
    return clock.figures()


def make_config(policy: str, folder: Path) -> Any:
    """A small policy of that kind."""
    from lerobot.policies.factory import make_policy_config

    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    if policy == "smolvla":
        vlm = folder / "vlm"
        options = smolvla_overrides(vlm if vlm.is_dir() else make_tiny_vlm(vlm), chunk_size=20)
        options = {key: value for key, value in options.items() if key != "type"}
    else:
        options = {
            "pretrained_backbone_weights": None,
            "dim_model": 64,
            "n_heads": 2,
            "dim_feedforward": 128,
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
            "chunk_size": 20,
            "n_action_steps": 20,
        }
    return make_policy_config(policy, **{**options, "device": "cpu", "push_to_hub": False})


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row for each policy and contender."""
    made = {
        depth: lab_dataset.lab_dataset(arguments.work, arguments.frames, arguments.seed, SIZE, depth)
        for depth in (False, True)
    }
    rows = []
    for policy in arguments.policies:
        runs: dict[str, list[dict[str, list[float]]]] = {who: [] for who in (*WHO, ALL)}
        for turn in common.progress(range(arguments.turns), policy, "turn"):
            # whoever comes first meets the machine as the turn before left it
            for who in WHO if turn % 2 == 0 else reversed(WHO):
                runs[who].append(train(who, policy, made[False], arguments, folder))
        runs[ALL].append(train(ALL, policy, made[True], arguments, folder))
        stock = statistics.median(step for run in runs["LeRobot"] for step in run["step"])
        # Of each turn by itself: what the machine does in between falls on both.
        pairs = list(zip(runs["ours"], runs["LeRobot"], strict=True))
        wall, processor = (
            statistics.median(statistics.median(a[what]) / statistics.median(b[what]) for a, b in pairs)
            for what in ("step", "processor")
        )
        for who, results in runs.items():
            step = statistics.median(step for run in results for step in run["step"])
            rows.append(
                {
                    "policy": policy,
                    "train": who,
                    "step ms": 1e3 * step,
                    "of LeRobot's": step / stock,
                    "median of turns": wall if who == "ours" else None,
                    "of processor time": processor if who == "ours" else None,
                    "of it our step ms": 1e3
                    * statistics.median(one for run in results for one in run["added"]),
                    "loading ms": 1e3 * statistics.median(load for run in results for load in run["loading"]),
                    "steps": sum(len(run["step"]) for run in results),
                }
            )
    return rows


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=Path, default=common.RESULTS / "cache", help="for the datasets")
    parser.add_argument("--frames", type=int, help="in the dataset (default 300; quick 100)")
    parser.add_argument("--steps", type=int, help="of each run (default 40; quick 10)")
    parser.add_argument("--turns", type=int, help="runs of each (default 8; quick 2)")
    parser.add_argument("--batch", type=int, default=4, help="samples (default %(default)s)")
    parser.add_argument("--policies", nargs="+", default=["act", "smolvla"])
    arguments = parser.parse_args()
    arguments.frames = arguments.frames or (100 if arguments.quick else 300)
    arguments.steps = arguments.steps or (10 if arguments.quick else 40)
    arguments.turns = arguments.turns or (2 if arguments.quick else 8)
    sys.argv = sys.argv[:1]  # LeRobot's config reads it

    import lerobot_ext

    lerobot_ext.register()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="step_time") as folder:
        rows = measure(arguments, Path(folder))
    common.print_table(
        rows,
        f"A training step after its batch is loaded, batch {arguments.batch}, {SIZE[0]}x{SIZE[1]}, CPU; medians",
    )
    for row in rows:
        if row["train"] == "ours":
            more = row["median of turns"] - 1
            said = "reached" if more <= ALLOWED else "NOT reached"
            print(
                f"{row['policy']}: ours takes {100 * more:+.1f} % (goal within {100 * ALLOWED:g} %: {said}); of the "
                f"processor's time {100 * (row['of processor time'] - 1):+.1f} %; our step itself is "
                f"{100 * row['of it our step ms'] / row['step ms']:.2f} % of it"
            )
    common.save("step_time", rows, arguments)


if __name__ == "__main__":
    main()
