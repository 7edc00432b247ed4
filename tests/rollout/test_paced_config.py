"""What does not go with two rates is said in one sentence, and before anything is connected."""

import threading
from types import SimpleNamespace

import pytest
from lerobot.rollout.configs import HighlightStrategyConfig, RolloutConfig
from lerobot.rollout.context import build_rollout_context

from lerobot_ext.errors import UserError
from lerobot_ext.rollout import paced
from lerobot_ext.rollout.config import AsyncInferenceConfig


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"policy_hz": 10}, "inference.policy_hz is 10, but inference.control_hz is not given"),
        ({"control_hz": 100}, "inference.control_hz is 100, but inference.policy_hz is not given"),
        (
            {"policy_hz": 10, "control_hz": 5},
            "inference.control_hz is 5, expected at least inference.policy_hz, 10",
        ),
        ({"policy_hz": 0, "control_hz": 5}, "inference.policy_hz is 0, expected a number above 0"),
        (
            {"policy_hz": 1, "control_hz": 2, "max_step": 0},
            "inference.max_step is 0, expected a number above 0",
        ),
        ({"policy_hz": 1, "control_hz": 2, "max_steps": 0}, "inference.max_steps is 0, expected 1 or more"),
        (
            {"policy_hz": 1, "control_hz": 2, "resample": "sinc"},
            "inference.resample is sinc, expected one of linear",
        ),
        ({"policy_hz": 1, "control_hz": 2, "monitor_s": -1}, "inference.monitor_s is -1, expected 0 or more"),
        ({"max_step": 2.0}, "inference.max_step is 2.0, but it is for the loop with two rates"),
        ({"monitor_s": 1.0}, "inference.monitor_s is 1.0, but it is for the loop with two rates"),
    ],
)
def test_wrong_rates_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        AsyncInferenceConfig(**options)


def rollout_config(**more):
    """LeRobot's, without the policy that its constructor would load."""
    cfg = RolloutConfig.__new__(RolloutConfig)
    cfg.inference = AsyncInferenceConfig(policy_hz=10, control_hz=100)
    cfg.strategy = SimpleNamespace(type="episodic")
    cfg.dataset = SimpleNamespace(fps=30)
    cfg.interpolation_multiplier = 1
    vars(cfg).update(more)
    return cfg


def test_the_dataset_gets_the_policys_rate(caplog):
    cfg = rollout_config()
    paced.check(cfg)
    assert cfg.dataset.fps == 10 and "dataset.fps is 30; it is set to inference.policy_hz, 10" in caplog.text


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"strategy": HighlightStrategyConfig()},
            "strategy.type is highlight.* strategies base and episodic",
        ),
        (
            {"interpolation_multiplier": 2},
            "interpolation_multiplier is 2.* leave interpolation_multiplier out",
        ),
        (
            {"inference": AsyncInferenceConfig(policy_hz=12.5, control_hz=100)},
            "inference.policy_hz is 12.5.* a whole number",
        ),
    ],
)
def test_what_does_not_go_with_two_rates_is_said_before_anything_is_connected(more, sentence):
    with pytest.raises(UserError, match=sentence):
        build_rollout_context(rollout_config(**more), threading.Event())
