"""What is wrapped, how it is guarded, and that nothing changes for those who have no force sensor."""

import pickle
import sys

import draccus
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils import feature_utils

from lerobot_ext import compat, patching
from lerobot_ext.features import OBS_FORCE, VectorFeature

NAMES = [f"skin.m{m}_{axis}" for m in range(5) for axis in "xyz"]
ROBOT = {"pan.pos": float, "side": (4, 6, 3), "side_depth": (4, 6, 1), "force": VectorFeature(NAMES)}


def observation():
    return {
        "pan.pos": 1.5,
        "side": np.zeros((4, 6, 3), np.uint8),
        "side_depth": np.zeros((4, 6, 1), np.uint16),
        "force": np.arange(15, dtype=np.float32),
    }


# --- the force type ---


def test_force_is_a_feature_type_like_the_others():
    assert FeatureType("FORCE") is FeatureType.FORCE is FeatureType["FORCE"]
    assert list(FeatureType)[-1] is FeatureType.FORCE and FeatureType.FORCE == "FORCE"
    assert pickle.loads(pickle.dumps(FeatureType.FORCE)) is FeatureType.FORCE
    assert draccus.decode(FeatureType, draccus.encode(FeatureType.FORCE)) is FeatureType.FORCE


def test_force_survives_a_saved_policy_config(tmp_path):
    from lerobot.policies.act.configuration_act import ACTConfig

    features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        OBS_FORCE: PolicyFeature(FeatureType.FORCE, (15,)),
    }
    config = ACTConfig(input_features=features, device="cpu", push_to_hub=False)
    config.save_pretrained(tmp_path)
    loaded = PreTrainedConfig.from_pretrained(tmp_path)
    assert loaded.input_features[OBS_FORCE] == PolicyFeature(FeatureType.FORCE, (15,))
    assert loaded.input_features[OBS_FORCE].type is FeatureType.FORCE
    assert loaded.input_features == features


# --- features and frames ---


def test_a_vector_becomes_a_feature_of_its_own_and_the_state_stays_as_it_is():
    features = feature_utils.hw_to_dataset_features(ROBOT, "observation")
    assert features[OBS_FORCE] == {"dtype": "float32", "shape": (15,), "names": NAMES}
    assert features["observation.state"]["names"] == ["pan.pos"]
    assert set(features) == {
        "observation.state",
        "observation.images.side",
        "observation.images.side_depth",
        OBS_FORCE,
    }


def test_the_vector_passes_the_pipeline_and_the_merging_of_features():
    from lerobot.datasets.pipeline_features import (
        aggregate_pipeline_dataset_features,
        create_initial_features,
    )
    from lerobot.processor import make_default_processors

    _, _, pipeline = make_default_processors()
    features = aggregate_pipeline_dataset_features(pipeline, create_initial_features(observation=ROBOT))
    merged = feature_utils.combine_feature_dicts({"action": features["observation.state"]}, features)
    assert merged[OBS_FORCE] == {"dtype": "float32", "shape": (15,), "names": NAMES}


def test_a_frame_holds_a_copy_of_the_vector():
    features = feature_utils.hw_to_dataset_features(ROBOT, "observation")
    raw = observation()
    frame = feature_utils.build_dataset_frame(features, raw, "observation")
    assert np.array_equal(frame[OBS_FORCE], raw["force"]) and frame[OBS_FORCE].dtype == np.float32
    assert frame["observation.state"].tolist() == [1.5]
    raw["force"][0] = 99
    assert frame[OBS_FORCE][0] == 0


@pytest.mark.parametrize(
    ("force", "sentence"),
    [
        (np.zeros(3, np.float32), r"shape \(3,\), observation.force expects \(15,\)"),
        (np.full(15, np.nan, np.float32), "not finite"),
        (None, "the robot's observation has no 'force', only pan.pos, side, side_depth"),
    ],
)
def test_a_wrong_vector_is_an_error_and_never_recorded(force, sentence):
    features = feature_utils.hw_to_dataset_features(ROBOT, "observation")
    raw = observation() | {"force": force}
    if force is None:
        del raw["force"]
    with pytest.raises(ValueError, match=sentence):
        feature_utils.build_dataset_frame(features, raw, "observation")


