"""The lab with two arms: who moves, who is judged, what its ports are called; and that one arm is what it was."""

import base64
import json
import time

import cv2
import numpy as np
import pytest
import serial
import zmq
from lerobot.robots.bi_so_follower import BiSOFollower, BiSOFollowerConfig
from lerobot.robots.so_follower import SOFollower, SOFollowerConfig, SOFollowerRobotConfig
from lerobot.teleoperators.bi_so_leader import BiSOLeader, BiSOLeaderConfig
from lerobot.teleoperators.so_leader import SOLeaderConfig

from lerobot_ext.virtual.hand import MIDDLE
from lerobot_ext.virtual.task import TICK_S, PressTask
from lerobot_ext.virtual.testing import running_lab
from lerobot_ext.virtual.trouble import Troubles
from lerobot_ext.virtual.two_arms import LEFT_BASE_M, SWAY_RAD
from lerobot_ext.virtual.world import BUTTON_XY, HOME, JOINTS, Drive, World, load_model

pytestmark = pytest.mark.usefixtures("unhurried_bus")
LET_GO = Drive(HOME.copy(), np.zeros(6, bool), np.ones(6), np.ones(6))
SIDES = ("left", "right")


def run(task, seconds, left=None):
    """Let time pass while both followers follow their leaders, the left one `left` if given (rad)."""
    for _ in range(round(seconds / TICK_S)):
        goal = task.left.joints if left is None else left
        task.tick(Drive.at(task.leader), LET_GO, 1.0, (Drive.at(goal), LET_GO))
    return task


def reach(world, arm, point):
    """Joints with which the pad of `arm` is at `point` from above, rad (6,); by descent on the pad's place."""
    import mujoco

    model, data = world.model, mujoco.MjData(world.model)
    prefix = "" if arm is world.arms[0] else "left_"
    places = [model.joint(prefix + name).qposadr[0] for name in JOINTS]
    columns = [model.joint(prefix + name).dofadr[0] for name in JOINTS[:4]]
    site, jacobian = model.site(f"{prefix}pad").id, np.zeros((3, model.nv))
    joints = np.array([-0.8, 0.5, 0.1, 0.1, 0.0, 0.1])
    for _ in range(300):
        data.qpos[places] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, jacobian, None, site)
        matrix = jacobian[:, columns]
        error = point - data.site_xpos[site]
        joints[:4] += 0.3 * matrix.T @ np.linalg.solve(matrix @ matrix.T + 1e-5 * np.eye(3), error)
    assert np.linalg.norm(error) < 1e-3
    return joints


@pytest.fixture(scope="module")
def two():
    return load_model(2)


def task_of(model, seed=11):
    return PressTask(seed, world=World(model))


def test_the_operator_presses_with_the_right_arm_while_the_left_one_is_held_at_home(two):
    task = task_of(two)
    task.start_episode()
    swayed = []
    for _ in range(65):
        run(task, 0.1)
        swayed.append(task.left.joints.copy())
    episode = task.end_episode()
    assert episode.success, episode.reason
    assert np.ptp(swayed, axis=0).min() > SWAY_RAD / 2  # no column of a dataset stands still
    assert np.abs(np.array(swayed) - HOME).max() <= SWAY_RAD + 1e-9
    assert np.abs(task.world.arms[1].joints - HOME).max() < 0.05


def test_the_left_arm_stands_beside_and_reaches_the_button(two):
    task = task_of(two)
    right, left = task.world.arms
    assert left.tip - right.tip == pytest.approx(LEFT_BASE_M, abs=1e-6)
    height = task.world.block_height
    run(task, 1.5, left=reach(task.world, left, np.array([*BUTTON_XY, height + 0.03])))
    assert np.linalg.norm(left.tip[:2] - BUTTON_XY) < 0.02
    run(task, 1.0, left=reach(task.world, left, np.array([*BUTTON_XY, height - 0.01])))
    assert np.linalg.norm(left.force) > 0.5 and task.world.normal_force == 0


def test_the_arms_are_in_each_others_way(two):
    task = task_of(two)
    right, left = task.world.arms
    there = reach(task.world, left, right.tip + (0.0, -0.06, 0.06))  # through the right one's hand
    run(task, 2.0, left=there)
    assert np.abs(left.joints - there).max() > 0.05
    assert np.abs(right.joints - HOME).max() > 0.01  # 0.005 without a touch


def test_with_one_arm_there_is_no_second_one():
    task = PressTask(11)
    assert len(task.world.arms) == 1 and task.left is None
    assert task.world.model.njnt == 7 and task.world.model.nu == 6
    with pytest.raises(
        ValueError, match="there is no device 'follower_left'; there are: follower, leader, skin"
    ):
        Troubles().set("follower_left", "unplugged")


