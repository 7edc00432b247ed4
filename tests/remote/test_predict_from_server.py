"""The short way: one line instead of the policy's own call."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.policies.utils import prepare_observation_for_inference

from simplify_work.local import predict
from simplify_work.local.predict import predict_from_server
from simplify_work.wire.errors import AddressError


@pytest.mark.parametrize("form", ["torch", "numpy"])
def test_the_chunk_is_the_local_policys(server, act, monkeypatch, form):
    monkeypatch.setenv(predict.ADDRESS_VARIABLE, server.address)
    frame = checkpoints.observation(4)
    batch = dict(frame)
    if form == "torch":
        batch = prepare_observation_for_inference(batch, torch.device("cpu"), "press the block")
    chunk = predict_from_server(batch)
    assert chunk.shape == (1, 20, 6)
    assert np.abs(chunk[0].numpy() - checkpoints.local_chunk(act, frame).numpy()).max() < 1e-5


def test_smolvla_is_asked_with_its_task_and_seed(tmp_path):
    from servers import ServerProcess

    path = checkpoints.make_smolvla(tmp_path / "checkpoint", tmp_path / "vlm")
    frame = checkpoints.observation(4)
    local = checkpoints.local_chunk(path, frame, "press the block", seed=2)
    batch = prepare_observation_for_inference(dict(frame), torch.device("cpu"), "press the block")
    with ServerProcess(path) as server:
        chunk = predict_from_server(batch, server.address, seed=2, timeout_s=30)
    assert (chunk[0] - local).abs().max() < 1e-5


def test_calls_share_one_connection(server):
    for _ in range(3):
        predict_from_server(checkpoints.observation(), server.address)
    assert predict._client(server.address) is predict._client(server.address)


def test_a_wrong_address_is_explained():
    with pytest.raises(AddressError, match="address 'nonsense'"):
        predict_from_server({}, "nonsense")
