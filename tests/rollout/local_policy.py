"""A real policy of a checkpoint with everything that LeRobot's rollout hands to an engine."""

from types import SimpleNamespace

import numpy as np
from checkpoints import STATE
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.rollout.inference import factory
from lerobot.utils.feature_utils import hw_to_dataset_features

JOINTS = [f"joint_{i}.pos" for i in range(STATE)]
FEATURES = hw_to_dataset_features(dict.fromkeys(JOINTS, float) | {"side": (64, 64, 3)}, "observation")
TASK = "press"


def observation(seed=0):
    """What the robot's observation processor gives."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(-20, 20, STATE).astype(np.float32)
    return dict(zip(JOINTS, map(float, joints), strict=True)) | {
        "side": rng.integers(0, 256, (64, 64, 3), np.uint8)
    }


def frame(observation):
    """The same by LeRobot's keys."""
    return {
        "observation.state": np.array([observation[name] for name in JOINTS], np.float32),
        "observation.images.side": observation["side"],
    }


def load(path):
    """Policy, preprocessor, postprocessor."""
    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path, config=config).eval()
    return policy, *make_pre_post_processors(config, pretrained_path=str(path))


def make(path, config, **changes):
    """An engine as LeRobot's rollout makes it."""
    policy, preprocessor, postprocessor = load(path)
    arguments = {
        "policy": policy,
        "preprocessor": preprocessor,
        "postprocessor": postprocessor,
        "robot_wrapper": SimpleNamespace(robot_type="so101_follower", inner=SimpleNamespace()),
        "hw_features": FEATURES,
        "dataset_features": FEATURES,
        "ordered_action_keys": JOINTS,
        "task": TASK,
        "fps": 30.0,
        "device": "cpu",
    }
    return factory.create_inference_engine(config, **arguments | changes)
