"""Engine `async` is one of LeRobot's engines; LeRobot's RTC engine merges nothing of an episode that is over."""

import threading
from types import SimpleNamespace

import draccus
import pytest
import torch
from draccus.utils import ParsingError
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout import RolloutConfig, context
from lerobot.rollout.inference import factory
from lerobot.rollout.inference.factory import InferenceEngineConfig, SyncInferenceConfig
from lerobot.rollout.inference.rtc import RTCInferenceEngine
from lerobot.rollout.inference.sync import SyncInferenceEngine

from lerobot_ext.rollout.config import AsyncInferenceConfig

ROLLOUT = ["--policy.type=remote", "--robot.type=so101_follower_ext", "--robot.port=/dev/null"]


def parse(*words):
    return draccus.parse(RolloutConfig, args=[*ROLLOUT, *words]).inference


def test_it_is_a_choice_of_the_command_line():
    assert "async" in InferenceEngineConfig.get_known_choices()
    config = parse(
        "--inference.type=async",
        "--inference.merge=aggregate",
        "--inference.aggregate=conservative",
        "--inference.actions_per_chunk=30",
        "--inference.chunk_size_threshold=0.7",
        "--inference.latency=p95",
        "--inference.when_lost=rest",
        "--inference.rest_position={shoulder_pan: 1.5, gripper: 10}",
        "--inference.action_limits={elbow_flex: [-90, 90]}",
        "--inference.telemetry_dir=/tmp/telemetry",
    )
    assert isinstance(config, AsyncInferenceConfig) and config.type == "async"
    assert (config.merge, config.aggregate, config.actions_per_chunk) == ("aggregate", "conservative", 30)
    assert (config.chunk_size_threshold, config.latency, config.when_lost) == (0.7, "p95", "rest")
    assert config.rest_position == {"shoulder_pan": 1.5, "gripper": 10.0}
    assert config.action_limits == {"elbow_flex": (-90.0, 90.0)}
    assert config.telemetry_dir == "/tmp/telemetry"
    assert parse("--inference.type=async") == AsyncInferenceConfig()
    assert isinstance(parse(), SyncInferenceConfig)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("merge=blend", "inference.merge is blend, expected one of auto, rtc, aggregate, append"),
        ("aggregate=median", "expected one of weighted_average, latest_only"),
        ("requests_in_flight=3", "inference.requests_in_flight is 3, expected one of 1, 2"),
        ("chunk_size_threshold=1.5", "expected a share of the chunk, 0 to 1"),
        ("actions_per_chunk=0", "expected 1 or more, or null"),
        ("latency=mean", "expected 'max' or a percentile"),
        ("give_up_s=0", "expected a number above 0"),
        ("max_hold_s=-1", "expected 0 or more"),
        ("action_limits={gripper: [5, 5]}", "expected [least, greatest]"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(option, sentence):
    with pytest.raises(ParsingError) as caught:
        parse("--inference.type=async", f"--inference.{option}")
    error = caught.value
    while error.__cause__ is not None:  # draccus says only there what was wrong
        error = error.__cause__
    assert isinstance(error, ValueError) and sentence in str(error) and "\n" not in str(error)


def test_lerobots_own_engines_are_made_as_before():
    assert context.create_inference_engine is factory.create_inference_engine
    common = dict.fromkeys(("policy", "preprocessor", "postprocessor"), None)
    engine = factory.create_inference_engine(
        SyncInferenceConfig(),
        **common,
        robot_wrapper=SimpleNamespace(robot_type="so101"),
        hw_features={},
        dataset_features={},
        ordered_action_keys=[],
        task="",
        fps=30,
        device="cpu",
    )
    assert isinstance(engine, SyncInferenceEngine)


class SlowPolicy:
    """Its first chunk is of ones and takes until the test lets it go; those after it are of twos."""

    config = SimpleNamespace()

    def __init__(self):
        self.started, self.go = threading.Event(), threading.Event()
        self.calls = 0

    def reset(self):
        pass

    def predict_action_chunk(self, batch, **kwargs):
        self.calls += 1
        value = float(self.calls)
        self.started.set()
        if self.calls == 1:
            assert self.go.wait(10)
        return torch.full((1, 5, 1), min(value, 2.0))


class Unchanged:
    steps = ()

    def reset(self):
        pass

    def __call__(self, value):
        return value


def test_lerobots_rtc_engine_drops_a_chunk_that_was_asked_for_in_the_last_episode():
    policy = SlowPolicy()
    engine = RTCInferenceEngine(
        policy,
        Unchanged(),
        Unchanged(),
        SimpleNamespace(robot_type="so101", action_features={}),
        RTCConfig(),
        {"observation.state": {"dtype": "float32", "shape": (1,), "names": ["pan.pos"]}},
        "press",
        fps=30,
        device="cpu",
    )
    engine.reset()
    engine.start()
    try:
        engine.notify_observation({"pan.pos": 1.0})
        engine.resume()
        assert policy.started.wait(10)
        engine.reset()  # a new episode, while the chunk is being made
        policy.go.set()
        assert not _wait(lambda: engine.get_action(None) is not None, 0.3), (
            "neither chunk nor old observation"
        )
        assert policy.calls == 1
        engine.notify_observation({"pan.pos": 2.0})
        assert _wait(lambda: engine.action_queue.qsize() > 0, 10)
        assert engine.get_action(None).item() == 2.0
    finally:
        engine.stop()


def _wait(condition, seconds):
    until = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        until.wait(0.01)
    return False
