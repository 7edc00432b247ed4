"""The way to the initial position: no joint too fast, all arrive together, and who did not arrive is named."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.errors import UserError
from lerobot_ext.rollout import approach as module
from lerobot_ext.rollout.approach import (
    RATE_HZ,
    Destination,
    SmoothWay,
    Stopped,
    approach,
    destination,
    hold_when_released,
)
from lerobot_ext.rollout.start import starting

ARM = ("shoulder_pan", "elbow_flex", "gripper")
positions = st.lists(st.floats(-180, 180), min_size=3, max_size=3).map(np.array)


class TwoArms:
    """A robot of two arms whose joints follow at once, but for those that are stuck."""

    action_features = {f"{side}_{joint}.pos": float for side in ("left", "right") for joint in ARM}

    def __init__(self, stuck=()):
        self.at = dict.fromkeys(self.action_features, 10.0)
        self.stuck = stuck
        self.sent = []

    def get_observation(self):
        return {**self.at, "top": np.zeros((4, 4, 3), np.uint8)}

    def send_action(self, action):
        self.sent.append(dict(action))
        self.at |= {name: value for name, value in action.items() if name not in self.stuck}
        return action


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


@given(positions, positions, st.floats(5, 200))
def test_no_joint_is_faster_than_allowed_and_all_arrive_together(start, target, speed):
    way = SmoothWay(start, target, speed)
    path = np.array([way.at(step) for step in range(way.steps + 1)])
    assert np.allclose(path[0], start) and (np.allclose(path[-1], target) or way.steps == 0)
    steps = np.abs(np.diff(path, axis=0))
    assert steps.max(initial=0.0) <= speed / RATE_HZ * (1 + 1e-9)
    if way.steps > 4:
        assert steps[0].max() < 0.5 * steps.max() and steps[-1].max() < 0.5 * steps.max(), (
            "begins and ends slowly"
        )


def test_both_arms_go_and_joints_that_are_not_named_stay():
    robot = TwoArms()
    where = destination(robot, {"left_shoulder_pan": 0, "right_gripper.pos": 40}, speed=100.0, tolerance=1.0)
    assert where.target == {"left_shoulder_pan.pos": 0, "right_gripper.pos": 40}
    approach(robot, where)
    assert robot.at["left_shoulder_pan.pos"] == 0 and robot.at["right_gripper.pos"] == 40
    assert all(set(action) == set(robot.action_features) for action in robot.sent), "both arms, every time"
    assert {action["left_elbow_flex.pos"] for action in robot.sent} == {10.0}


def test_a_joint_that_is_not_there_and_a_position_that_it_cannot_have(tmp_path):
    with pytest.raises(ValueError, match=r"initial_position names 'shoulder_pan'.*left_shoulder_pan.pos"):
        destination(TwoArms(), {"shoulder_pan": 0}, 30.0, 5.0)
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    arm = SO101Follower(
        SO101FollowerConfig(port="/dev/null", id="a", calibration_dir=tmp_path, use_degrees=False)
    )
    with pytest.raises(ValueError, match=r"initial_position.shoulder_pan.pos is 120; .* -100 to 100"):
        destination(arm, {"shoulder_pan": 120}, 30.0, 5.0)


def test_the_joint_that_did_not_arrive_is_named():
    robot = TwoArms(stuck=("right_elbow_flex.pos",))
    where = Destination({"right_elbow_flex.pos": 50.0, "left_elbow_flex.pos": 50.0}, 1000.0, 2.0)
    with pytest.raises(UserError) as caught:
        approach(robot, where, arrive_s=0.0)
    assert "right_elbow_flex.pos is at 10.0, wanted 50" in str(caught.value)
    assert "left_elbow_flex" not in str(caught.value) and "initial_tolerance" in str(caught.value)


def test_an_arm_whose_steps_are_limited_arrives_although_its_last_step_was_cut_short():
    class Limited(TwoArms):
        """As with `max_relative_target`, the smaller of which is far below the speed of the motion."""

        def send_action(self, action):
            return super().send_action(
                {
                    name: float(np.clip(value, self.at[name] - 0.5, self.at[name] + 0.5))
                    for name, value in action.items()
                }
            )

    robot = Limited()
    approach(robot, Destination({"left_gripper.pos": 90.0}, 100.0, 1.0))
    assert robot.at["left_gripper.pos"] == pytest.approx(90, abs=1.0)
    assert robot.at["right_gripper.pos"] == 10.0


def test_nothing_is_sent_once_it_is_stopped():
    robot = TwoArms()
    with pytest.raises(Stopped):
        approach(
            robot, Destination({"left_gripper.pos": 90.0}, 10.0, 1.0), stopped=lambda: len(robot.sent) >= 5
        )
    assert len(robot.sent) == 5


def test_where_it_is_already_nothing_moves():
    robot = TwoArms()
    approach(robot, Destination({"left_gripper.pos": 10.0}, 10.0, 1.0))
    assert robot.sent == []


def test_the_torque_of_both_arms_is_kept():
    from lerobot.robots.bi_so_follower import BiSOFollower, BiSOFollowerConfig
    from lerobot.robots.so_follower import SOFollowerConfig

    arm = SOFollowerConfig(port="/dev/null")
    robot = BiSOFollower(BiSOFollowerConfig(left_arm_config=arm, right_arm_config=arm))
    assert hold_when_released(robot)
    assert not robot.left_arm.config.disable_torque_on_disconnect
    assert not robot.right_arm.config.disable_torque_on_disconnect
    assert not hold_when_released(TwoArms())


def test_a_recording_goes_nowhere_else():
    cfg = SimpleNamespace(initial_position={"shoulder_pan": 0}, initial_speed=30, initial_tolerance=5)
    recording = SimpleNamespace(playing=None)
    with (
        pytest.raises(UserError, match="robot.type=replay plays a recording.*leave initial_position out"),
        starting(cfg, threading.Event(), lambda robot_cfg: recording) as start,
    ):
        start.robot(SimpleNamespace(type="replay"))
