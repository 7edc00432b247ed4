"""Stock `lerobot-rollout` on the lab, its policy on a server in another process, with both engines for chunks."""

import json
import sys

import numpy as np
import pytest
from checkpoints import make_smolvla
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.rollout.robot_wrapper import ThreadSafeRobot
from lerobot.scripts import lerobot_rollout
from servers import ServerProcess

from lerobot_ext.recording.episodes import EpisodeListener, add_listener, remove_listener
from lerobot_ext.virtual.testing import running_lab

pytestmark = pytest.mark.usefixtures("undisturbed_logging")

BASE = ("--strategy.type=base", "--duration=5", "--task=press")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvla")
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 240, 424)),
    }
    with ServerProcess(make_smolvla(folder / "checkpoint", folder / "vlm", inputs=inputs)) as server:
        yield server


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("l"), no_operator=True) as lab:
        yield lab


@pytest.fixture
def rollout(lab, server, monkeypatch):
    """LeRobot's own command, with a policy that is elsewhere; returns the actions that the robot was sent."""
    sent = []
    send_action = ThreadSafeRobot.send_action

    def noted(self, action):
        sent.append(list(action.values()))
        return send_action(self, action)

    def run(*words, timeout_s=20):
        wrist = (
            f"{{type: zmq, server_address: 127.0.0.1, port: {lab.wrist_port}, camera_name: wrist, "
            "width: 424, height: 240, fps: 30}"
        )
        command = [
            "lerobot-rollout",
            "--play_sounds=false",
            "--return_to_initial_position=false",
            "--robot.type=so101_follower_ext",
            "--robot.id=follower",
            f"--robot.port={lab.follower}",
            f"--robot.calibration_dir={lab.calibration}",
            f"--robot.cameras={{wrist: {wrist}}}",
            "--policy.type=remote",
            f"--policy.address={server.address}",
            f"--policy.timeout_s={timeout_s}",
            *words,
        ]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(ThreadSafeRobot, "send_action", noted)
        lerobot_rollout.main()
        return np.array(sent)

    return run


def test_engine_async(rollout, tmp_path):
    sent = rollout(
        *BASE,
        "--inference.type=async",
        f"--inference.telemetry_dir={tmp_path}",
        "--interpolation_multiplier=2",
    )
    lines = [json.loads(line) for line in (tmp_path / "episode_000000.jsonl").open()]
    of = {name: [line for line in lines if line["event"] == name] for name in ("tick", "request", "chunk")}
    assert lines[0]["merge"] == "rtc" and lines[0]["chunk_size"] == 10
    assert lines[0]["action_names"][0] == "shoulder_pan.pos" and len(lines[0]["action_names"]) == 6
    end = lines[-1]
    assert end["event"] == "end" and (end["refused"], end["faults"]) == (0, 0)
    assert end["ticks"] == len(of["tick"]) and end["chunks"] == len(of["chunk"]) >= 3
    timesteps = [tick["timestep"] for tick in of["tick"]]
    assert timesteps == sorted(timesteps) and timesteps[-1] == end["ticks"] - end["starved"] > 10
    for chunk in of["chunk"]:
        assert chunk["delay"] == chunk["arrived"] - chunk["timestep"]
        assert chunk["trimmed"] == min(chunk["delay"], 10)
        assert chunk["round_trip_s"] > chunk["infer_s"] > 0 and chunk["sent_bytes"] > 0
    assert any(request["forecast"] > 0 for request in of["request"])
    # LeRobot makes two of each action, except of the first.
    assert 2 * timesteps[-1] - 2 <= len(sent) <= 2 * timesteps[-1] and np.ptp(sent, axis=0).min() > 0


def test_two_rates(rollout, tmp_path, capsys):
    """10 Hz of policy, 40 Hz of arm, recorded at 10 Hz though the dataset was to have its default."""
    sent = rollout(
        "--inference.type=async",
        "--inference.policy_hz=10",
        "--inference.control_hz=40",
        "--inference.max_steps=25",
        "--inference.max_step=1.5",
        "--inference.hold_joints=[gripper]",
        f"--inference.telemetry_dir={tmp_path / 'telemetry'}",
        "--strategy.type=episodic",
        "--dataset.repo_id=lab/rollout_press",
        f"--dataset.root={tmp_path / 'dataset'}",
        "--dataset.single_task=press",
        "--dataset.num_episodes=1",
        "--dataset.episode_time_s=30",
        "--dataset.push_to_hub=false",
        "--dataset.rgb_encoder.vcodec=h264",
    )
    told = capsys.readouterr().err
    assert "dataset.fps is 30; it is set to inference.policy_hz, 10" in told
    dataset = LeRobotDataset("lab/rollout_press", root=tmp_path / "dataset", video_backend="pyav")
    assert (dataset.fps, dataset.num_frames) == (10, 25)
    lines = [json.loads(line) for line in (tmp_path / "telemetry" / "episode_000000.jsonl").open()]
    assert lines[0]["fps"] == 10 and lines[-1]["ticks"] - lines[-1]["starved"] == 25
    steps = np.abs(np.diff(sent, axis=0))
    assert len(sent) >= 100 and steps.max() <= 1.5 + 1e-6 and np.ptp(sent, axis=0).min() > 0
    assert f"paced loop: over; {len(sent)} actions sent" in told


def test_lerobots_engine_rtc(rollout, caplog):
    sent = rollout(
        *BASE, "--inference.type=rtc", "--inference.rtc.execution_horizon=8", "--inference.queue_threshold=5"
    )
    assert len(sent) > 10 and np.isfinite(sent).all() and np.ptp(sent, axis=0).min() > 0
    assert "RTC inference error" not in caplog.text


def test_a_server_that_dies_between_episodes_ends_the_run_with_what_was_recorded(
    rollout, server, tmp_path, caplog
):
    """The second episode gets no chunk, hence no frame; LeRobot's attempt to save it would be an error."""
    begun = []

    def begin(robot):
        begun.append(robot)
        if len(begun) == 2:
            server.kill()

    add_listener(EpisodeListener("killer", on_start=begin))
    try:
        rollout(
            "--inference.type=async",
            "--inference.give_up_s=1",
            f"--inference.telemetry_dir={tmp_path / 'telemetry'}",
            "--strategy.type=episodic",
            "--dataset.repo_id=lab/rollout_press",
            f"--dataset.root={tmp_path / 'dataset'}",
            "--dataset.single_task=press",
            "--dataset.num_episodes=3",
            "--dataset.episode_time_s=2",
            "--dataset.reset_time_s=0",
            "--dataset.push_to_hub=false",
            "--dataset.rgb_encoder.vcodec=h264",
            timeout_s=1,
        )
    finally:
        remove_listener("killer")
    assert len(begun) == 2
    dataset = LeRobotDataset("lab/rollout_press", root=tmp_path / "dataset", video_backend="pyav")
    assert dataset.num_episodes == 1 and dataset.num_frames > 5
    lines = [json.loads(line) for line in (tmp_path / "telemetry" / "episode_000001.jsonl").open()]
    assert [line["kind"] for line in lines if line["event"] == "fault"][-1] == "gave_up"
    assert lines[-1]["event"] == "end" and lines[-1]["starved"] == lines[-1]["ticks"]
