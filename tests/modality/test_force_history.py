"""Force as a token: the last samples, the same ones in training and at the robot."""

from __future__ import annotations

import copy
import json

import force_episodes as episodes
import numpy as np
import pytest
import torch
from force_episodes import FORCE, FRAMES, HISTORY, IMAGE, STATE
from lerobot.configs import (
    FeatureType,
    NormalizationMode,
    PipelineFeatureType,
    PolicyFeature,
    PreTrainedConfig,
)
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline
from lerobot.utils.feature_utils import dataset_to_policy_features

import lerobot_ext
from lerobot_ext.errors import UserError
from lerobot_ext.modality import ForceSelection, ModalityStep, Selection, find_step
from lerobot_ext.modality.force import check_policy, prepare_policy
from lerobot_ext.modality.plan import make_plan, network_features, raw_observation
from lerobot_ext.modality.stats import network_stats
from lerobot_ext.modality.view import select_dataset

lerobot_ext.register()
TOKEN = episodes.selection()
WINDOW = (HISTORY, 3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("force") / "data"
    return root, episodes.record(root)


def step(selection=TOKEN) -> ModalityStep:
    return ModalityStep(selection, raw_observation(make_plan(selection, episodes.FEATURES)))


def pipeline(one) -> PolicyProcessorPipeline:
    return PolicyProcessorPipeline(steps=[one], name="policy_preprocessor")


def batch(frame) -> dict:
    return prepare_observation_for_inference(dict(frame), torch.device("cpu"), "press")


# --- the selection and what it means ---


@pytest.mark.parametrize("history", [0, -3, 1001, 2.0, True])
def test_a_history_that_cannot_be_is_refused(history):
    with pytest.raises(UserError, match="force.force_history .*expected a number of samples, 1 to 1000"):
        ForceSelection("token", history)


def test_selection_survives_json_and_old_checkpoints_load():
    assert Selection.from_dict(json.loads(json.dumps(TOKEN.to_dict()))) == TOKEN
    old = {"force": {"fusion": "state"}}
    assert Selection.from_dict(old) == Selection(force=ForceSelection())
    assert Selection(force=ForceSelection()).to_dict()["force"] == old["force"], (
        "and older code loads new ones"
    )


def test_differences_speak_of_the_history_where_it_counts():
    longer, state = episodes.selection(20), Selection(force=ForceSelection("state", 7))
    assert TOKEN.differences(longer) == ["force.force_history: 4, 20"]
    assert state.differences(Selection(force=ForceSelection("state", 9))) == []
    assert "force.fusion: state, token" in state.differences(TOKEN)


def test_the_plan_says_what_the_network_gets():
    plan = make_plan(TOKEN, episodes.FEATURES)
    force = next(use for use in plan if use.key == FORCE)
    assert (force.why, force.seen_as, force.seen) == ("last 4 samples as one token", FORCE, WINDOW)
    features = network_features(plan)
    assert features[FORCE] == {"dtype": "float32", "shape": WINDOW, "names": episodes.FORCES}
    assert features[STATE] == episodes.FEATURES[STATE]
    assert dataset_to_policy_features(features)[FORCE] == PolicyFeature(FeatureType("FORCE"), WINDOW)
    assert raw_observation(plan)[FORCE] == {
        "kind": "force",
        "shape": [3],
        "names": episodes.FORCES,
        "history": HISTORY,
    }


def test_a_token_needs_no_state():
    without = {key: feature for key, feature in episodes.FEATURES.items() if key != STATE}
    assert network_features(make_plan(TOKEN, without))[FORCE]["shape"] == WINDOW


def test_statistics_stay_those_of_one_sample_and_hold_for_each():
    stats = {key: {"mean": np.arange(n) + 1.0, "std": np.full(n, 2.0)} for key, n in ((STATE, 6), (FORCE, 3))}
    seen = network_stats(stats, make_plan(TOKEN, episodes.FEATURES), TOKEN, 0.001)
    assert seen[FORCE]["mean"].shape == (3,) and seen[STATE]["mean"].shape == (6,)
    features = {FORCE: PolicyFeature(FeatureType("FORCE"), WINDOW)}
    normalise = NormalizerProcessorStep(features, {FeatureType("FORCE"): NormalizationMode.MEAN_STD}, seen)
    windows = torch.rand(5, *WINDOW)
    found = pipeline(normalise)({FORCE: windows})[FORCE]
    torch.testing.assert_close(found, (windows - torch.tensor([1.0, 2.0, 3.0])) / 2)


# --- the policy's config ---


def test_force_is_normalised_by_mean_and_deviation_unless_the_user_says_otherwise():
    features = network_features(make_plan(TOKEN, episodes.FEATURES))
    config = make_policy_config("smolvla", device="cpu")
    prepare_policy(config, TOKEN, features)
    assert config.normalization_mapping["FORCE"] is NormalizationMode.MEAN_STD
    config.normalization_mapping["FORCE"] = NormalizationMode.IDENTITY
    prepare_policy(config, TOKEN, features)
    assert config.normalization_mapping["FORCE"] is NormalizationMode.IDENTITY
    assert not config.input_features, "LeRobot fills in what is empty"


@pytest.mark.parametrize(
    ("selection", "key", "expected"),
    [
        (TOKEN, FORCE, PolicyFeature(FeatureType("FORCE"), WINDOW)),
        (Selection(force=ForceSelection()), STATE, PolicyFeature(FeatureType.STATE, (9,))),
    ],
)
def test_a_pretrained_policy_learns_of_force(selection, key, expected):
    state = PolicyFeature(FeatureType.STATE, (6,))
    config = make_policy_config("smolvla", device="cpu", input_features={STATE: state})
    prepare_policy(config, selection, network_features(make_plan(selection, episodes.FEATURES)))
    assert config.input_features == {STATE: state, key: expected}


def test_a_policy_without_a_token_is_refused_in_a_sentence():
    config = make_policy_config("act", device="cpu")
    with pytest.raises(UserError, match="fusion 'token' is for smolvla, the policy is act; .*'state'"):
        check_policy(config, TOKEN)
    check_policy(config, Selection(force=ForceSelection()))
    check_policy(make_policy_config("smolvla", device="cpu"), TOKEN)


# --- the dataset view ---


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("deltas", [None, {STATE: [0.0], "action": [0.0, 1 / episodes.FPS]}])
def test_the_view_gives_windows_whatever_the_policy_asks_for_other_keys(recorded, cached, deltas):
    root, seen = recorded
    dataset = LeRobotDataset("test/force", root=root, delta_timestamps=deltas)
    view = select_dataset(dataset, TOKEN, 1.0 if cached else None)
    assert dataset.delta_timestamps == deltas, "the given one is not changed"
    for episode, frames in enumerate(seen):
        forces = [frame[FORCE] for frame in frames]
        for frame in range(FRAMES):
            item = view[episode * FRAMES + frame]
            np.testing.assert_array_equal(item[FORCE], episodes.window(forces, frame))
            padded = [frame - back < 0 for back in reversed(range(HISTORY))]
            assert item[f"{FORCE}_is_pad"].tolist() == padded
            assert item[STATE].shape == ((6,) if deltas is None else (1, 6))
            assert item["action"].shape == ((6,) if deltas is None else (2, 6))
    assert view.delta_timestamps[FORCE] == [back / episodes.FPS for back in (-3, -2, -1, 0)]


def test_windows_stay_inside_chosen_episodes(recorded):
    root, seen = recorded
    view = episodes.open_view(root, episodes=[1])
    np.testing.assert_array_equal(view[0][FORCE], np.stack([seen[1][0][FORCE]] * HISTORY))


# --- the step ---


def test_a_window_is_used_as_it_is():
    windows = torch.rand(2, *WINDOW)
    given = {STATE: torch.zeros(2, 6), FORCE: windows, IMAGE: torch.zeros(2, 3, 16, 24)}
    flags = {
        f"{FORCE}_is_pad": torch.zeros(2, HISTORY, dtype=torch.bool),
        "observation.other_is_pad": torch.ones(2),
    }
    one = step()
    seen = pipeline(one)(given | flags)
    assert seen[FORCE] is windows and f"{FORCE}_is_pad" in seen
    assert seen[STATE].shape == (2, 6)
    assert pipeline(one)(given | {FORCE: torch.ones(2, 3)})[FORCE].unique().item() == 1, "nor remembered"


def test_samples_become_windows_and_reset_forgets_them(recorded):
    _, seen = recorded
    chain = pipeline(step())
    for frames in seen:
        chain.reset()
        forces = [frame[FORCE] for frame in frames]
        for index, frame in enumerate(frames):
            found = chain(batch(frame))[FORCE]
            np.testing.assert_array_equal(found, episodes.window(forces, index)[None])


def test_several_rows_have_several_histories():
    chain = pipeline(step())
    others = {STATE: torch.zeros(2, 6), IMAGE: torch.zeros(2, 3, 16, 24)}
    for tick in range(3):
        found = chain({**others, FORCE: torch.tensor([[1.0] * 3, [10.0] * 3]) * tick})[FORCE]
    assert found[..., 0].tolist() == [[0, 0, 1, 2], [0, 0, 10, 20]]
    alone = {STATE: torch.zeros(1, 6), IMAGE: torch.zeros(1, 3, 16, 24), FORCE: torch.full((1, 3), 7.0)}
    assert chain(alone)[FORCE].unique().item() == 7, "another number of robots: other robots"
    assert chain(alone | {FORCE: torch.full((3,), 8.0)})[FORCE][..., 0].tolist() == [[7, 7, 7, 8]]


def test_one_sample_of_history_is_a_window_of_one():
    chain = pipeline(step(episodes.selection(1)))
    given = {STATE: torch.zeros(1, 6), IMAGE: torch.zeros(1, 3, 16, 24)}
    for value in (1.0, 2.0):
        assert chain({**given, FORCE: torch.full((1, 3), value)})[FORCE].tolist() == [[[value] * 3]]


def test_a_sample_that_is_written_over_is_remembered_as_it_was():
    chain, sample = pipeline(step()), torch.zeros(1, 3)
    given = {STATE: torch.zeros(1, 6), IMAGE: torch.zeros(1, 3, 16, 24), FORCE: sample}
    chain(given)
    sample += 5
    assert chain(given)[FORCE][0, :, 0].tolist() == [0, 0, 0, 5]


def test_the_history_is_neither_saved_nor_compared(tmp_path, recorded):
    _, seen = recorded
    used = pipeline(step())
    before = copy.deepcopy(used)
    used(batch(seen[0][0]))
    assert find_step(used) == find_step(before)
    used.save_pretrained(tmp_path)
    loaded = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    assert not list(tmp_path.glob("*.safetensors"))
    assert find_step(loaded).required_history() == {FORCE: HISTORY}
    found = loaded(batch(seen[1][0]))[FORCE]
    np.testing.assert_array_equal(found[0], np.stack([seen[1][0][FORCE]] * HISTORY))


def test_wrong_windows_are_refused():
    given = {STATE: torch.zeros(1, 6), IMAGE: torch.zeros(1, 3, 16, 24)}
    with pytest.raises(ValueError, match="window of 9 samples, the policy was trained on 4"):
        pipeline(step())({**given, FORCE: torch.zeros(1, 9, 3)})
    with pytest.raises(ValueError, match="observation.force has 5 values, .* on 3: skin.x"):
        pipeline(step())({**given, FORCE: torch.zeros(1, HISTORY, 5)})


def test_the_step_says_what_it_takes_and_what_it_gives():
    one = step()
    required = one.required_inputs({FORCE: PolicyFeature(FeatureType("FORCE"), WINDOW)})
    assert required[FORCE].shape == (3,) and one.required_history() == {FORCE: HISTORY}
    seen = one.transform_features({PipelineFeatureType.OBSERVATION: required})
    assert seen[PipelineFeatureType.OBSERVATION][FORCE] == PolicyFeature(FeatureType("FORCE"), WINDOW)
    with pytest.raises(ValueError, match="do not belong together"):
        one.required_inputs({FORCE: PolicyFeature(FeatureType("FORCE"), (HISTORY + 1, 3))})
    assert step(Selection(force=ForceSelection())).required_history() == {}


# --- the same windows in training and at the robot ---


def test_the_network_sees_the_windows_it_was_trained_on(recorded, tmp_path):
    root, seen = recorded
    view = episodes.open_view(root)
    path = episodes.make_checkpoint(tmp_path / "token", tmp_path / "vlm", view)
    saved = json.loads((path / "config.json").read_text())
    assert saved["normalization_mapping"]["FORCE"] == "MEAN_STD"
    assert saved["input_features"][FORCE] == {"type": "FORCE", "shape": list(WINDOW)}

    trained, robot = episodes.load(path), episodes.load(path)
    windows = episodes.watch(robot.policy)
    robot.policy.config.n_action_steps = 1
    for episode, frames in enumerate(seen):
        robot.policy.reset()
        robot.pre.reset()
        for index, frame in enumerate(frames):
            item = torch.utils.data.default_collate([view[episode * FRAMES + index]])
            expected = trained.pre(item)[FORCE]
            assert torch.equal(robot.pre(batch(frame))[FORCE], expected)
    with torch.inference_mode():
        robot.pre.reset()
        for index, frame in enumerate(seen[0][:HISTORY]):
            robot.policy.select_action(robot.pre(batch(frame)))
            item = torch.utils.data.default_collate([view[index]])
            assert torch.equal(windows[-1].reshape(1, *WINDOW), trained.pre(item)[FORCE])


def test_a_pretrained_smolvla_is_given_force_and_its_normalisation(recorded, smolvla):
    """As LeRobot's train starts from a policy that never saw force."""
    view = episodes.open_view(recorded[0])
    config = PreTrainedConfig.from_pretrained(smolvla)
    config.pretrained_path = str(smolvla)
    prepare_policy(config, TOKEN, view.meta.features)
    policy = make_policy(config, view.meta)
    assert policy.model.force_token is not None
    normaliser = {
        "stats": view.meta.stats,
        "features": {**config.input_features, **config.output_features},
        "norm_map": config.normalization_mapping,
    }
    pre, _ = make_pre_post_processors(
        config, pretrained_path=str(smolvla), preprocessor_overrides={"normalizer_processor": normaliser}
    )
    assert find_step(pre).required_history() == {FORCE: HISTORY}
    item = view[5]
    found = pre(torch.utils.data.default_collate([item]))[FORCE]
    mean, std = (
        torch.as_tensor(view.meta.stats[FORCE][name], dtype=torch.float32) for name in ("mean", "std")
    )
    torch.testing.assert_close(found[0], (item[FORCE] - mean) / std)
