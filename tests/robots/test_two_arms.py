"""Two arms as one robot, LeRobot's own and ours, on the lab of two arms: who is told what, by which name."""

import json
import logging
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from checkpoints import make_act
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.configs.dataset import DatasetRecordConfig
from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.robots import make_robot_from_config
from lerobot.robots.so_follower import SOFollowerRobotConfig
from lerobot.rollout import RolloutConfig
from lerobot.rollout.configs import BaseStrategyConfig
from lerobot.scripts.lerobot_record import RecordConfig, record
from lerobot.scripts.lerobot_rollout import rollout
from lerobot.teleoperators.bi_so_leader import BiSOLeaderConfig
from lerobot.teleoperators.so_leader import SOLeaderConfig
from servers import ServerProcess
from two_arms import GOALS, IMAGE, MOTORS, NAMES, OURS, PERMUTED, STOCK, config_of, side_camera, skin

import lerobot_ext
from lerobot_ext.arms import camera_sections, cameras_of
from lerobot_ext.commands.main import main
from lerobot_ext.features import OBS_FORCE
from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.recording import provenance
from lerobot_ext.robots.bi_so_follower_ext import BiSOFollowerExt
from lerobot_ext.rollout.checks import by_entry, limits_of
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.virtual.client import LabClient
from lerobot_ext.virtual.testing import running_lab

lerobot_ext.register()
pytestmark = pytest.mark.usefixtures("unhurried_bus", "undisturbed_logging")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    pytest.importorskip("mujoco")
    with running_lab(tmp_path_factory.mktemp("l"), arms=2, width=160, height=120) as running:
        yield running


@pytest.fixture(autouse=True)
def mended(request):
    """Whatever a test has broken of the lab works again for the next one."""
    yield
    if "lab" in request.fixturenames:
        client = request.getfixturevalue("lab").client
        for device in dict(client.status().faults):
            client.fault(device)


