"""Policies that look at several observations get the last ones, one control step apart."""

from __future__ import annotations

import numpy as np
import pytest
import standin
import torch
from lerobot.policies.utils import prepare_observation_for_inference

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from simplify_work.local.history import History


@pytest.fixture
def served():
    runner = standin.StandIn(32, 48, n_obs_steps=3)
    server, address = standin.start(runner)
    yield runner, address
    server.stop()


def tick(step: int) -> dict[str, np.ndarray]:
    return standin.observation(step, 32, 48) | {standin.STATE: np.full(6, step, np.float32)}


def steps_of(request) -> list[int]:
    return request.observation[standin.STATE][:, 0].astype(int).tolist()


def test_select_action_remembers_every_step(served):
    runner, address = served
    policy = RemotePolicy(RemoteConfig(address=address, timeout_s=30, n_action_steps=4))
    policy.reset()
    for step in range(9):
        policy.select_action(prepare_observation_for_inference(tick(step), torch.device("cpu"), "press"))
    assert [steps_of(request) for request in runner.seen] == [[0], [2, 3, 4], [6, 7, 8]]
    assert runner.seen[-1].observation[standin.SIDE].shape == (3, 32, 48, 3)
    np.testing.assert_array_equal(runner.seen[-1].observation[standin.SIDE][0], tick(6)[standin.SIDE])


def test_a_new_episode_begins_without_the_last_one(served):
    runner, address = served
    policy = RemotePolicy(RemoteConfig(address=address, timeout_s=30))
    for step in range(2):
        policy.infer(tick(step))
    policy.reset()
    policy.infer(tick(7))
    assert [steps_of(request) for request in runner.seen] == [[0], [0, 1], [7]]


def test_observations_without_a_request_are_remembered_too(served):
    runner, address = served
    policy = RemotePolicy(
        RemoteConfig(address=address, timeout_s=30, rename_map={"observation.images.left": standin.SIDE})
    )
    for step in range(4):
        frame = tick(step)
        frame["observation.images.left"] = frame.pop(standin.SIDE)
        policy.infer(frame) if step == 3 else policy.observe(frame)
    assert steps_of(runner.seen[0]) == [1, 2, 3]


def test_stacked_pictures_are_encoded(served):
    runner, address = served
    policy = RemotePolicy(RemoteConfig(address=address, timeout_s=30, codec="lossless"))
    policy.observe(tick(0))
    assert policy.infer(tick(1)).codec == "lossless"
    np.testing.assert_array_equal(
        runner.seen[0].observation[standin.SIDE], np.stack([tick(0)[standin.SIDE], tick(1)[standin.SIDE]])
    )


def test_pictures_of_another_size_begin_a_new_history():
    history = History(2)
    small, large = np.zeros((4, 4, 3)), np.zeros((8, 8, 3))
    history.add({"a": small})
    assert history.add({"a": small})["a"].shape == (2, 4, 4, 3)
    assert history.add({"a": large})["a"].shape == (1, 8, 8, 3)
