"""The followers, through LeRobot's own bus, on servos and a skin that speak their real protocols."""

import io
import logging
import sys

import numpy as np
import pytest
from bench import running_bench
from lerobot.cameras.zmq import ZMQCameraConfig
from lerobot.robots import make_robot_from_config
from lerobot.robots.so_follower import SO100Follower, SO100FollowerConfig

from lerobot_ext.features import VectorFeature
from lerobot_ext.robots import SO100FollowerExtConfig, SO101FollowerExtConfig
from lerobot_ext.sensors import AnySkinConfig
from lerobot_ext.virtual.feetech import Faults

MOTORS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
JOINTS = [f"{motor}.pos" for motor in MOTORS]


def error_of(call) -> str:
    with pytest.raises(ConnectionError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def released(robot) -> bool:
    sensors = robot.force_sensors.values()
    return not robot.bus.is_connected and not any(sensor.is_connected for sensor in sensors)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(SO100FollowerExtConfig, "so100_follower_ext"), (SO101FollowerExtConfig, "so101_follower_ext")],
)
def test_lerobot_makes_it_under_its_name(make, kind, name):
    robot = make(kind=kind)
    assert robot.name == robot.robot_type == robot.config.type == name
    assert type(robot).__name__ == kind.__name__.removesuffix("Config")
    assert robot.config.num_read_retries == 3


def test_force_is_a_feature_of_its_own_beside_six_joints(make):
    features = make().observation_features
    assert [key for key, value in features.items() if value is float] == JOINTS
    assert isinstance(features["force"], VectorFeature) and features["force"] == (15,)
    assert features["force"].names[0] == "skin.m0_x" and features["force"].names[-1] == "skin.m4_z"


def test_without_sensors_it_is_lerobots_follower(make):
    robot = make(sensors=False)
    stock = SO100Follower(SO100FollowerConfig(port="/dev/null", id="follower"))
    assert robot.observation_features == stock.observation_features
    assert robot.action_features == stock.action_features
    robot.connect()
    assert list(robot.get_observation()) == JOINTS and robot.tare() == {}


def test_an_observation_has_joints_and_tared_force(make):
    robot = make()
    robot.connect()
    observation = robot.get_observation()
    assert list(observation) == [*JOINTS, "force"]
    assert all(abs(observation[joint]) < 1 for joint in JOINTS)
    assert observation["force"].dtype == np.float32 and observation["force"].shape == (15,)
    assert np.abs(observation["force"]).max() < 15
    raw = robot.force_sensors["skin"].latest_raw()[2]
    assert np.abs(raw).max() > 100


def test_sensors_are_joined_in_the_order_of_the_configuration(bench, make):
    port = str(bench.directory / "skin")
    robot = make(force_sensors={"b": AnySkinConfig(port=port), "a": AnySkinConfig(port="/dev/null")})
    names = robot.observation_features["force"].names
    assert names[0] == "b.m0_x" and names[15] == "a.m0_x" and len(names) == 30


def test_tare_returns_each_sensors_baseline(make):
    robot = make()
    robot.connect()
    (baseline,) = robot.tare(num_samples=20).values()
    assert np.array_equal(baseline, robot.force_sensors["skin"].baseline)


def test_actions_reach_the_servos(bench, make):
    robot = make(sensors=False)
    robot.connect()
    before = bench.servos.servos[0].get("Goal_Position")
    robot.send_action({"shoulder_pan.pos": 20.0})
    robot.get_observation()  # nothing answers to a sync write; what answers comes after it
    assert bench.servos.servos[0].get("Goal_Position") > before + 100


def test_lost_and_corrupted_packets_are_asked_for_again_also_while_connecting(tmp_path):
    with running_bench(tmp_path) as bench:
        robot = make_robot_from_config(bench.config(sensors=False, num_read_retries=20))
        bench.servos._faults = Faults(drop=0.02, corrupt=0.02)
        robot.connect()
        try:
            for _ in range(30):
                assert list(robot.get_observation()) == JOINTS
        finally:
            bench.servos._faults = Faults()
            robot.disconnect()


# --- opening and releasing ---