@pytest.fixture
def messages():
    """What is logged; LeRobot's commands take pytest's own handler away."""
    heard = []
    handler = logging.Handler()
    handler.emit = lambda entry: heard.append(entry.getMessage())
    log = logging.getLogger("lerobot_ext")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield heard
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def make(lab):
    made = []

    def make_one(**more):
        made.append(make_robot_from_config(config_of(OURS, lab, **({"cameras": False} | more))))
        made[-1].connect()
        return made[-1]

    yield make_one
    for robot in made:
        robot.disconnect()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An ACT of twelve joints that always wants GOALS, in the order PERMUTED."""

    def want(_, post):
        for step in post.steps:
            if hasattr(step, "_tensor_stats"):
                wanted = torch.tensor([float(GOALS[name]) for name in PERMUTED])
                step._tensor_stats["action"] |= {"mean": wanted, "std": torch.full_like(wanted, 1e-3)}

    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (12,)),
        IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 120, 160)),
    }
    path = tmp_path_factory.mktemp("act") / "checkpoint"
    return make_act(path, inputs=inputs, action_dim=12, n_action_steps=20, change=want)


@pytest.fixture(scope="module")
def server(checkpoint):
    with ServerProcess(checkpoint) as server:
        yield server


def policy_of(where):
    """The policy's configuration: a checkpoint, or a server's address."""
    if isinstance(where, str):
        policy = RemoteConfig(address=where, timeout_s=10)
    else:
        policy = PreTrainedConfig.from_pretrained(where)
        policy.pretrained_path = where
    # ACT's own configuration has no place for the names; pi0's has.
    policy.action_feature_names = PERMUTED
    return policy


def run(robot, policy, inference, duration_s=3.0):
    rollout(
        RolloutConfig(
            robot=robot,
            policy=policy,
            strategy=BaseStrategyConfig(),
            inference=inference,
            fps=20,
            duration=duration_s,
            task="press",
            device="cpu",
            play_sounds=False,
            return_to_initial_position=False,
        )
    )


def where_the_arms_went(lab):
    """By joint of the robot, in the units of its actions, as the world has it."""
    arms = lab.client.status().arms
    found = {}
    for side in ("left", "right"):
        angles = arms[f"follower_{side}"]
        found |= {
            f"{side}_{motor}.pos": np.degrees(angle) for motor, angle in zip(MOTORS, angles, strict=True)
        }
        found[f"{side}_gripper.pos"] = angles[-1] / 1.75 * 100
    return found


@pytest.mark.parametrize(("kind", "far"), [(STOCK, True), (OURS, False)])
def test_each_action_of_the_policy_ends_at_its_joint(lab, checkpoint, request, messages, tmp_path, kind, far):
    policy = policy_of(request.getfixturevalue("server").address if far else checkpoint)
    inference = AsyncInferenceConfig(merge="append", telemetry_dir=str(tmp_path))
    run(config_of(kind, lab), policy, inference)
    # gravity and play let the arms hang a little below their goals
    assert where_the_arms_went(lab) == pytest.approx(GOALS, abs=4)
    assert any("inference engine async" in message for message in messages)
    assert not any("no limits are known" in message for message in messages)
    first, *_, last = [json.loads(line) for line in (tmp_path / "episode_000000.jsonl").open()]
    assert first["action_names"] == PERMUTED
    assert (last["event"], last["refused"], last["faults"]) == ("end", 0, 0)


def test_an_action_beyond_a_joint_of_either_arm_is_refused(lab, make):
    robot = make()
    limits = limits_of(robot, slack=0.0)
    assert list(limits) == NAMES == list(robot.action_features)
    assert limits["left_gripper.pos"] == limits["right_gripper.pos"] == (0.0, 100.0)
    assert limits["left_shoulder_pan.pos"][1] == pytest.approx(110, abs=1)
    assert by_entry({"left_gripper": 3, "right_wrist_roll.pos": 4}, NAMES, "inference.rest_position") == {
        "left_gripper.pos": 3,
        "right_wrist_roll.pos": 4,
    }


def test_stock_limits_are_found_as_well(lab):
    robot = make_robot_from_config(config_of(STOCK, lab, cameras=False))
    ours = make_robot_from_config(config_of(OURS, lab, cameras=False))
    assert limits_of(robot, slack=0.1) == limits_of(ours, slack=0.1) and len(limits_of(ours, slack=0.1)) == 12


@pytest.fixture
def after_sending(monkeypatch):
    """Calls something once so many actions were sent: a loaded machine takes long to begin."""

    def when(count, do):
        sent, send = [], BiSOFollowerExt.send_action

        def counted(self, action):
            sent.append(action)
            if len(sent) == count:
                do()
            return send(self, action)

        monkeypatch.setattr(BiSOFollowerExt, "send_action", counted)

    return when


def test_without_chunks_the_arms_go_to_a_rest_position_by_prefixed_joints(
    lab, server, messages, after_sending
):
    inference = AsyncInferenceConfig(
        merge="append",
        when_lost="rest",
        max_hold_s=0.2,
        rest_speed=100,
        rest_position={"left_shoulder_pan": 8, "right_gripper.pos": 20},
    )
    policy = policy_of(server.address)
    policy.timeout_s = 1.0
    after_sending(30, server.pause)
    try:
        run(config_of(OURS, lab), policy, inference, duration_s=7.0)
    finally:
        server.resume()
    assert any("goes to its rest position" in message for message in messages)
    wanted = GOALS | {"left_shoulder_pan.pos": 8, "right_gripper.pos": 20}
    assert where_the_arms_went(lab) == pytest.approx(wanted, abs=4)


def later(lab, seconds, device, fault=""):
    """Ask for a fault after a while; a client of its own, since clients belong to one thread."""

    def ask():
        with LabClient(lab.directory) as client:
            client.fault(device, fault)

    timer = threading.Timer(seconds, ask)
    timer.start()
    return timer


@pytest.mark.parametrize("device", ["follower_left", "follower_right"])
def test_an_arm_that_is_unplugged_for_a_moment_lets_both_hold_and_both_go_on(lab, make, device):
    robot = make()
    home = {name: value for name, value in robot.get_observation().items() if name.endswith(".pos")}
    other = {"follower_left": robot.right_arm, "follower_right": robot.left_arm}[device]
    side = device.removeprefix("follower_")
    sent_at, send = [], other.send_action
    other.send_action = lambda action: (sent_at.append(time.monotonic()), send(action))[1]
    timers = [later(lab, 0.3, device, "unplugged"), later(lab, 1.0, device)]
    end = time.monotonic() + 3
    while time.monotonic() < end:
        robot.send_action(home)
        seen = robot.get_observation()
        time.sleep(0.01)
    for timer in timers:
        timer.join()
    counts = robot.last_report.counts
    assert counts[f"{side}_arm.reopened"] == 1 and sum(counts[n] for n in counts if "reopened" in n) == 1
    assert np.diff(sent_at).max() > 0.4  # nothing was sent to the other arm while this one was away
    moved = {name: seen[name] for name in NAMES}
    assert moved == pytest.approx(home, abs=3)


def test_an_arm_that_stays_away_ends_the_rollout_which_says_which_one(lab, server, messages, after_sending):
    away = config_of(OURS, lab)
    away.left_arm_config.reopen_s = 0.5
    after_sending(20, lambda: lab.client.fault("follower_left", "unplugged"))
    with pytest.raises(
        ConnectionError, match="^left arm on .*follower_left: .* did not come back within 0.5 s"
    ):
        run(away, policy_of(server.address), AsyncInferenceConfig(merge="append"), duration_s=20)
    assert any("left arm: its port is gone" in message for message in messages), messages
    # LeRobot's arm, just opened, tells whether the right one was let go
    arm = SOFollowerRobotConfig(
        id="follower_right", calibration_dir=lab.calibration, port=str(lab.port("follower_right"))
    )
    right = make_robot_from_config(arm)
    right.bus.connect()
    assert set(right.bus.sync_read("Torque_Enable", normalize=False).values()) == {0}
    right.bus.disconnect()


def test_what_fails_while_connecting_is_named_and_released(lab):
    lab.client.fault("follower_right", "silent:3")
    robot = make_robot_from_config(config_of(OURS, lab, cameras=False))
    with pytest.raises(ConnectionError, match=r"^right arm on .*: servos 3 \(elbow_flex\) do not answer"):
        robot.connect()
    assert not robot.left_arm.bus.is_connected and not robot.is_connected
    robot.disconnect()


def test_an_arm_that_another_program_uses_is_refused_and_goes_on_there(lab, make):
    robot = make()
    other = make_robot_from_config(config_of(OURS, lab, cameras=False))
    with pytest.raises(
        ConnectionError, match=r"^left arm on .*follower_left: cannot be opened .*other program"
    ):
        other.connect()
    assert not other.is_connected
    robot.get_observation()
    assert set(robot.left_arm.bus.sync_read("Torque_Enable", normalize=False).values()) == {1}


def test_an_observation_is_that_of_lerobots_robot_and_force(lab, make):
    top = {"ft": skin(lab, "skin_right")}
    robot = make(
        cameras=True, sensors=False, force_sensors=top, on_error={"ft": "skip_frame"}, warn_age_ms={"ft": 900}
    )
    stock = make_robot_from_config(config_of(STOCK, lab))
    force = robot.observation_features["force"]
    assert {**stock.observation_features, "force": force} == robot.observation_features
    assert list(robot.observation_features)[:12] == NAMES
    assert force.names[0] == "ft.m0_x" and force == (15,)
    seen = robot.get_observation()
    assert set(seen) == set(robot.observation_features)
    assert seen["left_wrist"].shape == (120, 160, 3)
    assert not np.array_equal(seen["left_wrist"], seen["right_wrist"])
    assert set(robot.last_report.ages_ms) == {"left_wrist", "right_wrist", "ft"}
    assert set(robot.tare()) == {"ft"}


def test_both_arms_and_all_sensors_are_recorded_by_lerobots_command(lab, tmp_path):
    leaders = {
        f"{side}_arm_config": SOLeaderConfig(port=str(lab.port(f"leader_{side}")))
        for side in ("left", "right")
    }
    robot = config_of(OURS, lab, sensors=True)
    robot.cameras["side"] = side_camera(lab)
    written = record(
        RecordConfig(
            robot=robot,
            teleop=BiSOLeaderConfig(id="leader", calibration_dir=lab.calibration, **leaders),
            dataset=DatasetRecordConfig(
                repo_id="lab/two",
                root=tmp_path / "two",
                single_task="Press.",
                fps=10,
                num_episodes=1,
                episode_time_s=2,
                reset_time_s=0,
                push_to_hub=False,
                streaming_encoding=True,
                encoder_threads=1,
                rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="ultrafast"),
                depth_encoder=DepthEncoderConfig(depth_min=0.1, depth_max=1.5, use_log=False),
            ),
            play_sounds=False,
        )
    )
    dataset = LeRobotDataset(written.repo_id, root=written.root)
    features = dataset.features
    assert features["action"]["names"] == features["observation.state"]["names"] == NAMES
    names = features[OBS_FORCE]["names"]
    assert (names[0], names[15], len(names)) == ("left_skin.m0_x", "right_skin.m0_x", 30)
    pictures = {key.removeprefix("observation.images.") for key in features if "images" in key}
    assert pictures == {"left_wrist", "right_wrist", "side", "side_depth"}
    assert dataset.meta.robot_type == OURS and len(dataset) > 0
    told = provenance.devices(written.root, 0)
    assert list(told[OBS_FORCE]["sensors"]) == ["left_skin", "right_skin"]
    assert told["observation.images.side"]["camera"]["serial"]


def test_cameras_are_found_by_the_names_of_an_observation(lab):
    stock = config_of(STOCK, lab)
    stock.cameras["side"] = side_camera(lab)
    ours = config_of(OURS, lab)
    ours.cameras["side"] = side_camera(lab)
    for config in (stock, ours):
        assert set(cameras_of(make_robot_from_config(config))) == {"left_wrist", "right_wrist", "side"}
        assert {prefix: list(cameras) for prefix, cameras in camera_sections(config).items()} == {
            "": ["side"],
            "left_": ["wrist"],
            "right_": ["wrist"],
        }
    robot = make_robot_from_config(stock)
    robot.right_arm.cameras["wrist"].metadata = lambda: {"color": {"serial": "9"}}
    del robot.left_arm.cameras["side"]
    assert provenance.metadata_of(robot) == {"observation.images.right_wrist": {"camera": {"serial": "9"}}}


def test_the_doctor_knows_the_arms_apart_and_writes_their_section(lab, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_CALIBRATION", tmp_path / "calibration")
    ports = {side: str(lab.port(f"follower_{side}")) for side in ("left", "right")}
    main(["doctor", "--json"])
    found = yaml.safe_load(json.loads(capsys.readouterr().out)["yaml"])
    robot, teleop = found["robot"], found["teleop"]
    assert (robot["type"], robot["id"], teleop["type"]) == (OURS, "follower", "bi_so_leader")
    assert {side: robot[f"{side}_arm_config"]["port"] for side in ports} == ports

    swapped = {"type": STOCK, "id": "follower", "calibration_dir": str(lab.calibration)}
    swapped |= {"left_arm_config": {"port": ports["right"]}, "right_arm_config": {"port": ports["left"]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"robot": swapped}))
    assert main(["doctor", "--json", f"--config_path={tmp_path / 'two.yaml'}"]) == 1
    told = json.loads(capsys.readouterr().out)
    (finding,) = [each for each in told["checks"] if each["check"] == "robot.left_arm_config.id"]
    assert f"at {ports['right']} is 'follower_right'" in finding["found"]
    corrected = yaml.safe_load(told["yaml"])["robot"]
    assert {side: corrected[f"{side}_arm_config"]["port"] for side in ports} == ports
