import json
import os

import numpy as np
import pytest
import torch
from small_dataset import EPISODES, FORCE_NAMES, FRAMES, HEIGHT, WIDTH

from lerobot_ext.commands import train
from lerobot_ext.errors import UserError
from lerobot_ext.modality import find_step

RESIZED = {"modality": {"resize": [32, 48], "cache": "memory"}}
SELECTIONS = {
    "rgb": {},
    "rgb_depth": {"use_depth_image": True},
    "rgb_force": {"use_force": True},
    "all": {"use_depth_image": True, "use_force": True, "use_language_tip": True},
}


def raw_frame() -> dict:
    """What a robot with everything gives, as `build_dataset_frame` lays it out."""
    rng = np.random.default_rng(0)
    return {
        "observation.state": rng.normal(size=6).astype(np.float32),
        "observation.force": rng.normal(size=len(FORCE_NAMES)).astype(np.float32),
        "observation.images.side": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        "observation.images.side_depth": rng.integers(200, 900, (HEIGHT, WIDTH, 1)).astype(np.uint16),
        "observation.images.wrist": rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
    }


def load(checkpoint):
    """Policy and processors by LeRobot's own functions, from the checkpoint alone."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.factory import get_policy_class

    cfg = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(cfg.type).from_pretrained(checkpoint, config=cfg).eval()
    preprocessor, postprocessor = make_pre_post_processors(cfg, pretrained_path=str(checkpoint))
    return policy, preprocessor, postprocessor


def chunk(loaded, frame: dict) -> torch.Tensor:
    from lerobot.policies.utils import prepare_observation_for_inference

    policy, preprocessor, postprocessor = loaded
    policy.reset()
    with torch.inference_mode():
        batch = prepare_observation_for_inference(dict(frame), torch.device("cpu"), "press")
        torch.manual_seed(0)
        return postprocessor(policy.predict_action_chunk(preprocessor(batch)))


def changes(loaded, key: str) -> bool:
    """Whether the policy's chunk changes when this one observation does."""
    frame = raw_frame()
    other = frame | {key: (frame[key] * 0.5).astype(frame[key].dtype)}
    return not torch.equal(chunk(loaded, frame), chunk(loaded, other))


