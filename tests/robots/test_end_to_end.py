"""LeRobot's own `record` and `rollout`, as they are, on the virtual lab: what they write is what the issue says."""

import logging

import numpy as np
import pytest
from lerobot.cameras.zmq import ZMQCameraConfig
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.scripts.lerobot_record import RecordConfig, record
from lerobot.teleoperators.so_leader import SO101LeaderConfig

import lerobot_ext
from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.features import OBS_FORCE
from lerobot_ext.robots import SO100FollowerExtConfig
from lerobot_ext.sensors import AnySkinConfig
from lerobot_ext.virtual.testing import running_lab

lerobot_ext.register()
FPS, SECONDS = 10, 2
SIZE = {"width": 424, "height": 240, "fps": 30}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    pytest.importorskip("mujoco")
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


def robot_config(lab) -> SO100FollowerExtConfig:
    wrist = {"server_address": "127.0.0.1", "port": lab.wrist_port, "camera_name": "wrist"}
    return SO100FollowerExtConfig(
        port=str(lab.follower),
        id="follower",
        calibration_dir=lab.calibration,
        cameras={
            "side": RealSenseRGBDCameraConfig(
                serial_number_or_name=f"virtual:{lab.directory / 'side'}", max_age_ms=2000, **SIZE
            ),
            "wrist": ZMQCameraConfig(**wrist, **SIZE),
        },
        force_sensors={"skin": AnySkinConfig(port=str(lab.skin), max_age_ms=2000)},
    )


def dataset_config(root, repo_id: str) -> DatasetRecordConfig:
    return DatasetRecordConfig(
        repo_id=repo_id,
        root=root,
        single_task="Press.",
        fps=FPS,
        num_episodes=1,
        episode_time_s=SECONDS,
        reset_time_s=0,
        push_to_hub=False,
        streaming_encoding=True,
        encoder_threads=1,
        rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="ultrafast"),
        depth_encoder=DepthEncoderConfig(depth_min=0.1, depth_max=1.1, use_log=False),
    )


@pytest.fixture(scope="module")
def recorded(lab, tmp_path_factory):
    """One short episode, and what was logged while it was recorded."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda entry: messages.append(entry.getMessage())
    log = logging.getLogger("lerobot_ext")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    root = tmp_path_factory.mktemp("datasets") / "press"
    leader = SO101LeaderConfig(port=str(lab.leader), id="leader", calibration_dir=lab.calibration)
    try:
        written = record(
            RecordConfig(
                robot=robot_config(lab),
                teleop=leader,
                dataset=dataset_config(root, "lab/press"),
                play_sounds=False,
            )
        )
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return LeRobotDataset(written.repo_id, root=written.root), messages


def test_the_dataset_has_force_depth_and_six_joints(recorded):
    dataset, _ = recorded
    features = dataset.features
    assert features["observation.state"]["shape"] == (6,) == features["action"]["shape"]
    assert features[OBS_FORCE]["shape"] == (15,)
    assert features[OBS_FORCE]["names"][:2] == ["skin.m0_x", "skin.m0_y"]
    assert features["observation.images.side_depth"]["info"]["is_depth_map"]
    assert dataset.meta.depth_keys == ["observation.images.side_depth"]
    assert {key for key in features if key.startswith("observation.")} == {
        "observation.state",
        OBS_FORCE,
        "observation.images.side",
        "observation.images.side_depth",
        "observation.images.wrist",
    }
    assert dataset.meta.robot_type == "so100_follower_ext" and dataset.num_episodes == 1


def test_its_items_have_these_shapes(recorded):
    dataset, _ = recorded
    assert len(dataset) >= FPS
    item = dataset[0]
    assert item[OBS_FORCE].shape == (15,) and item["observation.state"].shape == (6,)
    assert item["observation.images.side"].shape == (3, 240, 424)
    assert item["observation.images.side_depth"].shape == (1, 240, 424)
    assert item["observation.images.wrist"].shape == (3, 240, 424)


def test_the_skin_is_tared_when_the_episode_starts(recorded):
    dataset, messages = recorded
    assert sum("tared 'skin'" in message for message in messages) == 1
    assert np.abs(dataset[0][OBS_FORCE].numpy()).max() < 20
    assert dataset.meta.stats[OBS_FORCE]["std"].shape == (15,)


def act_config(features):
    from lerobot.policies.act.configuration_act import ACTConfig

    return ACTConfig(
        **features,
        **{"pretrained_backbone_weights": None, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32},
        **{"n_encoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 8},
        **{"chunk_size": 10, "n_action_steps": 10},
    )


def smolvla_config(features, tmp_path):
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    settings = smolvla_overrides(make_tiny_vlm(tmp_path / "vlm")) | features
    del settings["type"]
    return SmolVLAConfig(**settings)


@pytest.mark.parametrize("engine", ["sync", "rtc"])
def test_a_policy_that_knows_of_force_drives_the_arm_and_what_it_did_is_recorded(
    recorded, lab, tmp_path, engine
):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.types import FeatureType
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.rollout import RolloutConfig
    from lerobot.rollout.configs import EpisodicStrategyConfig
    from lerobot.rollout.inference import RTCInferenceConfig, SyncInferenceConfig
    from lerobot.scripts.lerobot_rollout import rollout
    from lerobot.utils.feature_utils import dataset_to_policy_features

    dataset, _ = recorded
    features = dataset_to_policy_features(dataset.features)
    given = {
        "input_features": {
            key: features[key] for key in ("observation.state", OBS_FORCE, "observation.images.wrist")
        },
        "output_features": {"action": features["action"]},
        "device": "cpu",
        "push_to_hub": False,
    }
    config = act_config(given) if engine == "sync" else smolvla_config(given, tmp_path)
    checkpoint = tmp_path / "checkpoint"
    make_policy(config, ds_meta=dataset.meta).save_pretrained(checkpoint)
    for processor in make_pre_post_processors(config, dataset_stats=dataset.meta.stats):
        processor.save_pretrained(checkpoint)

    policy = PreTrainedConfig.from_pretrained(checkpoint)
    policy.pretrained_path = checkpoint
    assert policy.input_features[OBS_FORCE].type is FeatureType.FORCE
    root = tmp_path / "rollout_press"
    started = len(lab.client.status().episodes)
    rollout(
        RolloutConfig(
            robot=robot_config(lab),
            policy=policy,
            strategy=EpisodicStrategyConfig(),
            inference=SyncInferenceConfig() if engine == "sync" else RTCInferenceConfig(),
            dataset=dataset_config(root, "lab/rollout_press"),
            fps=FPS,
            device="cpu",
            play_sounds=False,
            return_to_initial_position=False,
        )
    )
    written = LeRobotDataset("lab/rollout_press", root=root)
    assert written.features[OBS_FORCE] == dataset.features[OBS_FORCE] and len(written) > 0
    assert written[0][OBS_FORCE].shape == (15,)
    assert len(lab.client.status().episodes) == started + 1