def test_disconnecting_turns_the_torque_off_and_can_be_repeated(bench, make):
    robot = make()
    robot.connect()
    assert robot.is_connected and bench.torque() == {1}
    robot.disconnect()
    robot.disconnect()
    assert released(robot) and bench.torque() == {0}
    robot.connect()
    assert robot.is_connected


def test_a_calibration_of_lerobots_follower_serves_here_too(tmp_path, bench, monkeypatch):
    monkeypatch.setattr("lerobot_ext.robots.so_follower_ext.HF_LEROBOT_CALIBRATION", tmp_path)
    monkeypatch.setattr("lerobot.robots.robot.HF_LEROBOT_CALIBRATION", tmp_path)
    ours = make_robot_from_config(SO101FollowerExtConfig(port="/dev/null", id="mine"))
    stock = SO100Follower(SO100FollowerConfig(port="/dev/null", id="mine"))
    assert ours.calibration_fpath == stock.calibration_fpath


def test_no_port(make):
    assert "there is no port /dev/does_not_exist" in error_of(make(port="/dev/does_not_exist").connect)


def test_a_port_that_is_no_serial_port(tmp_path, make):
    (tmp_path / "file").write_text("")
    assert "cannot be opened as a serial port" in error_of(make(port=str(tmp_path / "file")).connect)


def test_a_port_without_an_arm(bench, make):
    bench.arm_answers = False
    robot = make()
    text = error_of(robot.connect)
    assert str(bench.directory / "follower") in text and "no servo answers" in text
    assert released(robot)


def test_an_arm_without_some_of_its_servos(bench, make):
    for index in (2, 4):
        bench.servos.servos[index].set("ID", 100 + index)  # nobody asks for these
    robot = make()
    text = error_of(robot.connect)
    assert "servos 3 (elbow_flex), 5 (wrist_roll) do not answer, 1, 2, 4, 6 do" in text
    assert "the cable between 2 (shoulder_lift) and 3 (elbow_flex)" in text
    assert released(robot)


def test_an_arm_with_a_wrong_servo(bench, make):
    bench.servos.servos[1].set("Model_Number", 1284)
    assert "expected six STS3215" in error_of(make().connect)


def test_an_arm_that_is_not_calibrated_and_nobody_to_ask(make, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    robot = make(id="stranger")
    assert "lerobot-calibrate --robot.type=so101_follower_ext" in error_of(robot.connect)
    assert released(robot)


@pytest.mark.parametrize(
    "broken",
    [
        {"force_sensors": {"skin": AnySkinConfig(port="/dev/does_not_exist")}},
        {"cameras": {"top": ZMQCameraConfig(server_address="127.0.0.1", port=9, timeout_ms=300, fps=30, width=8, height=8, warmup_s=1)}},
    ],
    ids=["sensor", "camera"],
)  # fmt: skip
def test_when_a_device_fails_everything_opened_before_is_released(bench, make, broken):
    robot = make(**broken)
    assert "skin: there is no port" in (text := error_of(robot.connect)) or "camera 'top'" in text
    assert released(robot) and bench.torque() == {0}
    assert not any(camera.is_connected for camera in robot.cameras.values())


def test_a_silent_skin_is_one_sentence_and_releases_the_arm(bench, make):
    bench.skin_streams = False
    robot = make()
    assert "no frame within 1 s" in error_of(robot.connect)
    assert released(robot) and bench.torque() == {0}


def test_a_skin_lost_on_the_way_fails_the_observation_and_disconnecting_still_works(bench, make):
    robot = make()
    robot.connect()
    bench.skin_streams = False
    assert "no frame within 1 s" in error_of(lambda: robot.force_sensors["skin"].read(timeout_ms=20_000))
    with pytest.raises(ConnectionError, match="no frame within 1 s"):
        robot.get_observation()
    robot.disconnect()
    assert released(robot) and bench.torque() == {0}


def test_an_arm_that_is_gone_does_not_keep_the_rest_from_being_released(bench, make, caplog):
    robot = make()
    robot.connect()
    bench.arm_answers = False
    with caplog.at_level(logging.WARNING):
        robot.disconnect()
    assert released(robot) and "its torque may still be on" in caplog.text
    bench.arm_answers = True