# --- as a process ---


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("two"), arms=2, no_operator=True) as lab:
        yield lab


@pytest.fixture
def robot(lab):
    arms = {f"{side}_arm_config": SOFollowerConfig(port=str(lab.port(f"follower_{side}"))) for side in SIDES}
    robot = BiSOFollower(BiSOFollowerConfig(id="follower", calibration_dir=lab.calibration, **arms))
    robot.connect()
    yield robot
    robot.disconnect()


def test_lerobots_two_followers_follow_its_two_leaders_without_a_question(lab, robot, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("LeRobot asked a question"))
    arms = {f"{side}_arm_config": SOLeaderConfig(port=str(lab.port(f"leader_{side}"))) for side in SIDES}
    leader = BiSOLeader(BiSOLeaderConfig(id="leader", calibration_dir=lab.calibration, **arms))
    leader.connect()
    try:
        action = leader.get_action()
        assert robot.get_observation() == pytest.approx(action, abs=2)
        goal = action | {"left_shoulder_pan.pos": 10.0, "right_shoulder_pan.pos": -30.0}
        end = time.monotonic() + 10
        while time.monotonic() < end:
            robot.send_action(goal)
            if robot.get_observation() == pytest.approx(goal, abs=2):
                break
            time.sleep(0.05)
        assert robot.get_observation() == pytest.approx(goal, abs=2)
        arms = lab.client.status().arms
        assert np.degrees(arms["follower_left"][0]) == pytest.approx(10, abs=2)
        assert np.degrees(arms["follower_right"][0]) == pytest.approx(-30, abs=2)
        assert lab.client.status().joints_rad == pytest.approx(arms["follower_right"], abs=0.05)
    finally:
        leader.disconnect()


def test_one_arm_can_be_unplugged_and_the_other_answers(lab):
    port = str(lab.port("follower_right"))
    right = SOFollower(SOFollowerRobotConfig(id="follower_right", calibration_dir=lab.calibration, port=port))
    lab.client.fault("follower_left", "unplugged")
    try:
        assert not lab.port("follower_left").exists()
        right.connect()
        assert len(right.get_observation()) == 6
        right.disconnect()
        with pytest.raises(RuntimeError, match="there is no device 'follower'; there are: follower_right"):
            lab.client.fault("follower", "unplugged")
    finally:
        lab.client.fault("follower_left")
    links = sorted((lab.directory / "serial" / "by-id").iterdir())
    assert any("follower_left" in link.name and link.exists() for link in links) and len(links) == 7


def test_each_pad_has_its_skin(lab):
    fields = {}
    for side in SIDES:
        with serial.Serial(str(lab.port(f"skin_{side}")), 115200, timeout=5) as port:
            frames = [port.read(82) for _ in range(10)]
        assert all(frame.endswith(b"\r\n") for frame in frames)
        fields[side] = np.frombuffer(frames[-1][:80], "<f4").reshape(5, 4)[:, 1:]
    assert np.abs(fields["left"] - fields["right"]).max() > 20  # two skins, not one twice


def test_both_wrists_have_cameras_at_one_port(lab):
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    try:
        socket.subscribe(b"")
        socket.rcvtimeo = 15_000
        socket.connect(f"tcp://127.0.0.1:{lab.wrist_port}")
        images = json.loads(socket.recv())["images"]
    finally:
        context.destroy(linger=0)
    assert tuple(images) == lab.client.status().wrist_cameras == ("wrist_right", "wrist_left")
    right, left = (
        cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), cv2.IMREAD_COLOR).astype(int)
        for image in images.values()
    )
    assert right.shape == (240, 424, 3) and np.abs(left - right).mean() > 5


def test_a_hand_moves_all_arms(lab):
    lab.client.hand("middle")
    end = time.monotonic() + 20

    def away():
        return max(np.abs(np.array(arm) - MIDDLE)[:5].max() for arm in lab.client.status().arms.values())

    while away() > 0.05 and time.monotonic() < end:
        time.sleep(0.1)
    assert away() <= 0.05
    lab.client.hand("home")


def test_it_leaves_no_file_behind(tmp_path):
    with running_lab(tmp_path, arms=2) as lab:
        assert sorted(path.name for path in lab.calibration.iterdir()) == [
            f"{role}_{side}.json" for role in ("follower", "leader") for side in SIDES
        ]
        lab.process.kill()
        lab.process.wait()
        assert lab.port("leader_left").is_symlink()
    with running_lab(tmp_path) as lab:  # one arm, where two were killed
        assert not lab.port("leader_left").is_symlink() and lab.leader.is_symlink()
        assert list(lab.client.status().arms) == ["follower"]
    assert not lab.directory.exists()
