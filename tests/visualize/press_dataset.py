"""A small dataset with a press in it: two cameras, one of them with depth, a force bump in the middle."""

from pathlib import Path

import numpy as np

FRAMES = 45
CHANNELS = [f"skin.m{m}_{axis}" for m in range(5) for axis in "xyz"]
JOINTS = [
    f"{j}.pos" for j in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
H, W = 120, 160


def frame(i: int, force: bool = True) -> dict:
    """One frame of a press: a dark jaw comes down on a block, holds, goes up."""
    t = i / (FRAMES - 1)
    press = float(np.clip(1 - abs(t - 0.5) * 4, 0, 0.5) * 2)
    jaw = int(20 + 50 * np.clip(1 - abs(t - 0.5) * 2, 0, 0.8))
    v, u = np.mgrid[:H, :W]
    color = np.stack([90 + v / 2, 110 + v / 2, 130 + u / 4], -1).astype(np.uint8)
    depth = (900 - 3 * v).astype(np.uint16)
    color[80:110, 60:100], depth[80:110, 60:100] = (200, 80, 60), 560
    color[:jaw, 70:90], depth[:jaw, 70:90] = (40, 40, 50), 480
    depth[:, :6] = 0
    data = {
        "observation.state": (np.sin(t * 3 + np.arange(6)) * 40).astype(np.float32),
        "action": (np.sin(t * 3 + 0.15 + np.arange(6)) * 40).astype(np.float32),
        "observation.images.side": color,
        "observation.images.side_depth": depth[..., None],
        "observation.images.wrist": np.ascontiguousarray(color[:, ::-1]),
        "task": "press <the block> & hold",
    }
    if force:
        bumps = np.linspace(-30, 60, 15) * press
        data["observation.force"] = (bumps + np.random.default_rng(i).normal(0, 0.4, 15)).astype(np.float32)
    return data


def make(root: Path, force: bool = True, episodes: int = 2) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def image(channels, depth=False):
        info = {"is_depth_map": True} if depth else {}
        return {
            "dtype": "video",
            "shape": (H, W, channels),
            "names": ["height", "width", "channels"],
            "info": info,
        }

    features = {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": JOINTS},
        "action": {"dtype": "float32", "shape": (6,), "names": JOINTS},
        "observation.images.side": image(3),
        "observation.images.side_depth": image(1, depth=True),
        "observation.images.wrist": image(3),
    }
    if force:
        features["observation.force"] = {"dtype": "float32", "shape": (15,), "names": CHANNELS}
    dataset = LeRobotDataset.create("test/press", fps=15, features=features, root=root)
    for _ in range(episodes):
        for i in range(FRAMES):
            dataset.add_frame(frame(i, force))
        dataset.save_episode()
    dataset.finalize()
    return root
