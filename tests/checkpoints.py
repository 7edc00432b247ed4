"""Small real checkpoints for the tests: LeRobot's own policies with random weights, saved with their processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

STATE = 6
IMAGE = "observation.images.side"
DEFAULT_INPUTS = {
    "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
    IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
}

TRAINED_ACT = {
    "type": "act",
    "device": "cpu",
    "pretrained_backbone_weights": None,
    "dim_model": 32,
    "n_heads": 2,
    "dim_feedforward": 64,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "chunk_size": 5,
    "n_action_steps": 5,
}
"""The `policy:` section of a tiny ACT, for tests that train one by the command."""


def make_act(path: Path, seed: int = 0, inputs: dict | None = None, **changes) -> Path:
    """An ACT of 0.3 M parameters beside its ResNet: one 64x64 picture, 6 joints, chunks of 20, 5 of them executed."""
    options = {
        "dim_model": 32,
        "dim_feedforward": 64,
        "n_heads": 2,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 8,
        "chunk_size": 20,
        "n_action_steps": 5,
        "pretrained_backbone_weights": None,
    }
    return make_checkpoint("act", path, seed, inputs, **{**options, **changes})


def make_smolvla(path: Path, vlm: Path, seed: int = 0, inputs: dict | None = None, **changes) -> Path:
    """SmolVLA's real code around the small VLM that is made in the folder `vlm`: chunks of 10."""
    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    options = smolvla_overrides(make_tiny_vlm(vlm), chunk_size=10) | {
        "num_steps": 3,
        "tokenizer_max_length": 16,
    }
    for name in ("type", "device", "push_to_hub"):
        options.pop(name)
    return make_checkpoint("smolvla", path, seed, inputs, **{**options, **changes})


def make_checkpoint(
    kind: str,
    path: Path,
    seed: int = 0,
    inputs: dict | None = None,
    change: Callable | None = None,
    action_dim: int = STATE,
    **options,
) -> Path:
    """Any policy with random weights and made-up statistics, saved as LeRobot's training saves it.

    Args:
        change: Called with preprocessor and postprocessor before they are saved.
        action_dim: Width of an action.
    """
    torch.manual_seed(seed)
    config = make_policy_config(
        kind,
        device="cpu",
        push_to_hub=False,
        input_features=dict(inputs or DEFAULT_INPUTS),
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        **options,
    )
    policy = get_policy_class(kind)(config).eval()
    processors = make_pre_post_processors(config, dataset_stats=statistics(config))
    if change is not None:
        change(*processors)
    policy.save_pretrained(path)
    for processor in processors:
        processor.save_pretrained(path)
    return path


def statistics(config) -> dict:
    """Statistics that are not the identity, so that a forgotten normalisation shows."""
    rng = np.random.default_rng(1)
    stats = {}
    for name, feature in (config.input_features | config.output_features).items():
        shape = (feature.shape[0], 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        mean = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        std = rng.uniform(0.5, 2.0, shape).astype(np.float32)
        low, high = mean - 2 * std, mean + 2 * std
        stats[name] = {"mean": mean, "std": std, "min": low, "max": high, "q01": low, "q99": high}
    return stats


def observation(seed: int = 0, height: int = 64, width: int = 64) -> dict[str, np.ndarray]:
    """One observation as a robot's dataset frame has it."""
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.uniform(-90, 90, STATE).astype(np.float32),
        IMAGE: rng.integers(0, 256, (height, width, 3), np.uint8),
    }


def local_chunk(
    path: Path, frame: dict[str, np.ndarray], task: str = "", seed: int | None = None
) -> torch.Tensor:
    """What LeRobot computes in one process, action by action as its synchronous engine does; (n, dim)."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.utils import prepare_observation_for_inference

    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path, config=config)
    pre, post = make_pre_post_processors(config, pretrained_path=str(path))
    with torch.inference_mode():
        batch = prepare_observation_for_inference(dict(frame), torch.device("cpu"), task, "so100")
        batch = pre(batch)
        if seed is not None:
            torch.manual_seed(seed)
        chunk = policy.predict_action_chunk(batch)
        return torch.cat([post(chunk[:, step]) for step in range(chunk.shape[1])])
