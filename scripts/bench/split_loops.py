"""The control loop at 60 Hz with three cameras while a small ACT infers: ours in two processes and in one, and LeRobot's.

Each is a whole rollout that LeRobot puts together, on the robot of `arms`. `split_process` prints it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import numpy as np
from split_ways import CAMERAS, CHUNK, JOINTS, SHAPE

HZ = 60.0
SKIP_S = 3.0  # after the first position: everything is warm
SPLIT, LOCAL = "ours, --split", "ours, one process"
SYNC, RTC = "LeRobot, sync", "LeRobot, its own thread"
ALL = (SPLIT, LOCAL, SYNC, RTC)
AIM = 0.01
# A chunk takes a second of one core, and has 1.7 s of actions: asked for when 1.3 s are left.
THRESHOLD = 0.8
_PATIENCE_S = 60.0  # for the first chunk


def make_act(folder: Path, seed: int) -> Path:
    """LeRobot's ACT with small dimensions and random weights, beside its ResNet-18; it looks at all three cameras."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    inputs = {f"observation.images.{name}": (FeatureType.VISUAL, (3, *SHAPE[:2])) for name in CAMERAS}
    inputs["observation.state"] = (FeatureType.STATE, (JOINTS,))
    torch.manual_seed(seed)
    config = make_policy_config(
        "act",
        device="cpu",
        push_to_hub=False,
        pretrained_backbone_weights=None,
        dim_model=128,
        dim_feedforward=256,
        n_heads=4,
        n_encoder_layers=2,
        n_vae_encoder_layers=1,
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        input_features={name: PolicyFeature(*each) for name, each in inputs.items()},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
    )
    features = (config.input_features | config.output_features).items()
    sizes = {n: (f.shape[0], 1, 1) if f.type is FeatureType.VISUAL else f.shape for n, f in features}
    stats = {n: {"mean": np.zeros(s, np.float32), "std": np.ones(s, np.float32)} for n, s in sizes.items()}
    get_policy_class("act")(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def control(name: str, checkpoint: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: the loop for so many seconds."""
    with contextlib.ExitStack() as stack:
        make: Callable[..., Any] = {SPLIT: _split, LOCAL: _local, SYNC: _lerobot, RTC: _lerobot_thread}[name]
        ctx = make(checkpoint, folder, arguments, stack)
        import arms

        robot = ctx.hardware.robot_wrapper.inner
        robot.run_for(arguments.seconds + SKIP_S, ctx.runtime.shutdown_event)
        cpu = time.process_time()
        began = time.perf_counter()
        tally = arms.run(ctx)
        busy = (time.process_time() - cpu) / (time.perf_counter() - began)
        sends = arms.Sends.of(robot, HZ, SKIP_S)
    errors = common.percentiles(sends.interval_errors())
    return {
        "loop": name,
        "late %": 100 * sends.late,
        "by its clock %": None if tally is None else 100 * tally.late_share,
        "nothing to send %": 100 * sends.starved,
        "Hz": sends.rate,
        "interval off ms p50": errors["p50"],
        "p99": errors["p99"],
        "longest pause ms": 1e3 * float(sends.intervals.max()),
        "sent": len(sends.times),
        "cores used": busy,
    }


def _config(policy: Any, inference: Any, arguments: argparse.Namespace) -> Any:
    import arms
    from lerobot.rollout.configs import RolloutConfig

    return RolloutConfig(
        robot=arms.BenchArmConfig(joints=JOINTS, pictures=CAMERAS, bus_s=0.002, seed=arguments.seed),
        policy=policy,
        inference=inference,
        fps=HZ,
        duration=arguments.seconds + SKIP_S + _PATIENCE_S,
        device="cpu",
        return_to_initial_position=False,
    )


def _context(policy: Any, inference: Any, arguments: argparse.Namespace) -> Any:
    from lerobot.rollout import context

    return context.build_rollout_context(_config(policy, inference, arguments), threading.Event())


def _here(checkpoint: Path) -> Any:
    from lerobot.configs import PreTrainedConfig

    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = str(checkpoint)
    return config


def _paced() -> Any:
    from lerobot_ext.rollout.config import AsyncInferenceConfig

    return AsyncInferenceConfig(
        policy_hz=HZ, control_hz=HZ, merge="aggregate", chunk_size_threshold=THRESHOLD
    )


def _split(checkpoint: Path, folder: Path, arguments: argparse.Namespace, stack: Any) -> Any:
    """What `lerobot-ext evaluate --split --yes` does, without its dataset."""
    from lerobot_ext.commands import split
    from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
    from lerobot_ext.rollout.start import SplitConfig

    made = split.Split({"policy": {"path": str(checkpoint)}}, split.Options(split=True, yes=True))
    stack.callback(made.close)
    address = made.remote({})["server"]["address"]
    limits = SplitConfig(log=str(folder / "inference.log"), threads=arguments.threads, load_s=600)
    with contextlib.redirect_stdout(sys.stderr):
        stack.enter_context(made.running(SimpleNamespace(split=limits), None))
    return _context(RemoteConfig(address=address), _paced(), arguments)


def _local(checkpoint: Path, folder: Path, arguments: argparse.Namespace, stack: Any) -> Any:
    return _context(_here(checkpoint), _paced(), arguments)


def _lerobot(checkpoint: Path, folder: Path, arguments: argparse.Namespace, stack: Any) -> Any:
    from lerobot.rollout.inference.factory import SyncInferenceConfig

    return _context(_here(checkpoint), SyncInferenceConfig(), arguments)


class _Unguided:
    """An ACT for LeRobot's asynchronous engine, which passes what only a policy that can be guided takes."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.config = policy.config

    def reset(self) -> None:
        self._policy.reset()

    def predict_action_chunk(self, batch: dict, **_: Any) -> Any:
        import torch

        with torch.no_grad():
            return self._policy.predict_action_chunk(batch)


def _lerobot_thread(checkpoint: Path, folder: Path, arguments: argparse.Namespace, stack: Any) -> Any:
    """LeRobot's engine `rtc` with guidance off: it appends chunks; it asks when as much is left as ours does."""
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.rollout.inference.rtc import RTCInferenceEngine

    ctx = _lerobot(checkpoint, folder, arguments, stack)
    policy = ctx.policy
    engine = RTCInferenceEngine(
        policy=_Unguided(policy.policy),
        preprocessor=policy.preprocessor,
        postprocessor=policy.postprocessor,
        robot_wrapper=ctx.hardware.robot_wrapper,
        rtc_config=RTCConfig(enabled=False),
        hw_features=ctx.data.hw_features,
        task="",
        fps=HZ,
        device="cpu",
        rtc_queue_threshold=round(THRESHOLD * CHUNK),
        shutdown_event=ctx.runtime.shutdown_event,
    )
    ctx.policy = replace(policy, inference=engine)
    return ctx


def show(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the table and whether the aim is reached."""
    common.print_table(
        rows,
        f"The control loop at {HZ:g} Hz with three cameras while a small ACT infers. late: sent more than half a period "
        "later\nafter the last one than it should be; by its clock: more than half a period after its deadline, or skipped",
    )
    ours = next((row for row in rows if row["loop"] == SPLIT), None)
    if ours is None:
        return {}
    worst = max(ours["late %"], ours["by its clock %"])
    reached = worst < 100 * AIM
    print(
        f"{'yes' if reached else 'NO '}  ours, --split: {worst:.2f} % of the ticks late (aim: below {100 * AIM:g} %), "
        "by either count"
    )
    return {"late_percent": worst, "aim_reached": reached}


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rows, one a loop."""
    sys.argv = sys.argv[:1]  # LeRobot's config reads it
    import lerobot_ext

    lerobot_ext.register()
    logging.getLogger("lerobot").setLevel(logging.ERROR)  # its loop warns at each late tick
    checkpoint = make_act(folder / "act", arguments.seed)
    return [
        control(name, checkpoint, folder, arguments)
        for name in common.progress(arguments.loops, "control loops", "loop")
    ]
