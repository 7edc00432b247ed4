"""Options: every mistake gets one line, lists need no quotes, and what LeRobot offers for its datasets works here."""

import dataclasses
import os
import pickle
import re
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_dataset import FRAMES

from lerobot_ext.commands import config, help, main, train
from lerobot_ext.errors import UserError
from lerobot_ext.modality.selection import DepthSelection, ForceSelection


@pytest.fixture(autouse=True)
def no_search_for_a_decoder(monkeypatch):
    """LeRobot's config tries to load torchcodec each time; where that fails it takes a second. We name the decoder."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)


@pytest.fixture
def parsed(write_yaml, monkeypatch):
    """Runs the command up to the training with these options over a YAML of these keys; returns its config."""
    seen = []
    monkeypatch.setattr(train, "train", seen.append)

    def parse(*options: str, **keys) -> train.TrainConfig:
        train.main([f"--config_path={write_yaml(**keys)}", *options])
        return seen.pop()

    return parse


MISTAKES = {
    # misspelt
    "--modality.camera=[wrist]": "the command line: there is no key 'modality.camera'; did you mean 'modality.cameras'",
    "--modalty.cameras=[wrist]": "no key 'modalty'; did you mean 'modality'",
    "--modality.depth.near=1": "no key 'modality.depth.near'; did you mean 'modality.depth.near_m'",
    "--modality.force.histroy=3": "no key 'modality.force.histroy'; did you mean 'modality.force.force_history'",
    "--use_depth=true": "no key 'use_depth'; did you mean 'use_depth_image'",
    "--modality.cameras=[wirst]": "no RGB camera 'wirst'; the dataset has: side, wrist; did you mean 'wrist'",
    "--modality.cache=ram": "modality.cache 'ram' is not offered; offered: none, memory",
    "--modality.depth.representation=jet": "depth.representation 'jet' is not offered; offered: gray, turbo, normals",
    "--modality.force.fusion=tokens": "force.fusion 'tokens' is not offered; offered: state, token",
    "--modality.exclude=[nope]": "exclude 'nope' matches no observation; the dataset has: observation.state",
    "--modality.include=[nope]": "include 'nope' matches no observation",
    # another type
    "--modality.cameras=wrist": 'modality.cameras "wrist": expected a list of words or null',
    "--modality.cameras=[1]": r"modality.cameras \[1\]: expected a list of words or null",
    "--modality.cameras={a: 1}": "modality.cameras .*: expected a list of words or null",
    "--modality.depth.near_m=close": 'modality.depth.near_m "close": expected a number',
    "--modality.depth.far_m=null": "modality.depth.far_m null: expected a number",
    "--modality.depth.cameras=side_depth": "modality.depth.cameras .*: expected a list of words or null",
    "--modality.depth=5": "modality.depth 5: expected keys under it, not a value",
    "--modality.depth=null": "modality.depth None: expected keys under it",
    "--modality.force=token": "modality.force 'token': expected keys under it",
    "--modality.force.fusion=7": "modality.force.fusion 7: expected a word",
    "--modality.force.force_history=ten": 'modality.force.force_history "ten": expected a whole number',
    "--modality.force.force_history=2.5": "force_history 2.5: expected a whole number",
    "--modality.force.force_history=true": "force_history true: expected a whole number",
    "--modality.resize=64": "modality.resize 64: expected a list of whole numbers or null",
    "--modality.resize=64x112": "modality.resize .*: expected a list of whole numbers",
    "--modality.include=observation.*": "modality.include .*: expected a list of words",
    "--modality.exclude=null": "modality.exclude null: expected a list of words",
    "--modality.cache=true": "modality.cache true: expected a word",
    "--modality.cache_max_gb=lots": "modality.cache_max_gb .*: expected a number",
    "--modality=5": "modality 5: expected keys under it",
    "--use_force=maybe": 'use_force "maybe": expected true or false',
    "--use_depth_image=2": "use_depth_image 2: expected true or false",
    "--use_language_tip=[]": r"use_language_tip \[\]: expected true or false",
    "--dataset.image_transforms=true": "dataset.image_transforms True: expected keys under it",
    "--steps=many": "steps.*Couldn't parse 'many' into an int",
    # out of range
    "--modality.depth.near_m=2": "depth.near_m 2.0 and depth.far_m 1.5: expected metres",
    "--modality.force.force_history=0": "force_history 0: expected a number of samples, 1 to 1000",
    "--modality.resize=[64]": r"resize \[64\]: expected \[height, width\] in pixels",
    "--modality.resize=[64, 0]": r"resize \[64, 0\]: expected \[height, width\] in pixels",
    "--modality.cache_max_gb=-1": "modality.cache_max_gb -1.0: expected gigabytes, more than 0",
    "--batch_size=0": "batch_size 0: expected at least 1",
    "--steps=0": "steps 0: expected at least 1",
    "--num_workers=-1": "num_workers -1: expected at least 0",
    "--dataset.episodes=[0, 7]": "there is no episode 7; the dataset has 0 to 2",
    "--dataset.episodes=[]": "dataset.episodes is empty",
    "--dataset.eval_split=2": r"eval_split must be in \[0.0, 1.0\), got 2.0",
    # no option
    "use_force=true": "'use_force=true' is not an option; options look like --key=value",
}


@pytest.mark.parametrize("option", MISTAKES)
def test_a_mistake_gets_one_line(parsed, option):
    with pytest.raises(UserError, match=MISTAKES[option]) as caught:
        parsed(option)
    assert "\n" not in str(caught.value).strip()


def test_the_same_mistakes_in_a_yaml(write_yaml, capsys):
    path = write_yaml(modality={"resize": 64})
    assert main.main(["train", f"--config_path={path}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: modality.resize 64: expected a list")
    assert main.main(["train", f"--config_path={write_yaml(modality={'depth': {'nera_m': 1}})}"]) == 2
    assert f"error: {path}: there is no key 'modality.depth.nera_m'" in capsys.readouterr().err


def test_lists_and_switches_as_people_write_them(parsed):
    cfg = parsed(
        "--modality.cameras=[wrist]", "--modality.resize=[32, 48]", "--use_force", "--use_depth_image", "true"
    )
    assert cfg.selection.cameras == ("wrist",) and cfg.selection.resize == (32, 48)
    assert cfg.use_force and cfg.use_depth_image
    assert parsed('--modality.cameras=["side"]').selection.cameras == ("side",)
    assert parsed("--modality.cameras=[]").selection.cameras == ()
    assert parsed("--modality.cameras=null", modality={"cameras": ["side"]}).selection.cameras is None
    assert parsed("--modality.depth.near_m=0", "--use_depth_image=true").selection.depth.near_m == 0.0


def test_help_tells_every_option():
    text = help.TEXTS["train"]
    for kind, prefix in ((train.ModalityConfig, ""), (DepthSelection, "depth."), (ForceSelection, "force.")):
        for field in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(field.type) and field.name not in ("depth", "force"):
                assert f"modality.{prefix}{field.name}" in text, field.name
    for word in ("token", "disk", "dataset.streaming", "--resume", "accelerate launch", "--policy.device"):
        assert word in text


# --- what LeRobot's datasets offer ---

TRANSFORMS = ["--dataset.image_transforms.enable=true", "--dataset.image_transforms.max_num_transforms=2"]


def views(cfg: train.TrainConfig):
    from lerobot.datasets.factory import make_train_eval_datasets

    return make_train_eval_datasets(cfg)


def lerobots(cfg: train.TrainConfig):
    """LeRobot's own datasets for the same config."""
    from lerobot.datasets.factory import make_train_eval_datasets

    from lerobot_ext import patching

    return patching.original_of(make_train_eval_datasets)(cfg)


