"""A checkpoint with ACT's temporal ensembling, served: the server gives chunks, whoever executes them ensembles."""

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference

import lerobot_ext
from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from lerobot_ext.rollout.sources import RemoteSource
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address

COEFF, CHUNK = 0.2, 6
TASK = "press"


@pytest.fixture(scope="module")
def ensembled(tmp_path_factory):
    lerobot_ext.register()
    path = tmp_path_factory.mktemp("act") / "ensembled"
    return checkpoints.make_act(
        path, chunk_size=CHUNK, n_action_steps=1, temporal_ensemble_coeff=COEFF, use_vae=False
    )


@pytest.fixture(scope="module")
def address(ensembled):
    runner = PolicyRunner(ensembled, device="cpu")
    runner.warm_up()
    assert runner.served.temporal_ensemble_coeff == COEFF
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    server = PolicyServer(runner, socket)
    endpoint = listen.endpoint(socket)
    server.start()
    yield endpoint
    server.stop()


def remote(address, **options):
    return RemotePolicy(RemoteConfig(address=address, timeout_s=60, **options))


def batch_of(seed):
    return prepare_observation_for_inference(
        checkpoints.observation(seed), torch.device("cpu"), TASK, "so100"
    )


def test_the_remote_policy_acts_as_the_policy_itself_does(ensembled, address):
    config = PreTrainedConfig.from_pretrained(ensembled)
    policy = get_policy_class(config.type).from_pretrained(ensembled, config=config).eval()
    preprocessor, postprocessor = make_pre_post_processors(config, pretrained_path=str(ensembled))
    ours = remote(address)
    assert ours.welcome.temporal_ensemble_coeff == COEFF
    for _ in range(2):  # episodes
        policy.reset()
        ours.reset()
        for seed in range(2 * CHUNK):
            expected = postprocessor(policy.select_action(preprocessor(batch_of(seed))))
            found = ours.select_action(batch_of(seed))
            assert found.shape == expected.shape == (1, checkpoints.STATE)
            assert (found - expected).abs().max() < 1e-5
    assert ours._chunks == 2 * CHUNK, "one a step"
    ours.close()


def test_a_chunk_is_a_chunk(ensembled, address):
    ours = remote(address)
    chunk = ours.predict_action_chunk(batch_of(3))[0]
    expected = checkpoints.local_chunk(ensembled, checkpoints.observation(3), TASK)
    assert chunk.shape == (CHUNK, checkpoints.STATE) and (chunk - expected).abs().max() < 1e-5
    source = RemoteSource(ours, features={}, task=TASK)
    assert source.ensemble_coeff == COEFF
    ours.close()


def test_executing_several_actions_of_a_chunk_is_no_ensembling(ensembled, address):
    ours = remote(address, n_action_steps=3)
    chunk = checkpoints.local_chunk(ensembled, checkpoints.observation(0), TASK).numpy()
    for step in range(3):
        action = ours.select_action(batch_of(step))[0].numpy()
        assert np.abs(action - chunk[step]).max() < 1e-5
    ours.close()


def test_most_policies_ensemble_nothing(runner):
    assert runner.served.temporal_ensemble_coeff is None
