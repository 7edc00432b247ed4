"""A small real dataset with everything in it, and one without depth, force and tip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEIGHT, WIDTH, FPS = 64, 96, 30
EPISODES, FRAMES = 3, 20
FORCE_NAMES = [f"skin.m{i}_{axis}" for i in range(2) for axis in "xyz"]
JOINTS = [f"joint_{i}.pos" for i in range(6)]


def image_feature(channels: int) -> dict:
    return {
        "dtype": "video",
        "shape": (HEIGHT, WIDTH, channels),
        "names": ["height", "width", "channels"],
        "info": {"is_depth_map": channels == 1},
    }


def depth_frame(rng: np.random.Generator, episode: int, frame: int) -> np.ndarray:
    """Millimetres: a slope, a box that moves, and a hole without measurement."""
    depth = np.tile(np.linspace(300, 900, WIDTH), (HEIGHT, 1))
    depth[20:40, 10 + frame : 30 + frame] = 250 + 20 * episode
    depth[50:60, 60:80] = 0
    return depth.astype(np.uint16)[..., None]


def make_dataset(root: Path, **options):
    """Write it to `root`; the options are those of `LeRobotDataset.create`."""
    from lerobot.configs import DepthEncoderConfig, RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (6,), "names": JOINTS},
        "observation.force": {"dtype": "float32", "shape": (len(FORCE_NAMES),), "names": FORCE_NAMES},
        "observation.images.side": image_feature(3),
        "observation.images.side_depth": image_feature(1),
        "observation.images.wrist": image_feature(3),
        "action": {"dtype": "float32", "shape": (6,), "names": JOINTS},
        "language_tip": {"dtype": "string", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create(
        "test/all",
        fps=FPS,
        features=features,
        root=root,
        rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="veryfast"),
        depth_encoder=DepthEncoderConfig(depth_min=0.1, depth_max=1.1, use_log=False),
        **options,
    )
    rng = np.random.default_rng(0)
    for episode in range(EPISODES):
        for frame in range(FRAMES):
            colour = np.full((HEIGHT, WIDTH, 3), 40 * episode + frame, np.uint8)
            colour[10:30, 20 : 40 + frame] = (200, 60, 30)
            dataset.add_frame(
                {
                    "observation.state": rng.normal(size=6).astype(np.float32),
                    "observation.force": rng.normal(5, 2, size=len(FORCE_NAMES)).astype(np.float32),
                    "observation.images.side": colour,
                    "observation.images.side_depth": depth_frame(rng, episode, frame),
                    "observation.images.wrist": colour[:, ::-1].copy(),
                    "action": rng.normal(size=6).astype(np.float32),
                    "language_tip": "until it clicks" if episode else "",
                    "task": "press",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root