def test_image_transforms_are_lerobots_and_for_colour_only(parsed):
    plain = views(parsed("--use_depth_image=true"))[0]
    cfg = parsed("--use_depth_image=true", *TRANSFORMS)
    ours, theirs = views(cfg)[0], lerobots(cfg)[0]
    torch.manual_seed(1)
    item = ours[7]
    torch.manual_seed(1)
    expected = theirs[7]
    for camera in ("observation.images.side", "observation.images.wrist"):
        assert torch.equal(item[camera], expected[camera])
        assert not torch.equal(item[camera], plain[7][camera])
    assert torch.equal(item["observation.images.side_depth"], plain[7]["observation.images.side_depth"])


def test_image_transforms_of_the_cache_leave_depth_alone(parsed):
    cache = ["--use_depth_image=true", "--modality.cache=memory", "--modality.resize=[32,48]"]
    plain, changed = views(parsed(*cache))[0][7], views(parsed(*cache, *TRANSFORMS))[0][7]
    assert not torch.equal(plain["observation.images.wrist"], changed["observation.images.wrist"])
    assert torch.equal(plain["observation.images.side_depth"], changed["observation.images.side_depth"])


def test_the_held_out_split_is_lerobots_and_is_not_transformed(parsed):
    cfg = parsed("--dataset.eval_split=0.3", "--use_force=true", *TRANSFORMS)
    ours, theirs = views(cfg), lerobots(cfg)
    assert [view.episodes for view in ours] == [dataset.episodes for dataset in theirs] == [[0, 1], [2]]
    assert [len(view) for view in ours] == [2 * FRAMES, FRAMES]
    assert torch.equal(ours[1][4]["observation.images.wrist"], theirs[1][4]["observation.images.wrist"])
    assert int(ours[1][4]["index"]) == 2 * FRAMES + 4


