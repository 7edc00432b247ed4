"""A run that is killed goes on where its last checkpoint was: same data, same losses; half a checkpoint is no trap."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import watched

from lerobot_ext import checkpoints
from lerobot_ext.commands import train
from lerobot_ext.errors import UserError

# Dropout and the VAE's noise are on: the random generators have to go on, too.
NOISY = {"dropout": 0.1, "use_vae": True, "chunk_size": 5, "n_action_steps": 5}
# 40 frames, 5 steps an epoch; the checkpoint at step 7 is in the middle of the second one.
STEPS, SAVED = 11, 7
RUN = {
    "modality": {"resize": [32, 32], "cameras": ["wrist"]},
    "use_force": True,
    "batch_size": 8,
    "steps": STEPS,
    "save_freq": SAVED,
    "use_policy_training_preset": False,
    "optimizer": {"type": "adamw", "lr": 1e-3},
    "scheduler": {
        "type": "cosine_decay_with_warmup",
        "peak_lr": 1e-3,
        "decay_lr": 1e-4,
        "num_warmup_steps": 2,
        "num_decay_steps": 10,
    },
}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(tmp_path, name: str, arguments: list[str]) -> tuple[list[list[int]], dict[int, dict[str, float]]]:
    with watched.journal(tmp_path / name):
        train.main(arguments)
    return watched.read(tmp_path / name)


def wait_for_step(process: subprocess.Popen, path: Path, step: int) -> None:
    until = time.monotonic() + 240
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None and time.monotonic() < until, "the run ended before it could be killed"
        time.sleep(0.02)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_with_the_same_data_and_the_same_losses(write_yaml, policies, tmp_path):
    config = write_yaml(policy=policies["act"] | NOISY, **RUN)
    some = "--dataset.episodes=[0, 2]"
    batches, logged = run(
        tmp_path, "whole", [f"--config_path={config}", some, f"--output_dir={tmp_path / 'one'}"]
    )
    assert sorted(logged) == list(range(1, STEPS + 1))
    assert sorted(sum(batches[:5], [])) == sorted(sum(batches[5:10], [])) == [*range(20), *range(40, 60)]
    assert batches[:5] != batches[5:10]

    # It would go on for long after the step at which it is killed.
    command = [sys.executable, watched.__file__, str(tmp_path / "killed"), f"--config_path={config}", some]
    process = subprocess.Popen(
        [*command, "--steps=1000"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_step(process, tmp_path / "killed.0", SAVED + 1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    last = tmp_path / "out/checkpoints/last"
    start = int(last.resolve().name)
    assert start % SAVED == 0 and start < STEPS
    resumed, rest = run(
        tmp_path, "rest", ["--resume=true", f"--config_path={tmp_path / 'out'}", f"--steps={STEPS}"]
    )
    assert resumed == batches[start:]
    assert sorted(rest) == list(range(start + 1, STEPS + 1))
    for step, values in rest.items():
        assert values == pytest.approx(logged[step], rel=1e-4), f"step {step}"
    assert checkpoints.incomplete(last) is None and int(last.resolve().name) == STEPS
    # What was trained in two pieces is the same in the end.
    from safetensors.torch import load_file

    ours = load_file(last / "pretrained_model/model.safetensors")
    theirs = load_file(tmp_path / "one/checkpoints/last/pretrained_model/model.safetensors")
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5) for name in theirs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset_root, policies) -> Path:
    """The output directory of a short run with checkpoints at steps 1 and 2."""
    import yaml

    folder = tmp_path_factory.mktemp("run")
    config = {
        "dataset": {"repo_id": "test/all", "root": str(dataset_root), "video_backend": "pyav"},
        "policy": policies["act"],
        "output_dir": str(folder / "out"),
        "steps": 2,
        "batch_size": 2,
        "num_workers": 0,
        "log_freq": 1,
        "save_freq": 1,
        "use_force": True,
        "modality": {"resize": [32, 32], "cameras": ["wrist"]},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    train.main([f"--config_path={folder / 'train.yaml'}"])
    return folder / "out"


@pytest.fixture
def output(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "out", symlinks=True))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "weights cut short": lambda c: cut(c / "pretrained_model/model.safetensors"),
    "no weights": lambda c: (c / "pretrained_model/model.safetensors").unlink(),
    "config cut short": lambda c: cut(c / "pretrained_model/train_config.json"),
    "no training state": lambda c: shutil.rmtree(c / "training_state"),
    "optimizer cut short": lambda c: cut(c / "training_state/optimizer_state.safetensors"),
    "scheduler missing": lambda c: (c / "training_state/optimizer_param_groups.json").unlink(),
    "empty file": lambda c: (c / "training_state/rng_state.safetensors").write_bytes(b""),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_half_a_checkpoint_is_passed_over(output, damage):
    assert checkpoints.incomplete(output / "checkpoints/last") is None
    DAMAGES[damage](output / "checkpoints/000002")
    config = "pretrained_model/train_config.json"
    found, said = checkpoints.resumable(str(output / "checkpoints/last" / config))
    assert found == output / "checkpoints/000001" / config
    assert "is not whole" in said and "going on from 000001" in said
    with pytest.raises(
        UserError, match="000002 cannot be resumed: .* newest whole one is .*000001; give --config_path"
    ):
        checkpoints.resumable(str(output / "checkpoints/000002" / config))
    shutil.rmtree(output / "checkpoints/000001")
    with pytest.raises(UserError, match="has no whole one. Start again"):
        checkpoints.resumable(str(output))


def test_without_the_link_the_newest_is_taken(output):
    (output / "checkpoints/last").unlink()
    found, said = checkpoints.resumable(str(output))
    assert found.parent.parent.name == "000002" and "going on from 000002" in said


def test_resumes_from_the_newest_whole_one_and_says_so(output, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda cfg: seen.append(cfg))
    seen = []
    DAMAGES["weights cut short"](output / "checkpoints/000002")
    train.main(["--resume=true", f"--config_path={output}", "--steps=3"])
    assert "warning: checkpoint '000002'" in capsys.readouterr().out
    assert seen[0].resume and seen[0].steps == 3


def test_a_kill_while_writing_leaves_the_checkpoint_that_was_there(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint = folder / "000004"

    def write(text: str):
        def save(path: Path) -> None:
            path.mkdir()
            (path / "weights").write_text(text)
            if text == "killed":
                raise KeyboardInterrupt

        return save

    checkpoints.save_whole(write("first"), checkpoint)
    checkpoints.point_to(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_whole(write("killed"), checkpoint)
    assert (folder / "last" / "weights").read_text() == "first"
    checkpoints.save_whole(write("second"), checkpoint)
    checkpoints.point_to(checkpoint)
    assert (folder / "last" / "weights").read_text() == "second"
    assert sorted(path.name for path in folder.iterdir()) == ["000004", "last"]


def test_lerobots_own_functions_write_that_way(tmp_path, monkeypatch):
    from lerobot.common import train_utils

    seen = []
    monkeypatch.setattr(checkpoints, "save_whole", lambda save, path: seen.append(path))
    train_utils.save_checkpoint(
        checkpoint_dir=tmp_path / "000001", step=1, cfg=None, policy=None, optimizer=None
    )
    (tmp_path / "000001").mkdir()
    train_utils.update_last_checkpoint(tmp_path / "000001")
    assert seen == [tmp_path / "000001"]
    assert os.readlink(tmp_path / "last") == "000001"


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("--use_force=false", "force: off, on"),
        ("--use_depth_image=true", "depth: on, off"),
        ("--modality.cameras=[side]", r"cameras: \['side'\], \['wrist'\]"),
        ("--modality.resize=[40, 48]", r"resize: \[40, 48\], \[32, 32\]"),
    ],
)
def test_another_selection_is_refused_before_anything_is_decoded(output, option, difference, monkeypatch):
    monkeypatch.setattr(train, "train", lambda cfg: pytest.fail("it would have begun"))
    with pytest.raises(UserError, match=f"another selection; here and there: .*{difference}"):
        train.main(["--resume=true", f"--config_path={output}", "--steps=3", option])


def test_a_yaml_is_not_a_checkpoint(write_yaml):
    with pytest.raises(
        UserError, match="takes its config from the checkpoint, not from .*; give --config_path=.*/out"
    ):
        train.main([f"--config_path={write_yaml()}", "--resume=true"])


def test_position_counts_as_the_loader_does():
    from lerobot.datasets.sampler import EpisodeAwareSampler, compute_sampler_state

    def epochs(sampler, first: int, last: int) -> list[list[int]]:
        found = []
        for epoch in range(first, last):
            sampler.set_epoch(epoch)  # what accelerate's loader does before it starts one
            found.append(list(sampler))
        return found

    whole = epochs(EpisodeAwareSampler([0], [30], shuffle=True, seed=7), 0, 3)
    sampler = EpisodeAwareSampler([0], [30], shuffle=True, seed=7)
    sampler.load_state_dict(compute_sampler_state(step=8, num_frames=30, batch_size=5, num_processes=1))
    before = torch.get_rng_state()
    sampler.set_epoch(0)
    torch.rand(3)  # the loader draws its seed
    first = list(sampler)
    assert first == whole[1][10:]
    assert torch.equal(torch.get_rng_state(), before)
    assert epochs(sampler, 1, 2) == [whole[2]]
    state = json.dumps(sampler.state_dict())
    assert json.loads(state) == {"epoch": 3, "start_index": 0}
