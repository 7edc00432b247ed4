"""`lerobot-rollout` as it is, recording, while its policy server is killed, comes back, and is killed for good."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
from lerobot.datasets import LeRobotDataset
from rig import FPS, PATIENCE_S, wait_for
from stand_in import DIM, StandIn

from lerobot_ext.virtual.testing import free_port


def test_the_stock_command_survives_kills_and_leaves_a_readable_dataset(lab, tmp_path):
    address = f"tcp://127.0.0.1:{free_port()}"
    root, telemetry = tmp_path / "rollout_swing", tmp_path / "telemetry"
    words = [
        *("--robot.type=so101_follower_ext", f"--robot.port={lab.follower}", "--robot.id=follower"),
        f"--robot.calibration_dir={lab.calibration}",
        *("--policy.type=remote", f"--policy.address={address}"),
        *("--policy.timeout_s=1.5", "--policy.connect_timeout_s=20"),
        *("--inference.type=async", "--inference.give_up_s=10", f"--inference.telemetry_dir={telemetry}"),
        *("--strategy.type=episodic", "--dataset.repo_id=lab/rollout_swing", f"--dataset.root={root}"),
        *("--dataset.single_task=Swing.", "--dataset.num_episodes=1", "--dataset.episode_time_s=600"),
        *("--dataset.push_to_hub=false", "--play_sounds=false", "--return_to_initial_position=false"),
        f"--fps={FPS}",
    ]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    first = StandIn(address)
    with (
        first,
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "lerobot.scripts.lerobot_rollout", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
        ) as rollout,
    ):
        try:

            def seen(name, times=1):
                assert rollout.poll() is None, log.read_text()
                return sum(event["event"] == name for event in events(telemetry)) >= times

            wait_for(lambda: seen("chunk", 2), "no chunks")
            first.kill()
            wait_for(lambda: seen("fault"), "the loss is not in the telemetry")
            with StandIn(address) as second:
                wait_for(lambda: seen("resumed"), "chunks do not come again")
                chunks = sum(event["event"] == "chunk" for event in events(telemetry))
                wait_for(lambda: seen("chunk", chunks + 1), "no chunks")
                second.kill()
            assert rollout.wait(PATIENCE_S) == 0, log.read_text()
        finally:
            rollout.kill()
    said = log.read_text()
    assert said.count("no chunks (") == 2 and said.count("the run ends: no chunks for 10 s") == 1
    faults = [event["kind"] for event in events(telemetry) if event["event"] == "fault"]
    assert len(faults) == 3 and faults[-1] == "gave_up"
    assert events(telemetry)[-1]["event"] == "end"

    dataset = LeRobotDataset("lab/rollout_swing", root=root)
    executed = events(telemetry)[-1]["ticks"] - events(telemetry)[-1]["starved"]
    assert dataset.num_episodes == 1
    assert len(dataset) == executed, "what was executed is what was recorded"
    table = dataset.hf_dataset.with_format("numpy")
    assert np.isfinite(np.stack(table["action"])).all() and table["action"][0].shape == (DIM,)


def events(telemetry):
    """The lines so far."""
    lines = []
    for path in sorted(telemetry.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # it is being written
                lines.append(json.loads(line))
    return lines