@pytest.mark.parametrize("policy", ["act", "smolvla"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_trains_and_its_checkpoint_runs_on_raw_observations(write_yaml, tmp_path, policy, name):
    selected = SELECTIONS[name]
    assert train.main([f"--config_path={write_yaml(policy, **selected, **RESIZED)}"]) == 0

    loaded = load(tmp_path / "out/checkpoints/last/pretrained_model")
    assert chunk(loaded, raw_frame()).shape == (1, 5, 6)
    step = find_step(loaded[1])
    assert loaded[1].steps[0] is step
    assert changes(loaded, "observation.images.wrist")
    assert changes(loaded, "observation.images.side_depth") == ("use_depth_image" in selected)
    assert changes(loaded, "observation.force") == ("use_force" in selected)
    wanted = step.required_inputs(loaded[0].config.input_features)
    assert ("observation.force" in wanted) == ("use_force" in selected)


def test_resumes_with_the_same_selection_only(write_yaml, tmp_path):
    train.main([f"--config_path={write_yaml(use_force=True, **RESIZED)}"])
    config = tmp_path / "out/checkpoints/last/pretrained_model/train_config.json"
    resume = [f"--config_path={config}", "--resume=true", "--steps=4"]
    train.main(resume)
    assert json.loads((tmp_path / "out/checkpoints/last/training_state/training_step.json").read_text())
    assert (tmp_path / "out/checkpoints/last").resolve().name.endswith("4")
    steps = json.loads(
        (tmp_path / "out/checkpoints/last/pretrained_model/policy_preprocessor.json").read_text()
    )
    names = [step["registry_name"] for step in steps["steps"]]
    assert names.count("lerobot_ext_modality") == 1

    other = [argument for argument in resume if "steps" not in argument]
    with pytest.raises(UserError, match="another selection; here and there: resize: .40, 48., .32, 48."):
        train.main([*other, "--steps=5", "--modality.resize=[40, 48]"])


def test_trains_on_from_a_checkpoint(write_yaml, tmp_path):
    train.main([f"--config_path={write_yaml(use_force=True, **RESIZED)}"])
    first = tmp_path / "out/checkpoints/last/pretrained_model"
    again = write_yaml(
        policy={"path": str(first), "push_to_hub": False},
        use_force=True,
        output_dir=str(tmp_path / "second"),
        **RESIZED,
    )
    train.main([f"--config_path={again}", "--steps=1"])
    _, preprocessor, _ = load(tmp_path / "second/checkpoints/last/pretrained_model")
    assert sum(step is find_step(preprocessor) for step in preprocessor.steps) == 1


def test_held_out_split_and_workers_share_one_cache(write_yaml, tmp_path, monkeypatch):
    from lerobot_ext.modality import reader

    rows = []
    original = reader.CachedReader.fill_memory

    def watch(self, shared):
        original(self, shared)
        rows.append((len(self.hf_dataset), [store._data.is_shared() for store in self._stores.values()]))

    monkeypatch.setattr(reader.CachedReader, "fill_memory", watch)
    path = write_yaml(use_depth_image=True, use_force=True, num_workers=1, eval_steps=2, steps=2, **RESIZED)
    train.main([f"--config_path={path}", "--dataset.eval_split=0.3"])
    assert rows == [((EPISODES - 1) * FRAMES, [True] * 3), (FRAMES, [True] * 3)]
    assert (tmp_path / "out/checkpoints/last/pretrained_model/model.safetensors").is_file()


def test_prints_every_feature_with_shapes_and_reasons(write_yaml, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", train.TrainConfig.announce)
    train.main([f"--config_path={write_yaml(use_force=True, **RESIZED)}", '--modality.cameras=["wrist"]'])
    lines = {
        line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines() if line
    }
    assert lines["observation.images.wrist"] == "64x96x3 yes observation.images.wrist 32x48x3 colour camera"
    assert lines["observation.images.side"] == "64x96x3 no - not in cameras"
    assert lines["observation.images.side_depth"] == "64x96x1 no - depth is off (use_depth_image)"
    assert lines["observation.force"] == "6 yes observation.state 12 joined to observation.state"


def test_leaves_the_choice_of_gpu_alone_and_quiets_tokenizers(write_yaml, monkeypatch):
    monkeypatch.setattr(train, "train", lambda cfg: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    train.main([f"--config_path={write_yaml()}"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_depth": True}, "no key 'use_depth'; did you mean 'use_depth_image'"),
        ({"modality": {"resise": [4, 4]}}, "no key 'modality.resise'; did you mean 'modality.resize'"),
        ({"modality": {"cache": "ssd"}}, "modality.cache 'ssd' is not offered; offered: none, memory, disk"),
        ({"modality": {"depth": {"near_m": 3.0}}}, "near_m 3.0 and depth.far_m 1.5"),
        ({"modality": {"cameras": ["wirst"]}}, "no RGB camera 'wirst'; .* did you mean 'wrist'"),
        ({"dataset": {"repo_id": "a/b", "root": "/nowhere/data"}}, "/nowhere/data: there is no dataset"),
        ({"policy": {"path": "/nowhere/policy"}}, "/nowhere/policy: there is no checkpoint"),
        ({"output_dir": "/tmp"}, "output_dir /tmp exists already"),
        ({"policy": None}, "no policy"),
        ({"dataset": None}, "nothing to train on"),
    ],
)
def test_mistakes_get_a_sentence(write_yaml, keys, message):
    with pytest.raises(UserError, match=message):
        train.main([f"--config_path={write_yaml(**keys)}"])


def test_config_file_that_is_not_there():
    with pytest.raises(UserError, match="nowhere.yaml is not there"):
        train.main(["--config_path=/nowhere.yaml"])
