"""A LeRobot dataset of the virtual lab, for benchmarks of training: two RGB cameras, depth, joints and force.

The lab's physics, scripted operator and renderer run in this process, faster than real time and seeded; LeRobot writes
and encodes the dataset with its own defaults. Not a benchmark itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FPS = 30
REPO_ID = "bench/lab"
JOINTS = 6
STATE, FORCE, ACTION = "observation.state", "observation.force", "action"
SIDE, WRIST, DEPTH = (f"observation.images.{name}" for name in ("side", "wrist", "side_depth"))
TASK = "Press the block with the jaw, hold for a second, and go home."
_NOTE = "bench.json"


def lab_dataset(
    folder: Path, frames: int, seed: int, size: tuple[int, int] = (480, 640), depth: bool = True
) -> Path:
    """Record presses, or find what an earlier run recorded.

    Args:
        folder: Where datasets are kept.
        frames: In all; episodes are complete presses, the last one stops early.
        seed: Of the task.
        size: Height and width of all pictures.
        depth: With depth and force; without them LeRobot alone can train on it.

    Returns:
        The dataset's root.
    """
    root = folder / f"lab_{frames}x{size[0]}x{size[1]}_s{seed}{'' if depth else '_rgb'}"
    if (root / _NOTE).is_file():
        return root
    shutil.rmtree(root, ignore_errors=True)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create(
        REPO_ID,
        FPS,
        root=root,
        features=_features(size, depth),
        streaming_encoding=True,
        encoder_queue_maxsize=frames,
    )
    before = None
    for number, row in common.progress(_presses(frames, seed, size), "recording on the lab", "frame"):
        if before is not None and number != before:
            dataset.save_episode()
        before = number
        dataset.add_frame(
            {key: value for key, value in row.items() if key in dataset.features} | {"task": TASK}
        )
    dataset.save_episode()
    dataset.finalize()
    (root / _NOTE).write_text(json.dumps({"frames": frames, "seed": seed}))
    return root


def _presses(frames: int, seed: int, size: tuple[int, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(episode, frame) at `FPS` in the lab's own time."""
    from lerobot_ext.virtual.render import Cameras
    from lerobot_ext.virtual.task import TICK_S, PressTask
    from lerobot_ext.virtual.world import Drive

    task = PressTask(seed)
    cameras = Cameras(task.world, size[1], size[0])
    made = episode = 0
    try:
        while made < frames:
            task.start_episode()
            passed, shown, moved = 0.0, 0, False
            while made < frames and (not moved or task.operator_doing != "home"):
                if passed * FPS >= shown:
                    yield episode, _row(task, cameras)
                    shown, made = shown + 1, made + 1
                leader = Drive(task.leader, np.zeros(JOINTS, bool), np.ones(JOINTS), np.ones(JOINTS))
                task.tick(Drive.at(task.leader), leader, read_for=1.0)
                moved = moved or task.operator_doing != "home"
                passed += TICK_S
            task.end_episode()
            episode += 1
    finally:
        cameras.close()


def _row(task: Any, cameras: Any) -> dict[str, Any]:
    return {
        STATE: np.rad2deg(task.world.joints).astype(np.float32),
        FORCE: task.world.force.astype(np.float32),
        ACTION: np.rad2deg(task.leader).astype(np.float32),
        SIDE: cameras.color("side"),
        WRIST: cameras.color("wrist"),
        DEPTH: cameras.depth()[..., None],
    }


def _features(size: tuple[int, int], depth: bool) -> dict[str, dict[str, Any]]:
    def image(channels: int) -> dict[str, Any]:
        names = ["height", "width", "channels"]
        return {
            "dtype": "video",
            "shape": (*size, channels),
            "names": names,
            "info": {"is_depth_map": channels == 1},
        }

    def vector(names: list[str]) -> dict[str, Any]:
        return {"dtype": "float32", "shape": (len(names),), "names": names}

    joints = [f"joint_{i}.pos" for i in range(JOINTS)]
    features = {STATE: vector(joints), ACTION: vector(joints), SIDE: image(3), WRIST: image(3)}
    return features | ({FORCE: vector([f"pad_{axis}" for axis in "xyz"]), DEPTH: image(1)} if depth else {})
