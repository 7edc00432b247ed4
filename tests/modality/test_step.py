import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import PolicyProcessorPipeline, ProcessorStepRegistry

from lerobot_ext.modality import STEP_NAME, DepthSelection, ForceSelection, ModalityStep, Selection, find_step

RECORDED = {
    "observation.state": {"kind": "other", "shape": [6], "names": list("abcdef")},
    "observation.force": {"kind": "force", "shape": [3], "names": ["x", "y", "z"]},
    "observation.images.side_depth": {
        "kind": "depth",
        "shape": [8, 12, 1],
        "lowest_m": 0.01,
        "highest_m": 10.0,
    },
    "observation.images.wrist": {"kind": "rgb", "shape": [8, 12, 3]},
}
ALL = Selection(("wrist",), DepthSelection(), ForceSelection(), True, (4, 6))


def observation() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.state": torch.rand(1, 6, generator=generator),
        "observation.force": torch.rand(1, 3, generator=generator),
        "observation.images.side": torch.rand(1, 3, 8, 12, generator=generator),
        "observation.images.side_depth": torch.randint(0, 2000, (1, 1, 8, 12), generator=generator).to(
            torch.uint16
        ),
        "observation.images.wrist": torch.rand(1, 3, 8, 12, generator=generator),
    }


def pipeline(step) -> PolicyProcessorPipeline:
    return PolicyProcessorPipeline(steps=[step], name="policy_preprocessor")


def test_gives_exactly_what_the_network_gets():
    batch = pipeline(ModalityStep(ALL, RECORDED))(observation() | {"task": ["press"]})
    seen = {key: tuple(value.shape) for key, value in batch.items() if key.startswith("observation.")}
    assert seen == {
        "observation.state": (1, 9),
        "observation.images.side_depth": (1, 3, 4, 6),
        "observation.images.wrist": (1, 3, 4, 6),
    }


def test_force_stands_after_the_joints():
    given = observation()
    state = pipeline(ModalityStep(ALL, RECORDED))(given)["observation.state"]
    assert torch.equal(state, torch.cat([given["observation.state"], given["observation.force"]], -1))


def test_time_dimension_passes():
    given = {
        key: value.unsqueeze(1).repeat(2, 5, *[1] * (value.ndim - 1)) for key, value in observation().items()
    }
    batch = pipeline(ModalityStep(ALL, RECORDED))(given)
    assert batch["observation.state"].shape == (2, 5, 9)
    assert batch["observation.images.side_depth"].shape == (2, 5, 3, 4, 6)


def test_padding_flags_follow_their_feature():
    flags = {f"{key}_is_pad": torch.zeros(1, 1, dtype=torch.bool) for key in (*observation(), "action")}
    batch = pipeline(ModalityStep(ALL, RECORDED))(observation() | flags)
    assert {key for key in batch if key.endswith("_is_pad")} == {
        "observation.state_is_pad",
        "observation.images.side_depth_is_pad",
        "observation.images.wrist_is_pad",
        "action_is_pad",
    }


@pytest.mark.parametrize(
    ("selection", "task", "tip", "expected"),
    [
        (ALL, ["press", "press"], ["slowly", ""], ["press Tip: slowly", "press"]),
        (ALL, "press", "slowly", "press Tip: slowly"),
        (ALL, "press", None, "press"),
        (Selection(), "press", "slowly", "press"),
    ],
)
def test_tip_is_appended_when_selected_and_there(selection, task, tip, expected):
    step = ModalityStep(selection, {})
    given = {} if tip is None else {"observation.language_tip": tip}
    transition = {TransitionKey.OBSERVATION: given, TransitionKey.COMPLEMENTARY_DATA: {"task": task}}
    assert step(transition)[TransitionKey.COMPLEMENTARY_DATA]["task"] == expected


def test_the_given_transition_is_not_changed():
    given = observation()
    before = {key: value.clone() for key, value in given.items()}
    pipeline(ModalityStep(ALL, RECORDED))(given)
    assert given.keys() == before.keys()
    assert all(torch.equal(given[key], before[key]) for key in before)


def test_missing_observation_is_named_with_what_there_is():
    given = observation()
    del given["observation.force"]
    with pytest.raises(ValueError, match="trained on observation.force, .*it has: observation.state"):
        pipeline(ModalityStep(ALL, RECORDED))(given)


def test_force_of_another_length_is_refused():
    with pytest.raises(ValueError, match="observation.force has 5 values, .* on 3: x, y, z"):
        pipeline(ModalityStep(ALL, RECORDED))(observation() | {"observation.force": torch.zeros(1, 5)})


def test_saved_and_loaded_by_lerobot(tmp_path):
    assert ProcessorStepRegistry.get(STEP_NAME) is ModalityStep
    original = pipeline(ModalityStep(ALL, RECORDED))
    original.save_pretrained(tmp_path)
    loaded = PolicyProcessorPipeline.from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    assert find_step(loaded) == find_step(original)
    for key, value in original(observation()).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, loaded(observation())[key])


def test_required_inputs_are_the_raw_features():
    required = ModalityStep(ALL, RECORDED).required_inputs(
        {"observation.state": PolicyFeature(FeatureType.STATE, (9,))}
    )
    assert {key: feature.shape for key, feature in required.items()} == {
        "observation.state": (6,),
        "observation.force": (3,),
        "observation.images.side_depth": (1, 8, 12),
        "observation.images.wrist": (3, 8, 12),
    }


def test_required_inputs_refuses_a_policy_of_another_checkpoint():
    with pytest.raises(ValueError, match="do not belong together"):
        ModalityStep(ALL, RECORDED).required_inputs(
            {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
        )


def test_transform_features_says_what_comes_out():
    step = ModalityStep(ALL, RECORDED)
    raw = step.required_inputs() | {"observation.images.side": PolicyFeature(FeatureType.VISUAL, (3, 8, 12))}
    seen = step.transform_features({PipelineFeatureType.OBSERVATION: raw})[PipelineFeatureType.OBSERVATION]
    batch = pipeline(step)(observation())
    assert {key: feature.shape for key, feature in seen.items()} == {
        key: tuple(value.shape[1:]) for key, value in batch.items() if key.startswith("observation.")
    }


def test_a_robots_frame_goes_through_lerobots_own_preparation():
    from lerobot.policies.utils import prepare_observation_for_inference

    frame = {
        "observation.state": np.zeros(6, np.float32),
        "observation.force": np.ones(3, np.float32),
        "observation.images.side_depth": np.full((8, 12, 1), 800, np.uint16),
        "observation.images.wrist": np.full((8, 12, 3), 255, np.uint8),
    }
    batch = pipeline(ModalityStep(ALL, RECORDED))(
        prepare_observation_for_inference(frame, torch.device("cpu"), "press")
    )
    assert batch["observation.images.wrist"].min() == 1.0
    torch.testing.assert_close(batch["observation.images.side_depth"].unique(), torch.tensor([0.525]))
