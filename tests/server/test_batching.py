"""Observations that are inferred together give what each gives alone, and what cannot go together does not."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
import torch

from simplify_work.server.batching import join, likeness, stack_steps
from simplify_work.server.protocol import Request
from simplify_work.server.runner import PolicyRunner

TASKS = ("press the block", "pick", "press the block", "open the drawer, slowly")


@pytest.fixture(scope="module")
def smolvla_runner(smolvla):
    runner = PolicyRunner(smolvla, device="cpu")
    runner.warm_up()
    return runner


def together(runner, requests):
    outcomes = dict(runner.infer(requests))
    assert sorted(outcomes) == list(range(len(requests)))
    return [outcomes[index] for index in range(len(requests))]


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_batch_gives_lerobots_chunks(kind, request):
    path = request.getfixturevalue(kind)
    runner = request.getfixturevalue("runner" if kind == "act" else "smolvla_runner")
    frames = [checkpoints.observation(seed) for seed in range(4)]
    requests = [
        Request(runner.open_session(), frame, task, seed=seed)
        for seed, (frame, task) in enumerate(zip(frames, TASKS, strict=True))
    ]
    for seed, result in enumerate(together(runner, requests)):
        local = checkpoints.local_chunk(path, frames[seed], TASKS[seed], seed=seed).numpy()
        assert result.batch_size == 4
        assert np.abs(result.actions - local).max() < 1e-5


def test_who_has_a_seed_is_not_touched_by_who_has_none(smolvla_runner):
    frame = checkpoints.observation()
    alone = smolvla_runner.open_session().infer(frame, seed=3).actions
    seeds = (None, 3, None)
    results = together(
        smolvla_runner, [Request(smolvla_runner.open_session(), frame, seed=seed) for seed in seeds]
    )
    assert [result.batch_size for result in results] == [3, 3, 3]
    assert np.abs(results[1].actions - alone).max() < 1e-5
    assert np.abs(results[0].actions - results[2].actions).max() > 1e-3


def test_pictures_of_different_sizes_are_different_batches(smolvla_runner):
    frames = [checkpoints.observation(height=height, width=80) for height in (64, 48, 64)]
    results = together(
        smolvla_runner, [Request(smolvla_runner.open_session(), frame, seed=1) for frame in frames]
    )
    assert [result.batch_size for result in results] == [2, 1, 2]


def test_one_that_does_not_fit_does_not_spoil_the_others(runner):
    good, bad = checkpoints.observation(), {"observation.state": np.zeros(6, np.float32)}
    results = together(runner, [Request(runner.open_session(), frame) for frame in (good, bad, good)])
    assert isinstance(results[1], Exception)
    assert [results[0].batch_size, results[2].batch_size] == [2, 2]


def test_a_batch_that_fails_is_inferred_one_by_one(runner, monkeypatch, caplog):
    predict = runner.predict

    def little_memory(steps, seeds, guidances):
        if len(seeds) > 1:
            raise torch.OutOfMemoryError("too large")
        return predict(steps, seeds, guidances)

    monkeypatch.setattr(runner, "predict", little_memory)
    frame = checkpoints.observation()
    results = together(runner, [Request(runner.open_session(), frame) for _ in range(3)])
    assert [result.batch_size for result in results] == [1, 1, 1]
    assert "a batch of 3 failed" in caplog.text


def test_only_what_is_alike_is_alike():
    def batch(**changes):
        return {"a": torch.zeros(1, 3), "task": "x", "n": 1, "none": None} | changes

    assert likeness(batch()) == likeness(batch(a=torch.ones(1, 3), task="y"))
    for other in (
        {"a": torch.zeros(1, 4)}, {"a": torch.zeros(1, 3, dtype=torch.int64)}, {"n": 2}, {"none": object()}, {"b": 1},
    ):  # fmt: skip
        assert likeness(batch()) != likeness(batch(**other))


def test_joining_keeps_the_order():
    batches = [
        {"a": torch.full((1, 2), float(n)), "task": [f"t{n}"], "kind": "k", "same": 7} for n in range(3)
    ]
    joined = join(batches)
    assert joined["a"][:, 0].tolist() == [0, 1, 2]
    assert joined["task"] == ["t0", "t1", "t2"]
    assert (joined["kind"], joined["same"]) == (["k"] * 3, 7)


def test_time_steps_become_an_axis_after_the_batchs():
    steps = [{"a": torch.full((2, 3), float(n)), "task": [str(n)] * 2} for n in range(4)]
    stacked = stack_steps(steps, ["a", "not there"])
    assert stacked["a"].shape == (2, 4, 3)
    assert stacked["a"][0, :, 0].tolist() == [0, 1, 2, 3]
    assert stacked["task"] == ["3", "3"]
