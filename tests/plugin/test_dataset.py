"""Force goes through LeRobot's own dataset: written, resumed, read, averaged, seen as policy input and drawn."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.common.control_utils import sanity_check_dataset_robot_compatibility
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.pipeline_features import aggregate_pipeline_dataset_features, create_initial_features
from lerobot.processor import make_default_processors
from lerobot.utils.feature_utils import build_dataset_frame, combine_feature_dicts

from lerobot_ext.features import OBS_FORCE, VectorFeature

NAMES = [f"skin.m{m}_{axis}" for m in range(5) for axis in "xyz"]
JOINTS = {"pan.pos": float, "grip.pos": float}
OBSERVED = {**JOINTS, "force": VectorFeature(NAMES)}
FPS = 30


def features() -> dict:
    teleop, _, observe = make_default_processors()
    return combine_feature_dicts(
        aggregate_pipeline_dataset_features(teleop, create_initial_features(action=JOINTS)),
        aggregate_pipeline_dataset_features(observe, create_initial_features(observation=OBSERVED)),
    )


def force_at(frame: int) -> np.ndarray:
    return np.linspace(0, 1, 15, dtype=np.float32) + frame


def add_episode(dataset: LeRobotDataset, frames: int = 4) -> None:
    for frame in range(frames):
        joints = {"pan.pos": float(frame), "grip.pos": 1.0}
        observed = build_dataset_frame(
            dataset.features, {**joints, "force": force_at(frame)}, prefix="observation"
        )
        action = build_dataset_frame(dataset.features, joints, prefix="action")
        dataset.add_frame({**observed, **action, "task": "press"})
    dataset.save_episode()


@pytest.fixture
def root(tmp_path) -> Path:
    dataset = LeRobotDataset.create(
        "lab/press", FPS, root=tmp_path / "press", robot_type="so101_follower_ext", features=features()
    )
    add_episode(dataset)
    dataset.finalize()
    return tmp_path / "press"


def test_it_is_read_as_it_was_written(root):
    dataset = LeRobotDataset("lab/press", root=root)
    assert dataset.features[OBS_FORCE] == {"dtype": "float32", "shape": (15,), "names": NAMES}
    assert dataset.features["observation.state"]["shape"] == (2,)
    for frame in range(4):
        assert np.array_equal(dataset[frame][OBS_FORCE].numpy(), force_at(frame))


def test_statistics_are_per_channel(root):
    stats = LeRobotDataset("lab/press", root=root).meta.stats[OBS_FORCE]
    assert np.allclose(stats["mean"], force_at(0) + 1.5) and stats["std"].shape == (15,)
    assert np.allclose(stats["min"], force_at(0)) and np.allclose(stats["max"], force_at(3))


def test_a_recording_is_resumed_with_the_same_sensors_and_refused_with_others(root):
    robot = SimpleNamespace(robot_type="so101_follower_ext")
    dataset = LeRobotDataset.resume("lab/press", root=root)
    sanity_check_dataset_robot_compatibility(dataset, robot, FPS, features())
    without = {key: feature for key, feature in features().items() if key != OBS_FORCE}
    with pytest.raises(ValueError, match="compatibility check failed"):
        sanity_check_dataset_robot_compatibility(dataset, robot, FPS, without)
    add_episode(dataset)
    dataset.finalize()
    assert LeRobotDataset("lab/press", root=root).num_episodes == 2


def test_a_policy_made_for_the_dataset_takes_force_as_force(root):
    from lerobot.configs.types import FeatureType
    from lerobot.policies.factory import dataset_to_policy_features

    policy_features = dataset_to_policy_features(LeRobotDataset("lab/press", root=root).meta.features)
    assert policy_features[OBS_FORCE].type is FeatureType.FORCE
    assert policy_features[OBS_FORCE].shape == (15,)


def test_force_in_an_observation_becomes_a_batch_for_a_policy():
    import torch
    from lerobot.policies.utils import build_inference_frame

    raw = {"pan.pos": 1.0, "grip.pos": 2.0, "force": force_at(7)}
    batch = build_inference_frame(raw, torch.device("cpu"), features(), task="press")
    assert batch[OBS_FORCE].shape == (1, 15) and batch[OBS_FORCE].dtype == torch.float32
    assert np.array_equal(batch[OBS_FORCE][0].numpy(), force_at(7))


def test_the_live_view_draws_force_as_curves(tmp_path):
    rr = pytest.importorskip("rerun")
    from lerobot.utils import rerun_visualization
    from lerobot.utils.visualization_utils import log_visualization_data

    rr.init("lerobot_ext_test", spawn=False)
    rr.save(tmp_path / "live.rrd")
    rerun_visualization.log_rerun_data.blueprint = None
    log_visualization_data(
        "rerun", observation={"pan.pos": 1.0, "force": force_at(0)}, action={"pan.pos": 1.0}
    )
    paths = str(rerun_visualization.log_rerun_data.blueprint.root_container.contents[0].contents)
    rr.disconnect()
    rerun_visualization.log_rerun_data.blueprint = None
    assert "observation.force" in paths
    assert (tmp_path / "live.rrd").stat().st_size > 0
