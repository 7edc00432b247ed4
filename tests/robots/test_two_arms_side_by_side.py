"""Two arms asked, sent to and released together, with stand-ins for the arms: who waits for whom, and who is named."""

import threading
from types import SimpleNamespace

import pytest
from lerobot.robots import make_robot_from_config

import lerobot_ext
from lerobot_ext.robots import BiSO101FollowerExtConfig
from lerobot_ext.robots.config_so_follower_ext import SOFollowerExtArmConfig

lerobot_ext.register()


class Arm:
    """One of them; `asking` runs in the thread that asks, `fails` is raised by what it names."""

    action_features = {"pan.pos": float}

    def __init__(self, at_s):
        self.bus = SimpleNamespace(answered_s=at_s)
        self.asked, self.sent, self.reopened, self.released, self.connected = 0, [], 0, 0, 0
        self.asking, self.fails = lambda: None, {}

    def _may(self, what):
        if what in self.fails:
            raise self.fails[what]

    def connect(self, calibrate):
        self._may("connect")
        self.connected += 1

    def ask_positions(self):
        self.asked += 1
        self.asking()
        self._may("ask")
        return {"pan.pos": float(self.asked)}

    def from_arm(self, instruction):
        return instruction()

    def counts(self):
        return {"arm.retries": 0, "arm.reopened": self.reopened}

    def send_action(self, action):
        self._may("send")
        self.sent.append(action)
        return action

    def release(self):
        self.released += 1


@pytest.fixture
def robot(tmp_path):
    arms = {f"{side}_arm_config": SOFollowerExtArmConfig(port=f"/dev/{side}") for side in ("left", "right")}
    robot = make_robot_from_config(BiSO101FollowerExtConfig(id="f", calibration_dir=tmp_path, **arms))
    robot.left_arm, robot.right_arm = Arm(10.0), Arm(10.2)
    yield robot
    robot._release()


def test_both_are_asked_at_the_same_time(robot):
    robot.connect()
    both = threading.Barrier(2)
    robot.left_arm.asking = robot.right_arm.asking = lambda: both.wait(30)
    robot._devices.read = lambda joints_s: ({"at": joints_s}, {})
    seen = robot.get_observation()
    assert seen == {"left_pan.pos": 1.0, "right_pan.pos": 1.0, "at": pytest.approx(10.1)}
    assert robot.last_report.counts["right_arm.reopened"] == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_one_said_before_the_other_was_waited_for_is_asked_anew(robot, side):
    robot.connect()
    arm = robot.arms[side]
    arm.asking = lambda: setattr(arm, "reopened", 1)
    assert robot.get_observation() == {"left_pan.pos": 2.0, "right_pan.pos": 2.0}


def test_the_right_arm_s_question_is_over_when_the_left_one_fails(robot):
    robot.connect()
    entered, over = threading.Event(), []

    def slow():
        entered.set()
        threading.Event().wait(0.1)
        over.append(True)

    robot.right_arm.asking = slow
    robot.left_arm.asking = lambda: entered.wait(30)
    robot.left_arm.fails["ask"] = ConnectionError("it is unplugged")
    with pytest.raises(ConnectionError, match="^left arm: it is unplugged"):
        robot.get_observation()
    assert over, "nobody else uses its port"


def test_the_right_arm_that_did_not_answer_is_asked_on_in_this_thread(robot):
    robot.connect()
    threads = []

    def asking():
        threads.append(threading.current_thread())
        if len(threads) == 1:
            raise ConnectionError("no answer")

    robot.right_arm.asking = asking

    def from_arm(instruction):
        try:
            return instruction()
        except ConnectionError:
            return instruction()

    robot.right_arm.from_arm = from_arm
    assert robot.get_observation()["right_pan.pos"] == 2.0
    assert threads[0] is not threading.current_thread() and threads[1] is threading.current_thread()


def test_each_arm_gets_its_part_the_left_one_first(robot):
    robot.connect()
    both = {"right_pan.pos": 2, "left_pan.pos": 1, "top.pos": 3}
    assert robot.send_action(both) == {"left_pan.pos": 1, "right_pan.pos": 2}
    assert robot.send_action({"right_pan.pos": 4, "pan.pos": 5}) == {"right_pan.pos": 4}
    assert robot.left_arm.sent == [{"pan.pos": 1}] and robot.right_arm.sent == [
        {"pan.pos": 2},
        {"pan.pos": 4},
    ]
    robot.right_arm.fails["send"] = ConnectionError("arm on /dev/right: it is gone")
    with pytest.raises(ConnectionError, match="^right arm on /dev/right"):
        robot.send_action(both)
    assert len(robot.left_arm.sent) == 2, "never more than one action ahead"


def test_what_was_opened_is_released_when_the_other_arm_or_a_sensor_fails(robot):
    robot.right_arm.fails["connect"] = ConnectionError("arm on /dev/right: not there")
    with pytest.raises(ConnectionError, match="^right arm on /dev/right"):
        robot.connect()
    assert not robot.is_connected and robot.left_arm.released == 1
    robot.right_arm.fails.clear()
    robot._devices.tare_for_now = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        robot.connect()
    assert not robot.is_connected and robot.left_arm.released == robot.right_arm.released == 2
    assert not [each for each in threading.enumerate() if each.name.startswith("right_arm")]


def test_whoever_lost_an_arm_is_still_to_be_disconnected(robot):
    robot.connect()
    robot.left_arm.is_connected = False
    assert robot.is_connected
    robot.get_observation()
    assert robot.last_report is not None
    robot.disconnect()
    assert not robot.is_connected and robot.right_arm.released == 1
    assert not [each for each in threading.enumerate() if each.name.startswith("right_arm")]
    robot.connect()
    assert robot.last_report is None, "of the connection before"
