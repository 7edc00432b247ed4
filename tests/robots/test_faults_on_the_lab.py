"""The follower on the running lab, whose cables come loose: physics, real pseudo-terminals, real camera drivers."""

import threading
import time

import numpy as np
import pytest
from lerobot.cameras.zmq import ZMQCameraConfig
from lerobot.robots import make_robot_from_config
from lerobot.teleoperators import make_teleoperator_from_config
from lerobot.teleoperators.so_leader import SO101LeaderConfig

import lerobot_ext
from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.virtual.client import LabClient
from lerobot_ext.virtual.testing import running_lab

lerobot_ext.register()
SIZE = {"width": 424, "height": 240, "fps": 30}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    pytest.importorskip("mujoco")
    with running_lab(tmp_path_factory.mktemp("lab"), no_operator=True) as running:
        yield running


@pytest.fixture
def make(lab):
    made = []

    def make_one(cameras=None, **more):
        config = SO101FollowerExtConfig(
            port=str(lab.follower),
            id="follower",
            calibration_dir=lab.calibration,
            cameras=cameras or {},
            **more,
        )
        made.append(make_robot_from_config(config))
        made[-1].connect()
        return made[-1]

    yield make_one
    for device in dict(lab.client.status().faults):
        lab.client.fault(device)
    for robot in made:
        robot.disconnect()


def later(lab, seconds, device, fault=""):
    """Ask for a fault after a while; a client of its own, since clients belong to one thread."""

    def ask():
        with LabClient(lab.directory) as client:
            client.fault(device, fault)

    threading.Timer(seconds, ask).start()


def test_unplugged_and_back_under_another_name_in_a_loop_the_arm_goes_on_and_does_not_jump(lab, make):
    robot = make()
    home = robot.get_observation()
    raised = home | {"shoulder_lift.pos": home["shoulder_lift.pos"] - 20}
    for _ in range(60):
        robot.send_action(raised)
        robot.get_observation()
        time.sleep(0.02)
    still = np.array(lab.client.status().joints_rad)
    moved, back = [], []
    later(lab, 0.2, "follower", "unplugged")
    later(lab, 0.7, "follower", "")
    end = time.monotonic() + 2
    while time.monotonic() < end:
        seen = robot.get_observation()
        robot.send_action(raised)
        moved.append(np.abs(np.array(lab.client.status().joints_rad) - still).max())
        back.append(seen["shoulder_lift.pos"])
        time.sleep(0.02)
    assert robot.last_report.counts["arm.reopened"] == 1
    assert robot.bus.port == str(lab.directory / "follower1")
    assert max(moved) < 0.02 and np.ptp(back) < 1.5
    assert lab.client.status().faults == {}
    for _ in range(40):  # and it still obeys
        robot.send_action(home)
        time.sleep(0.02)
    assert robot.get_observation()["shoulder_lift.pos"] == pytest.approx(home["shoulder_lift.pos"], abs=4)


def test_five_in_a_hundred_packets_corrupted_no_observation_fails(lab, make):
    robot = make()
    lab.client.fault("follower", "corrupt:0.05")
    for _ in range(150):
        assert len(robot.get_observation()) == 6
    assert robot.last_report.counts["arm.retries"] > 10
    lab.client.fault("follower")


def test_a_frozen_camera_ends_the_run_and_is_named(lab, make):
    side = RealSenseRGBDCameraConfig(serial_number_or_name=f"virtual:{lab.directory / 'side'}", **SIZE)
    robot = make({"side": side})
    robot.get_observation()
    assert -50 < robot.last_report.ages_ms["side"] < 500
    lab.client.fault("side", "frozen")
    with pytest.raises(ConnectionError, match="camera 'side'"):
        for _ in range(100):
            robot.get_observation()
            time.sleep(0.05)


def test_lerobots_own_camera_that_stops_is_waited_for_and_then_goes_on(lab, make):
    wrist = ZMQCameraConfig(
        server_address="127.0.0.1", port=lab.wrist_port, camera_name="wrist", timeout_ms=15_000, **SIZE
    )
    robot = make({"wrist": wrist}, on_error={"wrist": "skip_frame"}, skip_limit_s=30)
    lab.client.fault("wrist", "unplugged")
    later(lab, 2.0, "wrist")
    waited = 0
    end = time.monotonic() + 20
    while not waited and time.monotonic() < end:
        before = time.perf_counter()
        robot.get_observation()
        waited = robot.last_report.counts["wrist.skipped"]
        time.sleep(0.02)
    assert waited == 1 and time.perf_counter() - before > 0.2
    assert robot.last_report.ages_ms["wrist"] < 500


def test_lerobots_own_leader_connects_and_is_read_over_a_line_that_loses_packets(lab):
    config = SO101LeaderConfig(port=str(lab.leader), id="leader", calibration_dir=lab.calibration)
    leader = make_teleoperator_from_config(config)
    lab.client.fault("leader", "drop:0.05")
    try:
        leader.connect(calibrate=False)
        for _ in range(50):
            assert len(leader.get_action()) == 6
        assert leader.bus.retries > 0
    finally:
        lab.client.fault("leader")
        if leader.is_connected:
            leader.disconnect()
