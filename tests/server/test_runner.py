"""The runner computes what LeRobot's own loop computes, and refuses in one sentence what it cannot serve."""

from __future__ import annotations

import json
import shutil

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_ext.errors import UserError
from simplify_work.server.runner import PolicyRunner
from simplify_work.wire.errors import FeatureMismatch

STATE, IMAGE = "observation.state", checkpoints.IMAGE


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_chunk_equals_lerobots_action_by_action(kind, request):
    path = request.getfixturevalue(kind)
    frame = checkpoints.observation(1)
    local = checkpoints.local_chunk(path, frame, "press the block", seed=7)
    runner = PolicyRunner(path, device="cpu")
    result = runner.open_session().infer(frame, task="press the block", seed=7)
    assert result.actions.shape == tuple(local.shape)
    assert np.abs(result.actions - local.numpy()).max() < 1e-5


def test_the_task_and_the_noise_reach_smolvla(smolvla):
    session = PolicyRunner(smolvla, device="cpu").open_session()
    frame = checkpoints.observation(1)
    first = session.infer(frame, task="press", seed=1).actions
    np.testing.assert_array_equal(first, session.infer(frame, task="press", seed=1).actions)
    assert np.abs(first - session.infer(frame, task="pick", seed=1).actions).max() > 0
    assert np.abs(first - session.infer(frame, task="press", seed=2).actions).max() > 0


def test_a_seed_leaves_the_other_sessions_noise_alone(runner):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    runner.open_session().infer(checkpoints.observation(), seed=5)
    assert torch.rand(1) == expected


def test_the_observation_is_not_changed(runner):
    frame = checkpoints.observation()
    before = {name: array.copy() for name, array in frame.items()}
    runner.open_session().infer(frame)
    for name, array in frame.items():
        np.testing.assert_array_equal(array, before[name])


def test_the_warm_up_finds_the_chunks_shape(runner):
    assert (runner.chunk_size, runner.n_action_steps, runner.action_dim) == (20, 5, 6)


def test_an_observation_that_lacks_something_is_refused(runner):
    frame = checkpoints.observation()
    del frame[IMAGE]
    with pytest.raises(FeatureMismatch, match=f"{IMAGE} is missing"):
        runner.open_session().infer(frame)


def test_renamed_keys_are_asked_for_by_their_first_name(act, tmp_path):
    path = shutil.copytree(act, tmp_path / "renamed")
    processor = json.loads((path / "policy_preprocessor.json").read_text())
    processor["steps"][0]["config"] = {"rename_map": {"observation.images.top": IMAGE}}
    (path / "policy_preprocessor.json").write_text(json.dumps(processor))
    runner = PolicyRunner(path, device="cpu")
    assert [spec.name for spec in runner.inputs] == [STATE, "observation.images.top"]
    frame = checkpoints.observation()
    expected = checkpoints.local_chunk(act, frame)
    frame["observation.images.top"] = frame.pop(IMAGE)
    assert np.abs(runner.open_session().infer(frame).actions - expected.numpy()).max() < 1e-5


def test_smolvlas_empty_cameras_are_not_asked_of_the_robot(tmp_path):
    path = checkpoints.make_smolvla(tmp_path / "checkpoint", tmp_path / "vlm", empty_cameras=1)
    runner = PolicyRunner(path, device="cpu")
    assert {spec.name for spec in runner.inputs} == {STATE, IMAGE}
    runner.warm_up()