def test_policies_see_force_as_force():
    features = feature_utils.hw_to_dataset_features(ROBOT, "observation")
    policy_features = feature_utils.dataset_to_policy_features(features)
    assert policy_features[OBS_FORCE] == PolicyFeature(FeatureType.FORCE, (15,))
    assert policy_features["observation.state"].type is FeatureType.STATE


def original(name):
    return patching.original_of(getattr(feature_utils, name))


names = st.text("abcdef._", min_size=1, max_size=6)
hardware = st.dictionaries(
    names, st.one_of(st.just(float), st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3])))
)


@given(hardware=hardware, prefix=st.sampled_from(["observation", "action"]), video=st.booleans())
def test_without_force_everything_is_as_lerobot_has_it(hardware, prefix, video):
    ours = feature_utils.hw_to_dataset_features(hardware, prefix, video)
    theirs = original("hw_to_dataset_features")(hardware, prefix, video)
    assert list(ours.items()) == list(theirs.items())
    values = {
        key: 0.1 if feature is float else np.ones(feature, np.uint8) for key, feature in hardware.items()
    }
    frame = feature_utils.build_dataset_frame(ours, values, prefix)
    expected = original("build_dataset_frame")(ours, values, prefix)
    assert list(frame) == list(expected)
    assert all(frame[key].tobytes() == expected[key].tobytes() for key in frame)
    assert feature_utils.dataset_to_policy_features(ours) == original("dataset_to_policy_features")(ours)


# --- guards ---


def test_the_table_names_what_is_wrapped_and_why():
    table = dict(compat.table())
    assert len(table) == len(compat.EXTENSIONS)
    assert "lerobot.utils.feature_utils.build_dataset_frame" in table
    assert all(reason.endswith(".") for reason in table.values())


@pytest.mark.parametrize("extension", compat.EXTENSIONS, ids=lambda extension: extension.attribute)
def test_each_extension_is_applied_once_and_keeps_the_original(extension):
    __import__(extension.module)
    compat.apply()
    found = sys.modules[extension.module]
    for part in extension.attribute.split("."):
        found = getattr(found, part)
    if extension.make is not None:
        first = patching.original_of(found)
        assert callable(first) and patching.original_of(first) is None
        extension.apply(sys.modules[extension.module])
        assert patching.original_of(found) is first


def test_no_module_of_lerobot_still_holds_an_original():
    import lerobot.scripts.lerobot_record
    import lerobot.scripts.lerobot_rollout
    import lerobot.scripts.lerobot_train  # noqa: F401

    originals = set()
    for extension in compat.EXTENSIONS:
        if extension.make is not None and "." not in extension.attribute:
            originals.add(
                id(patching.original_of(getattr(sys.modules[extension.module], extension.attribute)))
            )
    held = [
        f"{module_name}.{name}"
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] == "lerobot"
        for name, value in vars(module).items()
        if id(value) in originals
    ]
    assert held == []


@pytest.mark.parametrize("version", ["0.5.1", "0.6.0", "0.7.0", "0.7.0rc1", "1.0"])
def test_another_version_of_lerobot_is_refused_in_one_sentence(version):
    with pytest.raises(ImportError) as caught:
        compat.check_version(version)
    text = str(caught.value)
    assert version in text and ">=0.6.1,<0.7" in text and "pip install" in text and "\n" not in text


def test_supported_versions_pass():
    for version in ("0.6.1", "0.6.7"):
        compat.check_version(version)


def test_a_function_that_looks_different_is_refused_in_one_sentence(monkeypatch):
    import types

    module = types.ModuleType("elsewhere")
    module.build_dataset_frame = lambda features, values: None
    extension = next(e for e in compat.EXTENSIONS if e.attribute == "build_dataset_frame")
    with pytest.raises(ImportError, match=r"build_dataset_frame takes 'features values' instead of"):
        extension.apply(module)
    del module.build_dataset_frame
    with pytest.raises(ImportError, match="it has no lerobot.utils.feature_utils.build_dataset_frame"):
        extension.apply(module)
