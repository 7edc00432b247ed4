"""The two loops on the lab, as a user runs them: what is recorded is true, and a server's policy moves the arm."""

import numpy as np
import pytest
from checkpoints import make_act
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from servers import ServerProcess

from lerobot_ext.commands.main import main

NOISE_UT = 12.0  # norm of 15 channels with the skin's noise of 1.5 uT each, and room for drift
ENCODER_STEP_MM = 1000 / 4095  # of collect.yaml's linear scale from 0.1 to 1.1 m


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An ACT that wants what the lab gives: joints, a wrist picture and force."""
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 240, 424)),
    }
    return make_act(tmp_path_factory.mktemp("act") / "checkpoint", inputs=inputs)


def test_a_recording_tells_the_truth(config, lab, tmp_path):
    before = len(lab.client.status().episodes)
    assert main(["record", config("collect.yaml", **{"dataset.num_episodes": 2})]) == 0

    mark = lab.client.status().table_centre
    verdicts = lab.client.status().episodes[before:]
    dataset = LeRobotDataset("lab/press", root=tmp_path / "dataset", video_backend="pyav")
    assert dataset.num_episodes == len(verdicts) == 2
    table = dataset.hf_dataset.with_format("numpy")
    norms = np.linalg.norm(np.stack(table["observation.force"]), axis=1)
    episodes = np.array(table["episode_index"])
    for index, verdict in enumerate(verdicts):
        norm = norms[episodes == index]
        assert norm[:10].max() < NOISE_UT, "tared, and nothing touches the skin yet"
        if verdict.peak_force_n > 1:
            assert norm.max() > 5 * NOISE_UT, "the press is felt"
    depth = dataset[0]["observation.images.side_depth"][0, mark.row, mark.column].item()
    assert depth == pytest.approx(1000 * mark.depth_m, abs=2 + ENCODER_STEP_MM)


def test_a_remote_policy_moves_the_arm_and_is_recorded(config, lab, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("ENV", "local")
    before = len(lab.client.status().episodes)
    with ServerProcess(checkpoint) as server:
        words = config(
            "evaluate_record.yaml",
            **{
                "server.address": server.address,
                "server.timeout_s": 20,
                "policy.path": "a/checkpoint/that/only/the/server/has",
                "dataset.episode_time_s": 2,
                "visualize": False,
            },
        )
        assert main(["evaluate", words]) == 0
    dataset = LeRobotDataset("lab/rollout_press", root=tmp_path / "dataset", video_backend="pyav")
    assert dataset.num_episodes == 1
    assert dataset[0]["observation.force"].shape == (15,)
    assert len(lab.client.status().episodes) == before + 1


def test_a_policy_that_wants_more_than_the_robot_gives(capsys, config, tmp_path, monkeypatch):
    monkeypatch.setenv("ENV", "local")
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.ceiling": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    with ServerProcess(make_act(tmp_path / "checkpoint", inputs=inputs)) as server:
        words = config("evaluate_record.yaml", **{"server.address": server.address})
        assert main(["evaluate", words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "observation.images.ceiling" in said, "what the policy wants"
    assert "observation.images.wrist" in said, "what the robot gives"