def test_a_selection_is_asked_for_as_it_was_recorded(tmp_path):
    """Depth and force come raw from the robot; what the network sees is made by the checkpoint's first step."""
    import lerobot_ext

    lerobot_ext.register()
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors

    from lerobot_ext.modality.selection import DepthSelection, ForceSelection, Selection
    from lerobot_ext.modality.step import ModalityStep

    seen = {
        STATE: PolicyFeature(FeatureType.STATE, (9,)),
        IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        f"{IMAGE}_depth": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    path = checkpoints.make_act(tmp_path / "checkpoint", inputs=seen)
    step = ModalityStep(
        Selection(depth=DepthSelection(), force=ForceSelection(), resize=(64, 64)),
        {
            STATE: {"kind": "state", "shape": [6], "names": list("abcdef")},
            "observation.force": {"kind": "force", "shape": [3], "names": list("xyz")},
            IMAGE: {"kind": "rgb", "shape": [120, 160, 3]},
            f"{IMAGE}_depth": {"kind": "depth", "shape": [120, 160, 1], "lowest_m": 0.01, "highest_m": 3.0},
        },
    )
    preprocessor, _ = make_pre_post_processors(
        PreTrainedConfig.from_pretrained(path), pretrained_path=str(path)
    )
    preprocessor.steps = [step, *preprocessor.steps]
    preprocessor.save_pretrained(path)

    runner = PolicyRunner(path, device="cpu")
    assert {spec.name: (spec.kind, spec.shape) for spec in runner.inputs} == {
        STATE: ("vector", (6,)),
        "observation.force": ("vector", (3,)),
        IMAGE: ("image", (120, 160, 3)),
        f"{IMAGE}_depth": ("depth", (120, 160, 1)),
    }
    runner.warm_up()
    frame = checkpoints.observation(height=120, width=160)
    frame["observation.force"] = np.ones(3, np.float32)
    frame[f"{IMAGE}_depth"] = np.full((120, 160, 1), 700, np.uint16)
    session = runner.open_session()
    millimetres = session.infer(frame).actions
    frame[f"{IMAGE}_depth"] = np.full((120, 160, 1), 0.7, np.float32)
    np.testing.assert_allclose(session.infer(frame).actions, millimetres, atol=1e-5)
    frame["observation.force"] = np.full(3, 9, np.float32)
    assert np.abs(session.infer(frame).actions - millimetres).max() > 1e-4


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: shutil.rmtree(path), "is not there"),
        (lambda path: (path / "config.json").unlink(), "is not a LeRobot checkpoint: it has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "damaged"),
        (lambda path: (path / "config.json").write_text("{}"), "names no policy `type`"),
        (lambda path: (path / "model.safetensors").unlink(), "incomplete: model.safetensors is missing"),
        (lambda path: (path / "policy_postprocessor.json").unlink(), "incomplete: policy_postprocessor.json"),
        (
            lambda path: next(path.glob("*normalizer*.safetensors")).unlink(),
            "incomplete: .*normalizer_processor.safetensors is missing",
        ),
        (
            lambda path: (path / "model.safetensors").write_bytes(b"\0" * 64),
            "weights of checkpoint .* cannot be loaded",
        ),
        (lambda path: change_config(path, type="nonsense"), "'nonsense' .* is not registered"),
        (lambda path: change_config(path, n_obs_steps=2), "cannot be used .*Multiple observation steps"),
        (lambda path: change_config(path, nonsense=2), "cannot be used .*nonsense"),
        (lambda path: change_config(path, use_peft=True), "PEFT adapter"),
        (lambda path: change_config(path, input_features={}), "names no input features"),
    ],
)
def test_what_is_no_whole_checkpoint_gets_one_sentence(act, tmp_path, damage, sentence):
    path = shutil.copytree(act, tmp_path / "damaged")
    damage(path)
    with pytest.raises(UserError, match=sentence) as caught:
        PolicyRunner(path, device="cpu")
    assert "\n" not in str(caught.value)


def test_the_folder_above_gets_a_hint(act, tmp_path):
    shutil.copytree(act, tmp_path / "checkpoints" / "last" / "pretrained_model")
    with pytest.raises(UserError, match="Did you mean .*last/pretrained_model"):
        PolicyRunner(tmp_path)


def test_a_name_that_the_hub_does_not_give_gets_one_sentence():
    with pytest.raises(UserError, match="neither a folder here nor a name that the hub gives"):
        PolicyRunner("no-such-user/no-such-policy")


def test_a_device_that_is_not_there_gets_one_sentence(act):
    with pytest.raises(UserError, match="device 'nonsense' is not available"):
        PolicyRunner(act, device="nonsense")
