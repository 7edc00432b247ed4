"""Policy type `remote` with RTC: LeRobot's engine gets the model's actions, and the server's postprocessor runs here."""

from __future__ import annotations

import time
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import PolicyProcessorPipeline
from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference
from lerobot.utils.feature_utils import hw_to_dataset_features

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from lerobot_ext.policies.remote.processor_remote import AffinePostprocessorStep
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address

JOINTS = [f"joint{index}.pos" for index in range(checkpoints.STATE)]
TASK = "press the block"


def serving(runner):
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    server = PolicyServer(runner, socket)
    address = listen.endpoint(socket)
    server.start()
    return server, address


@pytest.fixture(scope="module")
def rtc_server(smolvla):
    runner = PolicyRunner(smolvla, device="cpu")
    runner.warm_up()
    server, address = serving(runner)
    yield address
    server.stop()


@pytest.fixture
def act_server(runner):
    server, address = serving(runner)
    yield address
    server.stop()


def batch_of(frame):
    return prepare_observation_for_inference(dict(frame), torch.device("cpu"), TASK, "so100")


def rtc_policy(address, **settings) -> RemotePolicy:
    """As LeRobot's `build_rollout_context` does it."""
    config = RemoteConfig(address=address, timeout_s=60, seed=5)
    policy = RemotePolicy.from_pretrained(None, config=config)
    assert supports_rtc_inference(policy)
    policy.config.rtc_config = RTCConfig(execution_horizon=8, **settings)
    policy.init_rtc_processor()
    return policy


def test_the_chunk_in_model_units_and_the_postprocessor_here_make_the_servers_chunk(rtc_server, smolvla):
    frame = checkpoints.observation(3)
    policy = rtc_policy(rtc_server)
    _, post = make_pre_post_processors(policy.config, pretrained_path=None)
    model = policy.predict_action_chunk(batch_of(frame), inference_delay=0, prev_chunk_left_over=None)
    here = post(model)[0]
    local = checkpoints.local_chunk(smolvla, frame, TASK, seed=5)
    assert (model[0] - local).abs().max() > 0.1  # a postprocessor that does nothing would show nothing
    assert (here - local).abs().max() < 1e-5
    sync = RemotePolicy(RemoteConfig(address=rtc_server, timeout_s=60, seed=5))
    assert (here - sync.predict_action_chunk(batch_of(frame))[0]).abs().max() < 1e-5


def test_what_lerobots_engine_says_of_the_last_chunk_guides_the_next(rtc_server):
    policy = rtc_policy(rtc_server, max_guidance_weight=5.0)
    first = policy.predict_action_chunk(batch_of(checkpoints.observation(1)))[0]
    left_over = first[4:]

    def next_chunk(left_over):
        policy._chunks = 1  # the same noise
        return policy.predict_action_chunk(
            batch_of(checkpoints.observation(2)), inference_delay=2, prev_chunk_left_over=left_over
        )[0]

    free, guided = next_chunk(None), next_chunk(left_over)
    begin = slice(0, 2)
    assert (guided[begin] - left_over[begin]).abs().mean() < (free[begin] - left_over[begin]).abs().mean()


def test_lerobots_engine_runs_on_it(rtc_server):
    policy = rtc_policy(rtc_server)
    pre, post = make_pre_post_processors(policy.config, pretrained_path=None)
    engine = RTCInferenceEngine(
        policy=policy,
        preprocessor=pre,
        postprocessor=post,
        robot_wrapper=SimpleNamespace(robot_type="so100", action_features=dict.fromkeys(JOINTS, float)),
        rtc_config=policy.config.rtc_config,
        hw_features=hw_to_dataset_features(
            dict.fromkeys(JOINTS, float) | {"side": (64, 64, 3)}, "observation"
        ),
        task=TASK,
        fps=30,
        device="cpu",
        rtc_queue_threshold=8,
    )
    frame = checkpoints.observation(1)
    raw = dict(zip(JOINTS, frame["observation.state"].tolist(), strict=True)) | {
        "side": frame[checkpoints.IMAGE]
    }
    engine.start()
    try:
        engine.reset()
        engine.notify_observation(raw)
        engine.resume()
        taken, deadline = [], time.monotonic() + 60
        while len(taken) < 25 and time.monotonic() < deadline:
            action = engine.get_action(None)
            if action is not None:
                taken.append(action)
            time.sleep(0.01)
        assert not engine.failed
    finally:
        engine.stop()
    assert len(taken) == 25  # chunks are of 10
    assert torch.isfinite(torch.stack(taken)).all()


def test_a_policy_without_rtc_says_so(act_server, caplog):
    policy = RemotePolicy(RemoteConfig(address=act_server, timeout_s=30))
    with caplog.at_level("INFO", "lerobot_ext"):
        assert not supports_rtc_inference(policy)
    assert "policy 'act' at" in caplog.text
    assert "--inference.type=async or sync" in caplog.text
    with pytest.raises(
        ValueError, match=r"policy 'act' at tcp.* has no RTC; use --inference.type=async or sync"
    ):
        policy.init_rtc_processor()
    with pytest.raises(ValueError, match="passes on inference_delay in RTC mode only"):
        policy.predict_action_chunk(batch_of(checkpoints.observation()), inference_delay=2)


def test_a_postprocessor_that_cannot_run_here_is_refused(rtc_server):
    policy = RemotePolicy(RemoteConfig(address=rtc_server, timeout_s=30))
    policy._client._postprocessor = None
    with pytest.raises(ValueError, match="not scale and offset of each action entry.*--inference.type=async"):
        policy.init_rtc_processor()


def test_switched_off_rtc_guides_nothing(rtc_server):
    policy = rtc_policy(rtc_server, enabled=False)
    chunk = policy.predict_action_chunk(
        batch_of(checkpoints.observation(1)), inference_delay=2, prev_chunk_left_over=torch.zeros(8, 6)
    )
    policy._chunks = 0
    torch.testing.assert_close(policy.predict_action_chunk(batch_of(checkpoints.observation(1))), chunk)


def test_the_async_engines_call_returns_both_kinds_of_actions(rtc_server):
    policy = RemotePolicy(RemoteConfig(address=rtc_server, timeout_s=60, actions_per_chunk=7))
    chunk = policy.infer(checkpoints.observation(1), TASK)
    assert (chunk.actions.shape, chunk.model_actions.shape) == ((7, 6), (7, 6))
    scale, offset = policy._client.postprocessor
    np.testing.assert_allclose(chunk.model_actions * scale + offset, chunk.actions, atol=1e-5)


def test_the_postprocessor_survives_saving(tmp_path):
    step = AffinePostprocessorStep([2.0, 0.1], [1.0, -90.0])
    pipeline = PolicyProcessorPipeline([step], name="policy_postprocessor")
    pipeline.save_pretrained(tmp_path)
    again = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename="policy_postprocessor.json")
    transition = {"action": torch.tensor([[1.0, 100.0]])}
    torch.testing.assert_close(again.steps[0](transition)["action"], torch.tensor([[3.0, -80.0]]))


def test_what_rtc_leaves_on_the_config_is_not_saved(rtc_server, tmp_path):
    policy = rtc_policy(rtc_server)
    assert policy.config.rtc_postprocessor is not None
    policy.config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path).rtc_postprocessor is None
