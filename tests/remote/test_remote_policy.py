"""Policy type `remote` behaves in LeRobot's own machinery as the policy that the server runs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.rollout.inference.sync import SyncInferenceEngine

from lerobot_ext.features import VectorFeature
from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.features import given_features
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from simplify_work.wire.errors import FeatureMismatch, ServerUnreachable

JOINTS = [f"joint{index}.pos" for index in range(checkpoints.STATE)]


def engine(policy, pre, post) -> SyncInferenceEngine:
    """LeRobot's synchronous engine around a policy."""
    return SyncInferenceEngine(
        policy=policy,
        preprocessor=pre,
        postprocessor=post,
        dataset_features={"action": {"dtype": "float32", "shape": (len(JOINTS),), "names": JOINTS}},
        ordered_action_keys=JOINTS,
        task="press the block",
        device="cpu",
        robot_type="so100",
    )


def remote_engine(config: RemoteConfig) -> SyncInferenceEngine:
    policy = get_policy_class("remote").from_pretrained(None, config=config, revision=None).to("cpu")
    return engine(policy, *make_pre_post_processors(config, pretrained_path=None))


def test_lerobots_loop_gets_the_actions_of_the_local_policy(server, act):
    config = PreTrainedConfig.from_pretrained(act)
    local = engine(
        get_policy_class("act").from_pretrained(act, config=config),
        *make_pre_post_processors(config, pretrained_path=str(act)),
    )
    remote = remote_engine(RemoteConfig(address=server.address, timeout_s=30))
    for episode in range(2):
        local.reset()
        remote.reset()
        for tick in range(7):  # 5 actions of a chunk are executed: two chunks an episode
            frame = checkpoints.observation(10 * episode + tick)
            difference = local.get_action(dict(frame)) - remote.get_action(dict(frame))
            assert difference.abs().max() < 1e-5


def test_chunks_are_cut_as_the_config_says(server):
    config = RemoteConfig(address=server.address, timeout_s=30, n_action_steps=2, actions_per_chunk=3)
    policy = RemotePolicy(config)
    batch = prepare_observation_for_inference(checkpoints.observation(), torch.device("cpu"), "press")
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (1, 3, 6)
    assert chunk.dtype == torch.float32
    for step in (0, 1, 0):
        torch.testing.assert_close(policy.select_action(batch), chunk[:, step])


def test_telemetry_gets_a_line_a_chunk(server, tmp_path):
    path = tmp_path / "round_trips.jsonl"
    policy = RemotePolicy(RemoteConfig(address=server.address, timeout_s=30, telemetry_path=str(path)))
    batch = prepare_observation_for_inference(checkpoints.observation(), torch.device("cpu"), "press")
    for _ in range(6):
        policy.select_action(batch)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["chunk"] for line in lines] == [1, 2]
    assert all(0 < line["infer_s"] < line["round_trip_s"] for line in lines)


def test_the_robots_features_are_checked_before_it_moves(server):
    policy = RemotePolicy(RemoteConfig(address=server.address))
    robot = dict.fromkeys(JOINTS, float) | {"side": (480, 640, 3), "force": VectorFeature(["x", "y"])}
    policy.check_features(robot)
    with pytest.raises(
        FeatureMismatch, match=r"observation.images.side is missing.*The robot gives: .*force \(2,\)"
    ):
        policy.check_features(dict.fromkeys(JOINTS, float) | {"force": VectorFeature(["x", "y"])})
    batch = prepare_observation_for_inference(
        {"observation.state": np.zeros(6, np.float32)}, torch.device("cpu"), "press"
    )
    with pytest.raises(FeatureMismatch, match="The policy wants: "):
        policy.select_action(batch)


def test_a_rename_map_leads_the_robots_names_to_the_policys(server, act):
    config = RemoteConfig(
        address=server.address, timeout_s=30, rename_map={"observation.images.front": checkpoints.IMAGE}
    )
    remote = remote_engine(config)
    remote._policy.check_features(dict.fromkeys(JOINTS, float) | {"front": (64, 64, 3)})
    frame = checkpoints.observation(2)
    expected = checkpoints.local_chunk(act, frame)[0]
    frame["observation.images.front"] = frame.pop(checkpoints.IMAGE)
    assert (remote.get_action(frame) - expected).abs().max() < 1e-5


def test_a_robots_features_get_lerobots_names():
    robot = {"a.pos": float, "b.pos": float, "temperature": float, "side": (4, 5, 3), "side_depth": (4, 5, 1)}
    given = {
        spec.name: (spec.kind, spec.shape) for spec in given_features(robot | {"force": VectorFeature("xyz")})
    }
    assert given == {
        "observation.state": ("vector", (2,)),
        "observation.images.side": ("image", (4, 5, 3)),
        "observation.images.side_depth": ("depth", (4, 5, 1)),
        "observation.force": ("vector", (3,)),
    }


def test_a_server_that_is_not_there_is_an_error_within_five_seconds():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match=f"{address} .*lerobot-ext serve --policy.path"):
            RemotePolicy.from_pretrained(None, config=RemoteConfig(address=address))
        assert time.monotonic() - started < 5


def test_the_config_survives_saving(tmp_path):
    config = RemoteConfig(
        address="tcp://gpu:6000", n_action_steps=7, seed=3, rename_map={"a": "b"}, codec="jpeg", keys="k"
    )
    config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


def test_the_policy_survives_saving_without_weights(server, tmp_path):
    RemotePolicy(RemoteConfig(address=server.address)).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert RemotePolicy.from_pretrained(tmp_path).welcome.policy_type == "act"


@pytest.mark.parametrize(
    "values",
    [
        {"timeout_s": 0},
        {"connect_timeout_s": -1},
        {"n_action_steps": 0},
        {"actions_per_chunk": 0},
        {"seed": -1},
        {"codec": "mp4"},
        {"jpeg_quality": 0},
    ],
)
def test_numbers_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match=f"policy.{next(iter(values))} is"):
        RemoteConfig(**values)


def test_it_says_that_it_cannot_be_trained(server):
    policy = RemotePolicy(RemoteConfig(address=server.address))
    for refused in (lambda: policy.forward({}), policy.get_optim_params, policy.config.get_optimizer_preset):
        with pytest.raises(ValueError, match="cannot be trained"):
            refused()


def test_the_config_is_cheap_and_quiet_to_import():
    code = (
        "import logging; logging.basicConfig(level=logging.WARNING)\n"
        "import sys; import lerobot.configs; before = set(sys.modules)\n"
        "from lerobot_ext.policies.remote.configuration_remote import RemoteConfig; RemoteConfig()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new <= {'lerobot_ext'}, new\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
