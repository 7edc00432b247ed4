"""LeRobot's robot client, as installed, drives the lab's arm through our door."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import checkpoints
import numpy as np
import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.transport import services_pb2
from lerobot.utils.feature_utils import build_dataset_frame

import lerobot_ext
from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig
from lerobot_ext.virtual.testing import RunningLab, running_lab
from simplify_work.server.doors.lerobot_grpc import LeRobotGrpcDoor
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.worker import Worker

SIDE = "observation.images.side"
CAMERA = {"width": 424, "height": 240, "fps": 30}
FPS = 10
TASK = "Press the block."
MOVED_RAD = 0.2
PATIENCE_S = 240.0  # importing LeRobot in a process of its own takes its time on a busy machine


@dataclass
class Rig:
    """The lab, and a door in front of a small ACT that wants its joints and its colour camera."""

    lab: RunningLab
    brain: Worker
    door: LeRobotGrpcDoor
    home: tuple[float, ...]

    def far_from_home(self) -> float:
        """Of the joint that is farthest from where the lab began, rad, whatever the arm says itself."""
        now = self.lab.client.status().joints_rad
        return max(abs(joint - home) for joint, home in zip(now, self.home, strict=True))


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    lerobot_ext.register()
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        SIDE: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    }
    checkpoint = checkpoints.make_act(tmp_path_factory.mktemp("a") / "act", inputs=inputs)
    runner = PolicyRunner(checkpoint, device="cpu")
    runner.warm_up()
    with Worker(runner, str(checkpoint)) as brain:
        yield brain


@pytest.fixture
def rig(brain, tmp_path):
    with running_lab(tmp_path, no_operator=True) as lab:  # one a test, so that the arm is at home
        door = LeRobotGrpcDoor([brain], "127.0.0.1", 0)
        door.start()
        yield Rig(lab, brain, door, lab.client.status().joints_rad)
        door.stop()


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.1)


def test_the_client_in_this_process_gets_our_actions_and_moves_the_arm(
    rig, tmp_path, monkeypatch, undisturbed_logging
):
    monkeypatch.chdir(tmp_path)  # the module makes a folder of logs where it is imported
    from lerobot.async_inference.helpers import TimedObservation
    from lerobot.async_inference.robot_client import RobotClient, RobotClientConfig

    from lerobot_ext.robots.config_so_follower_ext import SO101FollowerExtConfig

    camera = RealSenseRGBDCameraConfig(**CAMERA, serial_number_or_name=f"virtual:{rig.lab.directory}/side")
    robot = SO101FollowerExtConfig(
        id="follower",
        port=str(rig.lab.follower),
        calibration_dir=rig.lab.calibration,
        cameras={"side": camera},
    )
    client = RobotClient(
        RobotClientConfig(
            policy_type="act",
            pretrained_name_or_path=rig.brain.path,
            robot=robot,
            actions_per_chunk=8,
            task=TASK,
            server_address=rig.door.endpoint,
            fps=FPS,
        )
    )
    threads = []
    try:
        assert client.start()
        seen = client.robot.get_observation()
        assert client.send_observation(TimedObservation(50.0, 3, {**seen, "task": TASK}))
        actions = pickle.loads(client.stub.GetActions(services_pb2.Empty()).data)
        frame = build_dataset_frame(client.policy_config.lerobot_features, seen, "observation")
        assert frame[SIDE].shape == (240, 424, 3)
        expected = rig.brain.open_session("ours").infer(frame, task=TASK, timeout_s=30).actions[:8]
        np.testing.assert_array_equal([each.get_action().numpy() for each in actions], expected)
        alone = checkpoints.local_chunk(rig.brain.path, frame, TASK).numpy()
        np.testing.assert_allclose(expected, alone[:8], rtol=1e-4, atol=1e-4)
        assert [each.get_timestep() for each in actions] == list(range(3, 11))

        threads = [
            threading.Thread(target=client.receive_actions, daemon=True),
            threading.Thread(target=client.control_loop, args=(TASK,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: client.latest_action >= 12, "the client did not execute actions of several chunks")
        wait_for(lambda: rig.far_from_home() > MOVED_RAD, "the arm does not move")
        client.shutdown_event.set()
        threads[1].join()
    finally:
        client.stop()
        for thread in threads:
            thread.join(PATIENCE_S)


def test_the_command_drives_the_arm(rig, tmp_path):
    side = {"type": "realsense_rgbd", "serial_number_or_name": f"virtual:{rig.lab.directory}/side", **CAMERA}
    words = [
        *("--robot.type=so101_follower_ext", f"--robot.port={rig.lab.follower}", "--robot.id=follower"),
        *(f"--robot.calibration_dir={rig.lab.calibration}", f"--robot.cameras={json.dumps({'side': side})}"),
        *(f"--server_address={rig.door.endpoint}", "--policy_type=act", "--policy_device=cuda"),
        *("--pretrained_name_or_path=act", "--actions_per_chunk=8", f"--task={TASK}", f"--fps={FPS}"),
        "--aggregate_fn_name=latest_only",
    ]
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "lerobot.async_inference.robot_client", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,  # it makes a folder of logs
        ) as client,
    ):
        try:

            def moved():
                assert client.poll() is None, log.read_text()
                return rig.far_from_home() > MOVED_RAD

            wait_for(moved, "the arm does not move")
        finally:
            client.kill()
