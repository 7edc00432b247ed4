"""Recorded observations, and a small SmolVLA trained on them for a minute, for benchmarks that replay a recording.

The recording is the virtual lab's: its physics, its scripted operator and its renderer, run in this process faster
than real time and seeded; or any LeRobot dataset. Not a benchmark itself.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tqdm import tqdm

FPS = 30
PICTURE = 64
IMAGE = "observation.images.side"
STATE = "observation.state"
TASK = "Press the block with the jaw, hold for a second, and go home."
_BATCH = 16
_RATE = 6e-3


@dataclass(frozen=True)
class Recording:
    """Observations and what the operator did.

    Attributes:
        source: In words, for the report.
        states: (n, dim) float32, the robot's units (degrees on the lab).
        pictures: (n, PICTURE, PICTURE, 3) uint8.
        actions: (n, dim) float32, as `states`.
        episodes: (n,) int, which episode each frame is of.
    """

    source: str
    states: np.ndarray
    pictures: np.ndarray
    actions: np.ndarray
    episodes: np.ndarray

    def frames(self, episode: int) -> np.ndarray:
        """Indices of the frames of one episode."""
        return np.flatnonzero(self.episodes == episode)

    def observation(self, index: int) -> dict[str, np.ndarray]:
        """As a robot's dataset frame has it."""
        return {STATE: self.states[index], IMAGE: self.pictures[index]}


def record(episodes: int, seed: int) -> Recording:
    """Presses by the lab's scripted operator at 30 Hz; the follower follows the leader as in teleoperation."""
    from lerobot_ext.virtual.render import Cameras
    from lerobot_ext.virtual.task import TICK_S, PressTask
    from lerobot_ext.virtual.world import Drive

    task = PressTask(seed)
    cameras = Cameras(task.world, PICTURE, PICTURE)
    rows: list[tuple] = []
    try:
        for episode in tqdm(range(episodes), desc="recording on the lab", unit="episode", leave=False):
            task.start_episode()
            passed, frames, moved = 0.0, 0, False
            while not moved or task.operator_doing != "home":
                if passed * FPS >= frames:
                    state, action = np.rad2deg(task.world.joints), np.rad2deg(task.leader)
                    rows.append((state.copy(), cameras.color("side"), action.copy(), episode))
                    frames += 1
                leader = Drive(task.leader, np.zeros(6, bool), np.ones(6), np.ones(6))
                task.tick(Drive.at(task.leader), leader, read_for=1.0)
                moved = moved or task.operator_doing != "home"
                passed += TICK_S
            task.end_episode()
    finally:
        cameras.close()
    states, pictures, actions, numbers = (np.stack(column) for column in zip(*rows, strict=True))
    return Recording(
        f"virtual lab, {episodes} presses, seed {seed}, simulated time",
        states.astype(np.float32),
        pictures,
        actions.astype(np.float32),
        numbers,
    )


def load(root: Path) -> Recording:
    """A LeRobot dataset: its state, its action, and its first colour camera, made small."""
    import cv2
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    import lerobot_ext

    lerobot_ext.register()
    dataset = LeRobotDataset(root.name, root=root, video_backend="pyav")
    cameras = [key for key in dataset.meta.camera_keys if not key.endswith("_depth")]
    if not cameras or STATE not in dataset.features:
        raise SystemExit(
            f"dataset {root}: expected {STATE} and a colour camera; found {sorted(dataset.features)}."
        )
    columns: tuple[list, ...] = ([], [], [], [])
    for index in tqdm(range(len(dataset)), desc=f"reading {root}", unit="frame", leave=False):
        item = dataset[index]
        picture = (item[cameras[0]].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        small = cv2.resize(picture, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
        values = (item[STATE].numpy(), small, item["action"].numpy(), int(item["episode_index"]))
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    states, pictures, actions, numbers = map(np.stack, columns)
    return Recording(f"dataset {root}", states, pictures, actions, numbers)


def trained(recording: Recording, chunk: int, steps: int, seed: int, folder: Path) -> Path:
    """A small SmolVLA (LeRobot's code, 0.3 M parameters) trained on the recording; from the cache if it is there.

    Args:
        recording: What it learns.
        chunk: Actions in a chunk.
        steps: Of training, batches of 16.
        seed: Of weights, batches and noise.
        folder: Where checkpoints are kept.

    Returns:
        The checkpoint, as `lerobot-ext serve` takes it.
    """
    mark = {
        "source": recording.source,
        "frames": len(recording.states),
        "chunk": chunk,
        "steps": steps,
        "seed": seed,
    }
    path = folder / f"smolvla_small_c{chunk}_t{steps}_s{seed}"
    note = path / "training.json"
    if note.is_file() and json.loads(note.read_text())["of"] == mark:
        return path
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    dim = recording.actions.shape[1]
    options = smolvla_overrides(make_tiny_vlm(folder / "tiny_vlm"), chunk_size=chunk)
    options = {key: value for key, value in options.items() if key != "type"}
    config = make_policy_config(
        "smolvla",
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, recording.states.shape[1:]),
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, PICTURE, PICTURE)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (dim,))},
        tokenizer_max_length=16,
        **options,
    )
    preprocessor, postprocessor = make_pre_post_processors(config, dataset_stats=_stats(recording))
    policy = get_policy_class("smolvla")(config)
    started = time.monotonic()
    loss = _train(policy, preprocessor, recording, chunk, steps, np.random.default_rng(seed))
    policy.save_pretrained(path)
    for processor in (preprocessor, postprocessor):
        processor.save_pretrained(path)
    note.write_text(json.dumps({"of": mark, "loss": loss, "seconds": time.monotonic() - started}))
    return path


def _train(policy, preprocessor, recording: Recording, chunk: int, steps: int, rng) -> float:
    """Flow matching on random windows; returns the mean loss of the last tenth."""
    ends = {number: recording.frames(number)[-1] for number in np.unique(recording.episodes)}
    last = np.array([ends[number] for number in recording.episodes])
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    losses = []
    for _ in tqdm(range(steps), desc="training a small SmolVLA", unit="step", leave=False):
        index = rng.integers(0, len(recording.states), _BATCH)
        window = index[:, None] + np.arange(chunk)
        inside = window <= last[index][:, None]
        actions = recording.actions[np.minimum(window, last[index][:, None])]
        pictures = recording.pictures[index].transpose(0, 3, 1, 2).astype(np.float32) / 255
        batch = preprocessor(
            {
                STATE: torch.from_numpy(recording.states[index]),
                IMAGE: torch.from_numpy(pictures),
                "action": torch.from_numpy(actions),
                "action_is_pad": torch.from_numpy(~inside),
                "task": [TASK] * _BATCH,
            }
        )
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    policy.eval()
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _stats(recording: Recording) -> dict:
    """Mean and deviation as LeRobot's datasets carry them."""
    pictures = recording.pictures.reshape(-1, 3) / 255
    arrays = {STATE: recording.states, "action": recording.actions}
    stats = {
        key: {
            "mean": values.mean(0),
            "std": values.std(0) + 1e-3,
            "min": values.min(0),
            "max": values.max(0),
        }
        for key, values in arrays.items()
    }
    shape = (3, 1, 1)
    stats[IMAGE] = {
        "mean": pictures.mean(0).reshape(shape),
        "std": pictures.std(0).reshape(shape),
        "min": np.zeros(shape),
        "max": np.ones(shape),
    }
    return stats
