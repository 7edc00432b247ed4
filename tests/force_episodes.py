"""A recorded dataset with force, and a SmolVLA that looks at the last samples of it, saved as training saves it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import checkpoints
import numpy as np
import torch

HISTORY, FRAMES, EPISODES, FPS = 4, 11, 2, 30
STATE, FORCE, IMAGE = "observation.state", "observation.force", "observation.images.side"
JOINTS = [f"joint_{i}.pos" for i in range(checkpoints.STATE)]
FORCES = ["skin.x", "skin.y", "skin.z"]
FEATURES = {
    STATE: {"dtype": "float32", "shape": (6,), "names": JOINTS},
    FORCE: {"dtype": "float32", "shape": (3,), "names": FORCES},
    IMAGE: {"dtype": "image", "shape": (16, 24, 3), "names": ["height", "width", "channels"]},
    "action": {"dtype": "float32", "shape": (6,), "names": JOINTS},
}


def selection(history: int = HISTORY):
    from lerobot_ext.modality import ForceSelection, Selection

    return Selection(force=ForceSelection("token", history))


def record(root: Path) -> list[list[dict[str, np.ndarray]]]:
    """Write the dataset; returns what the robot saw, by episode and frame."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create("test/force", FPS, FEATURES, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(EPISODES):
        seen.append([])
        for _ in range(FRAMES):
            frame = {
                STATE: rng.normal(size=6).astype(np.float32),
                FORCE: rng.normal(5, 2, size=3).astype(np.float32),
                IMAGE: rng.integers(0, 256, (16, 24, 3), np.uint8),
            }
            seen[-1].append(frame)
            dataset.add_frame({**frame, "action": frame[STATE], "task": "press"})
        dataset.save_episode()
    dataset.finalize()
    return seen


def open_view(root: Path, history: int = HISTORY, **options):
    """The dataset as training reads it."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_ext.modality.view import select_dataset

    return select_dataset(LeRobotDataset("test/force", root=root, **options), selection(history))


def window(forces: list[np.ndarray], frame: int, history: int = HISTORY) -> np.ndarray:
    """What the network shall see at a frame: the last samples, the first one standing for those before it."""
    return np.stack([forces[max(0, i)] for i in range(frame - history + 1, frame + 1)])


def make_policy_config(view, vlm: Path, **changes):
    """The config of a small SmolVLA, as LeRobot's train has it before it makes the policy."""
    from lerobot.policies.factory import make_policy_config as make

    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    options = smolvla_overrides(make_tiny_vlm(vlm), chunk_size=8) | {
        "num_steps": 2,
        "tokenizer_max_length": 8,
        "device": "cpu",
        "push_to_hub": False,
    }
    return make(options.pop("type"), **{**options, **changes})


def make_checkpoint(path: Path, vlm: Path, view) -> Path:
    """A SmolVLA with random weights, also those of its force token, saved with its processors by LeRobot."""
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    from lerobot_ext.modality.force import prepare_policy

    torch.manual_seed(0)
    config = make_policy_config(view, vlm)
    prepare_policy(config, view.meta.selection, view.meta.features)
    policy = make_policy(config, view.meta).eval()
    for value in policy.model.force_token.values.values():
        torch.nn.init.normal_(value.weight)  # they start at zero
    policy.save_pretrained(path)
    for processor in make_pre_post_processors(config, dataset_stats=view.meta.stats):
        processor.save_pretrained(path)
    return path


def load(path: Path) -> SimpleNamespace:
    """Policy, preprocessor and postprocessor as LeRobot's rollout loads them."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path, config=config).eval()
    pre, post = make_pre_post_processors(config, pretrained_path=str(path))
    return SimpleNamespace(config=config, policy=policy, pre=pre, post=post)


def watch(policy) -> list[torch.Tensor]:
    """Every window that reaches the token from now on, (H * n,), normalised."""
    seen: list[torch.Tensor] = []
    policy.model.force_token.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].clone()))
    return seen
