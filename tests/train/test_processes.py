"""Several processes: the same training as one with the doubled batch, by `accelerate launch` as the docs have it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import watched

from lerobot_ext.commands import train
from lerobot_ext.errors import UserError

# 60 frames, 6 steps of 10 an epoch. Nothing random, and no chunk that ends beyond its episode: ACT's loss is a mean
# over the steps that exist, so the mean of two halves is that of the whole only if both have equally many.
SAME = {"dropout": 0.0, "use_vae": False, "chunk_size": 1, "n_action_steps": 1}
STEPS = 8
RUN = {
    "modality": {"resize": [32, 32], "cameras": ["wrist"], "cache": "memory"},
    "use_force": True,
    "use_depth_image": True,
    "steps": STEPS,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would not meet on the CPU")
def test_two_processes_train_as_one_with_the_doubled_batch(write_yaml, policies, tmp_path):
    config = write_yaml(policy=policies["act"] | SAME, **RUN)
    alone = tmp_path / "alone"
    with watched.journal(alone):
        train.main([f"--config_path={config}", f"--output_dir={tmp_path / 'one'}", "--batch_size=10"])
    batches, losses = watched.read(alone)
    assert sorted(losses) == list(range(1, STEPS + 1))

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    script = [watched.__file__, str(tmp_path / "two"), f"--config_path={config}", "--batch_size=5"]
    done = subprocess.run(
        [*launch, *script],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    first, both = watched.read(Path(f"{tmp_path / 'two'}.0"))
    second, none = watched.read(Path(f"{tmp_path / 'two'}.1"))
    assert none == {}  # the first process logs, the mean of both
    assert [a + b for a, b in zip(first, second, strict=True)] == batches
    assert sorted(both) == sorted(losses)
    for step, values in losses.items():
        assert both[step] == pytest.approx(values, rel=1e-4), f"step {step}"
    # The table is printed once.
    assert done.stdout.count("the network sees") == 1

    from safetensors.torch import load_file

    ours = load_file(tmp_path / "out/checkpoints/last/pretrained_model/model.safetensors")
    theirs = load_file(tmp_path / "one/checkpoints/last/pretrained_model/model.safetensors")
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5) for name in theirs)


def test_one_process_where_several_were_asked_for_is_told(write_yaml, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda cfg: None)
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    train.main([f"--config_path={write_yaml()}"])
    assert "accelerate launch has started one process only" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    train.main([f"--config_path={write_yaml()}"])
    assert "one process only" not in capsys.readouterr().out


@pytest.fixture
def two_gpus(monkeypatch) -> list[int]:
    """A machine with two GPUs, as far as asking torch goes; which were chosen."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return chosen


def test_the_gpu_is_the_one_that_was_asked_for(two_gpus):
    for device in ("cpu", "cuda", None, "mps"):
        train.choose_gpu(device)
    assert two_gpus == []
    train.choose_gpu("cuda:1")
    assert two_gpus == [1]


def test_a_gpu_that_is_not_there_is_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(
        UserError, match=r"policy.device cuda:4: there are 2 GPUs, .*CUDA_VISIBLE_DEVICES=4,5"
    ):
        train.choose_gpu("cuda:4")


def test_several_processes_do_not_share_a_gpu(two_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    train.choose_gpu("cuda")
    with pytest.raises(UserError, match="each takes its own GPU; give --policy.device=cuda"):
        train.choose_gpu("cuda:1")
