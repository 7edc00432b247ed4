"""Frames that are hard to show equally in training and at the robot, and datasets of exactly these frames.

Depth has holes, noise from pixel to pixel, and values below, at and beyond every limit; colour and vectors are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 24, 32
STATE, FORCE = 6, 5
FRAMES = 8
TIP = "until it clicks"
TASK = "press"
DEPTH_KEY, METRES_KEY, RGB_KEY = (
    f"observation.images.{name}" for name in ("side_depth", "top_depth", "side")
)
INTRINSICS = {"width": WIDTH, "height": HEIGHT, "fx": 30.0, "fy": 29.0, "ppx": 15.2, "ppy": 11.7}
LOWEST_MM, HIGHEST_MM = 100, 1100  # of the depth video


def hard_depth(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 1) uint16 millimetres: a noisy slope with everything that a sensor gives for "nothing" and "far"."""
    depth = np.linspace(150, 1300, WIDTH) + rng.normal(0, 30, (HEIGHT, WIDTH))
    for value in (0, 1, 99, 100, 101, 200, 1000, 1100, 1101, 20_000, 65_535):
        depth[rng.random((HEIGHT, WIDTH)) < 0.03] = value
    depth[2:6, 3:9] = 0
    return depth.clip(0, 65_535).astype(np.uint16)[..., None]


def smooth_depth(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 1) uint16 millimetres inside the video's range: a tilted plane with a box and a hole."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = 400 + rng.uniform(2, 8) * u + rng.uniform(2, 8) * v
    depth[8:14, 10:20] -= 100
    depth[16:20, 22:28] = 0
    return depth.round().astype(np.uint16)[..., None]


def robot_frames(depth=hard_depth, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """What a robot gives, as `build_dataset_frame` lays it out: uint8 and depth (H, W, C), vectors float32."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(FRAMES):
        millimetres = depth(rng)
        frames.append(
            {
                "observation.state": rng.normal(size=STATE).astype(np.float32),
                "observation.force": rng.normal(5, 2, FORCE).astype(np.float32),
                RGB_KEY: rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
                DEPTH_KEY: millimetres,
                METRES_KEY: (millimetres[:, ::-1] / np.float32(1000)).astype(np.float32),
            }
        )
    return frames


def record(root: Path, frames: list[dict[str, np.ndarray]], videos: bool) -> None:
    """Record the frames with LeRobot; as pictures, which keep every bit, or as videos."""
    from lerobot.configs import DepthEncoderConfig, RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features: dict[str, Any] = {
        "observation.state": vector(STATE),
        "observation.force": vector(FORCE),
        "action": vector(STATE),
        "language_tip": {"dtype": "string", "shape": (1,), "names": None},
    }
    for key in (RGB_KEY, DEPTH_KEY, METRES_KEY):
        channels = frames[0][key].shape[-1]
        features[key] = {
            "dtype": "video" if videos else "image",
            "shape": (HEIGHT, WIDTH, channels),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": channels == 1, "camera": {"intrinsics": INTRINSICS}},
        }
    dataset = LeRobotDataset.create(
        "test/hard",
        fps=30,
        features=features,
        root=root,
        use_videos=videos,
        rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="veryfast"),
        depth_encoder=DepthEncoderConfig(
            depth_min=LOWEST_MM / 1000, depth_max=HIGHEST_MM / 1000, use_log=False
        ),
    )
    rest = {"action": np.zeros(STATE, np.float32), "language_tip": TIP, "task": TASK}
    for frame in frames:
        dataset.add_frame(frame | rest)
    dataset.save_episode()
    dataset.finalize()


def vector(size: int) -> dict[str, Any]:
    """A dataset feature of `size` numbers."""
    return {"dtype": "float32", "shape": (size,), "names": [f"v{i}" for i in range(size)]}