def test_some_episodes_only(parsed):
    view = views(parsed("--dataset.episodes=[0,2]", "--modality.cache=memory"))[0]
    assert {int(view[i]["episode_index"]) for i in range(len(view))} == {0, 2} and len(view) == 2 * FRAMES


def same(one: dict, other: dict) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_forked_workers_give_what_one_process_gives(parsed, cache):
    view = views(parsed("--use_depth_image=true", "--use_force=true", f"--modality.cache={cache}"))[0]

    def batches(workers: int) -> list[dict]:
        context = "fork" if workers else None
        loader = torch.utils.data.DataLoader(view, 7, num_workers=workers, multiprocessing_context=context)
        return list(loader)

    alone, together = batches(0), batches(2)
    assert len(alone) == len(together) == 9 and len(alone[-1]["index"]) == 4
    assert all(map(same, alone, together))


def test_a_view_reaches_spawned_workers_whole(parsed):
    view = views(parsed("--use_depth_image=true", "--use_force=true", "--modality.resize=[32,48]"))[0]
    _ = view[0]  # decoders that were opened here stay here
    assert same(pickle.loads(pickle.dumps(view))[33], view[33])


def test_smolvla_from_a_local_model_needs_no_network(write_yaml, monkeypatch, tmp_path):
    def forbidden(*args, **kwargs):
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    path = write_yaml("smolvla", steps=1, batch_size=2, use_force=True, modality={"cameras": ["wrist"]})
    assert train.main([f"--config_path={path}"]) == 0
    assert (tmp_path / "out/checkpoints/last/pretrained_model/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["train.yaml", "train_smolvla.yaml"])
def test_what_is_commented_out_in_the_configs_can_be_used(name):
    lines = (Path(__file__).parents[2] / "configs" / name).read_text().splitlines()
    used = [re.sub(r"^( +)# (\w+: )", r"\1\2", line) for line in lines]
    assert used != lines
    for text in (lines, used):
        data = yaml.safe_load("\n".join(text))
        config.check_keys(train.TrainConfig, data, name)
        config.check_types(train.TrainConfig, {key: data[key] for key in train.OURS if key in data}, "")
