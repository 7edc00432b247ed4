"""A trained policy heeds what was selected and nothing else: values are permuted between frames, and its output watched.

Everything goes through the checkpoint's own preprocessor, loaded by LeRobot's functions from the checkpoint alone.
"""

from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import TRAINED_ACT
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_pre_post_processors
from lerobot.policies.factory import get_policy_class
from torch.utils.data import default_collate

from lerobot_ext.commands import train

STEPS, RATE = 6, 1e-4
ROWS = (3, 17, 24, 38, 45, 58)  # of all three episodes
FORCE, DEPTH, STATE = "observation.force", "observation.images.side_depth", "observation.state"
WRIST, SIDE = "observation.images.wrist", "observation.images.side"
HISTORY = 4
ROUNDING = 1e-6  # of float32, at actions of about 1

SELECTED = {
    "nothing more": {},
    "depth": {"use_depth_image": True},
    "force": {"use_force": True},
    "both": {"use_depth_image": True, "use_force": True},
    "token": {
        "use_force": True,
        "modality": {"force": {"fusion": "token", "force_history": HISTORY}},
    },
}
CELLS = [(kind, name) for kind in ("act", "smolvla") for name in SELECTED if (kind, name) != ("act", "token")]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    vlm = make_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")
    return {"act": TRAINED_ACT, "smolvla": smolvla_overrides(vlm, chunk_size=5)}


@pytest.fixture(scope="module", params=CELLS, ids=lambda cell: f"{cell[0]}-{cell[1].replace(' ', '_')}")
def trained(request, policies, dataset_root, tmp_path_factory):
    """A policy that was trained on a selection by the command; its name, what was selected, and how to ask it."""
    kind, name = request.param
    folder = tmp_path_factory.mktemp("train")
    keys = SELECTED[name]
    config = {
        "dataset": {"repo_id": "test/all", "root": str(dataset_root), "video_backend": "pyav"},
        "policy": policies[kind] | {"push_to_hub": False},
        "output_dir": str(folder / "out"),
        "use_policy_training_preset": False,
        "optimizer": {"type": "adamw", "lr": RATE},
        "scheduler": {
            "type": "cosine_decay_with_warmup",
            "peak_lr": RATE,
            "decay_lr": RATE,
            "num_warmup_steps": 1,
            "num_decay_steps": STEPS,
        },
        "steps": STEPS,
        "batch_size": 4,
        "num_workers": 0,
        **keys,
        "modality": {"resize": [32, 48]} | keys.get("modality", {}),
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    assert train.main([f"--config_path={path}"]) == 0
    return keys, load(folder / "out/checkpoints/last/pretrained_model")


def load(checkpoint: Path):
    """Asks the policy of a checkpoint for its chunks, (frames, n, dim), of a batch of recorded frames."""
    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config).eval()
    preprocessor, postprocessor = make_pre_post_processors(config, pretrained_path=str(checkpoint))

    @torch.no_grad()
    def ask(batch: dict) -> torch.Tensor:
        policy.reset()
        preprocessor.reset()
        torch.manual_seed(0)  # of SmolVLA's noise
        return postprocessor(policy.predict_action_chunk(preprocessor(dict(batch))))

    return ask


@pytest.fixture(scope="module")
def batch(dataset_root):
    """Frames with everything that was recorded, selected or not; force with its history."""
    window = {FORCE: [step / 30 for step in range(1 - HISTORY, 1)]}
    dataset = LeRobotDataset(
        "test/all", root=dataset_root, video_backend="pyav", delta_timestamps=window, depth_output_unit="m"
    )
    return default_collate([dataset[row] for row in ROWS])


@pytest.fixture
def given(trained, batch):
    """The batch as this policy's robot would give it: one sample of force, unless it wants a history."""
    keys, _ = trained
    force = batch[FORCE] if "modality" in keys else batch[FORCE][:, -1]
    return batch | {FORCE: force}


def change(trained, given: dict, key: str, permute=lambda value: value.roll(1, 0)) -> torch.Tensor:
    """How much each frame's chunk changes when the values of one key are permuted between the frames."""
    _, ask = trained
    before = ask(given)
    assert torch.equal(ask(given), before), "the same frames give the same chunks"
    after = ask(given | {key: permute(given[key])})
    return (after - before).abs().flatten(1).amax(1)


@pytest.mark.parametrize(("option", "key"), [("use_depth_image", DEPTH), ("use_force", FORCE)])
def test_the_output_changes_with_what_is_selected_and_with_nothing_else(trained, given, option, key):
    moved = change(trained, given, key)
    if option in trained[0]:
        assert moved.min() > 30 * ROUNDING
    else:
        assert moved.max() == 0
    if key == FORCE and "modality" in trained[0]:
        moved = change(trained, given, key, older_samples)
        assert moved.min() > 30 * ROUNDING, "the history counts, not its newest sample alone"


def older_samples(force: torch.Tensor) -> torch.Tensor:
    """Permute all samples of the histories but the newest ones."""
    return torch.cat([force[:, :-1].roll(1, 0), force[:, -1:]], dim=1)


@pytest.mark.parametrize("key", [STATE, WRIST, SIDE])
def test_what_is_always_selected_always_counts(trained, given, key):
    assert change(trained, given, key).max() > 30 * ROUNDING
