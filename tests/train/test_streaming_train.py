import math

import pytest
from small_dataset import EPISODES, FRAMES

from lerobot_ext.commands import train
from lerobot_ext.errors import UserError
from lerobot_ext.modality.streaming import SelectedStream

RESIZED = {"modality": {"resize": [32, 48]}}


@pytest.fixture
def streaming_yaml(write_yaml, dataset_root):
    """As `write_yaml`, with a dataset that streams."""

    def write(kind="act", dataset=None, **keys):
        source = {
            "repo_id": "test/all",
            "root": str(dataset_root),
            "video_backend": "pyav",
            "streaming": True,
        }
        return write_yaml(kind, dataset=source | (dataset or {}), **RESIZED | keys)

    return write


@pytest.fixture
def batches(monkeypatch):
    """Whose datasets were trained on, and what the policy got: one entry a step."""
    from lerobot.policies.act.modeling_act import ACTPolicy

    seen = []
    original = ACTPolicy.forward

    def forward(self, batch):
        loss, output = original(self, batch)
        seen.append({"training": self.training, "loss": float(loss.detach()), **batch})
        return loss, output

    monkeypatch.setattr(ACTPolicy, "forward", forward)
    return seen


def test_trains_on_a_stream_with_all_modalities(streaming_yaml, batches, tmp_path):
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy

    from lerobot_ext.modality import find_step

    keys = {"use_depth_image": True, "use_force": True, "use_language_tip": True}
    path = streaming_yaml(
        batch_size=16, steps=4, num_workers=1, dataloader_multiprocessing_context="fork", **keys
    )
    train.main([f"--config_path={path}"])

    assert [math.isfinite(step["loss"]) for step in batches] == [True] * 4
    one = batches[0]
    assert one["observation.state"].shape == (16, 12)
    assert one["observation.images.side_depth"].shape == (16, 3, 32, 48)
    assert {*one["task"]} <= {"press", "press Tip: until it clicks"}
    first = [int(index) for step in batches for index in step["index"]]
    assert sorted(first) == list(range(EPISODES * FRAMES)), "four steps are a pass"

    checkpoint = tmp_path / "out/checkpoints/last/pretrained_model"
    preprocessor, _ = make_pre_post_processors(
        ACTPolicy.from_pretrained(checkpoint).config, pretrained_path=str(checkpoint)
    )
    wanted = find_step(preprocessor).required_inputs()
    assert {"observation.force", "observation.images.side_depth"} < set(wanted)


def test_held_out_episodes_are_not_trained_on(streaming_yaml, batches, monkeypatch):
    from lerobot.scripts import lerobot_train

    made = []
    original = lerobot_train.make_train_eval_datasets
    monkeypatch.setattr(
        lerobot_train, "make_train_eval_datasets", lambda cfg: made.append(original(cfg)) or made[-1]
    )
    path = streaming_yaml(dataset={"eval_split": 0.3}, batch_size=20, eval_steps=2, steps=2)
    train.main([f"--config_path={path}"])
    assert [type(dataset) for dataset in made[0]] == [SelectedStream] * 2
    episodes = [(step["training"], {*step["episode_index"].tolist()}) for step in batches]
    assert [episode for training, episode in episodes if not training] == [{2}]
    assert set.union(*(episode for training, episode in episodes if training)) == {0, 1}


def test_force_as_a_token_streams(streaming_yaml):
    modality = {"resize": [32, 48], "force": {"fusion": "token", "force_history": 4}}
    path = streaming_yaml("smolvla", use_force=True, modality=modality, steps=1)
    assert train.main([f"--config_path={path}"]) == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"modality": {"cache": "memory"}},
            "modality.cache memory keeps all frames, dataset.streaming keeps none",
        ),
        (
            {"dataset": {"eval_split": 0.3}, "max_eval_samples": 5},
            "max_eval_samples needs a dataset that does not",
        ),
    ],
)
def test_what_a_stream_has_no_use_for_is_refused(streaming_yaml, keys, message):
    with pytest.raises(UserError, match=message):
        train.main([f"--config_path={streaming_yaml(**keys)}"])
