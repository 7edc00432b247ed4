"""`lerobot-ext doctor --config_path`: what a YAML names against what is there, on the running lab."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml
from doctoring import examine
from ports import held_by_another_process, servos, usb_port

from lerobot_ext.commands import doctor_compare
from lerobot_ext.commands.doctor_arms import Role
from lerobot_ext.commands.doctor_cameras import FoundCamera
from lerobot_ext.commands.doctor_config import calibration_file, named_cameras, named_ports
from lerobot_ext.commands.doctor_ports import Answer
from lerobot_ext.commands.doctor_survey import Survey
from lerobot_ext.commands.main import main
from lerobot_ext.recording import disk
from lerobot_ext.virtual.testing import free_port

FOLLOWER, LEADER = Role("follower", "sure", "why"), Role("leader", "sure", "why")


@pytest.fixture(autouse=True)
def no_calibrations_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_CALIBRATION", tmp_path / "calibration")


@pytest.fixture
def doctor(config, capsys):
    """`status, checks = doctor(**{"robot.port": …})`: with configs/collect.yaml, changed so."""

    def look(**changes):
        return examine(capsys, config("collect.yaml", **changes))

    return look


def test_a_yaml_that_fits(lab, doctor):
    status, checks = doctor()
    assert status == 0, checks
    about_yaml = {name: each["status"] for name, each in checks.items() if "." in name and "/" not in name}
    assert set(about_yaml.values()) == {"ok"}
    assert len(about_yaml) == 8, "two arms, their ids, a skin, two cameras, a disk"


def test_swapped_arms_are_told_apart_and_the_yaml_corrected(lab, config, capsys):
    words = config("collect.yaml", **{"robot.port": str(lab.leader), "teleop.port": str(lab.follower)})
    assert main(["doctor", words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    checks = {each["check"]: each for each in told["checks"]}
    for key, there, wanted in (("robot", "leader", "follower"), ("teleop", "follower", "leader")):
        finding = checks[f"{key}.port"]
        assert f"the {there} answers there, expected the {wanted}" in finding["found"]
        assert finding["advice"].endswith(f"set {key}.port: {lab.directory}/{wanted}")
    right = {"robot": {"port": str(lab.follower)}, "teleop": {"port": str(lab.leader)}}
    assert yaml.safe_load(told["yaml"]) == right
    main(["doctor", words])
    assert capsys.readouterr().out.endswith(f" should say:\n{yaml.safe_dump(right, sort_keys=False)}")


def test_a_skin_where_the_follower_should_be(lab, doctor):
    status, checks = doctor(
        **{"robot.port": str(lab.skin), "robot.force_sensors.skin.port": str(lab.follower)}
    )
    assert status == 1
    assert "a magnetic skin answers there, expected the follower" in checks["robot.port"]["found"]
    assert f"the follower answers at {lab.follower}" in checks["robot.port"]["advice"]
    assert "expected a magnetic skin" in checks["robot.force_sensors.skin.port"]["found"]


def test_two_devices_on_one_port(lab, doctor):
    status, checks = doctor(**{"teleop.port": str(lab.follower)})
    assert status == 1
    assert "teleop.port is the same port" in checks["robot.port"]["found"]
    assert checks["robot.port"]["advice"] == "the follower answers there: change teleop.port"
    assert f"set teleop.port: {lab.leader}" in checks["teleop.port"]["advice"]


def test_a_port_that_is_not_there(lab, doctor):
    status, checks = doctor(**{"robot.port": "/dev/ttyACM77"})
    assert status == 1 and "/dev/ttyACM77 is not there" in checks["robot.port"]["found"]
    assert f"set robot.port: {lab.follower}" in checks["robot.port"]["advice"]


def test_a_port_in_use_is_a_warning(lab, doctor):
    with held_by_another_process(lab.leader):
        status, checks = doctor()
    assert status == 0 and checks["teleop.port"]["status"] == "warning"
    assert "in use" in checks["teleop.port"]["found"]
    assert checks["teleop.id"]["found"].endswith("its motors were not asked")


def test_ids_and_calibrations(lab, doctor, tmp_path):
    status, checks = doctor(**{"robot.id": "nobody"})
    assert (
        status == 1
        and "nobody.json is not there; there are files for follower" in checks["robot.id"]["found"]
    )
    assert "lerobot-calibrate --robot.type=so101_follower" in checks["robot.id"]["advice"]

    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(lab.calibration / "leader.json", folder / "other.json")
    status, checks = doctor(**{"robot.id": "other", "robot.calibration_dir": str(folder)})
    assert status == 1 and checks["robot.id"]["advice"] == "set robot.id: follower"

    numbers = json.loads((lab.calibration / "follower.json").read_text())
    numbers["gripper"]["range_max"] += 10
    (folder / "old.json").write_text(json.dumps(numbers))
    _, checks = doctor(**{"teleop.id": "", "robot.id": "old", "robot.calibration_dir": str(folder)})
    assert "no id" in checks["teleop.id"]["found"]


def test_size_and_rate_that_the_camera_does_not_offer(lab, doctor, tmp_path):
    status, checks = doctor(**{"robot.cameras.side.fps": 60})
    finding = checks["robot.cameras.side"]
    assert status == 1 and "424x240 at 60 fps is not offered" in finding["found"]
    status, checks = doctor(**{"robot.cameras.side.serial_number_or_name": f"virtual:{tmp_path}/none/side"})
    assert (
        status == 1
        and f"one runs elsewhere: virtual:{lab.directory}/side" in checks["robot.cameras.side"]["advice"]
    )
    status, checks = doctor(**{"robot.cameras.side.serial_number_or_name": f"{tmp_path}/none.bag"})
    assert status == 1 and "there is no file" in checks["robot.cameras.side"]["found"]
    status, checks = doctor(**{"robot.cameras.side.serial_number_or_name": "012345678901"})
    assert status == 1 and "012345678901" in checks["robot.cameras.side"]["found"]
    status, checks = doctor(**{"robot.cameras.wrist.port": free_port()})
    assert status == 1 and "nobody takes connections" in checks["robot.cameras.wrist"]["found"]


def test_a_dataset_folder_that_exists_and_a_disk_that_is_full(lab, doctor, tmp_path, monkeypatch):
    (tmp_path / "dataset").mkdir()
    _, checks = doctor()
    assert (
        checks["dataset.root"]["status"] == "warning" and "--resume=true" in checks["dataset.root"]["advice"]
    )
    monkeypatch.setattr(disk, "free_bytes", lambda root: 100e6)
    status, checks = doctor(**{"dataset.root": str(tmp_path / "other")})
    assert status == 1 and "100 MB are free" in checks["dataset.root"]["found"]
    monkeypatch.setattr(disk, "free_bytes", lambda root: 1e9)
    _, checks = doctor(**{"dataset.root": str(tmp_path / "other"), "dataset.num_episodes": 1000})
    assert checks["dataset.root"]["status"] == "warning"
    assert checks["dataset.root"]["figures"]["planned_bytes"] > 1e9


def test_a_yaml_that_is_not_there(capsys):
    assert main(["doctor", "--config_path=/nowhere.yaml"]) == 2
    assert "is not there" in capsys.readouterr().err


# --- what needs devices that are not here: the comparison alone ---


def compared(data: dict, *ports, cameras=()) -> tuple[dict, Survey]:
    survey = Survey(list(ports), list(cameras), config_path="a.yaml", data=data)
    survey.named_ports, survey.named_cameras = named_ports(data), named_cameras(data)
    return {check.name: check.look(survey) for check in doctor_compare.checks(survey)}, survey


def robot(port: str, **more) -> dict:
    return {"robot": {"type": "so101_follower_ext", "id": "arm", "port": port, **more}}


def test_a_name_that_can_change_is_worth_a_warning():
    lasting = "/dev/serial/by-id/usb-1a86_USB_Single_Serial_5A460-if00"
    findings, survey = compared(robot("/dev/ttyACM0"), usb_port(role=FOLLOWER, lasting=lasting))
    assert findings["robot.port"].status == "warning" and lasting in findings["robot.port"].advice
    assert survey.corrections == {"robot.port": lasting}
    findings, _ = compared(robot("/dev/ttyACM0"), usb_port(role=FOLLOWER))
    assert findings["robot.port"].status == "ok", "there is no better name"


def test_an_arm_whose_role_is_not_known_is_not_called_wrong():
    findings, _ = compared(robot("/dev/ttyACM0"), usb_port(role=Role("", "unknown", "no file")))
    assert findings["robot.port"].status == "warning" and "unplug one" in findings["robot.port"].advice
    findings, _ = compared(robot("/dev/ttyACM5"), usb_port(role=Role("", "unknown", "no file")))
    assert "it may be the arm at /dev/ttyACM0" in findings["robot.port"].advice


def test_a_role_that_is_only_likely_makes_a_warning_of_a_mismatch():
    findings, _ = compared(
        robot("/dev/ttyACM0"), usb_port(role=Role("leader", "likely", "the other arm is the follower"))
    )
    assert findings["robot.port"].status == "warning"
    findings, _ = compared(robot("/dev/ttyACM0"), usb_port(role=LEADER))
    assert findings["robot.port"].status == "failed"


def test_several_candidates_are_all_named():
    findings, survey = compared(
        robot("/dev/ttyACM5"),
        usb_port("/dev/ttyACM0", role=FOLLOWER),
        usb_port("/dev/ttyACM1", role=FOLLOWER),
    )
    assert findings["robot.port"].advice == "choose one of /dev/ttyACM0, /dev/ttyACM1"
    assert survey.corrections == {}


def test_a_skin_with_another_number_of_magnetometers():
    data = robot("/dev/ttyACM0", force_sensors={"pad": {"type": "anyskin", "port": "/dev/ttyACM1"}})
    skin = usb_port("/dev/ttyACM1", kind="skin", answer=Answer("skin", magnetometers=10))
    findings, survey = compared(data, usb_port(role=FOLLOWER), skin)
    assert findings["robot.force_sensors.pad.port"].status == "failed"
    assert survey.corrections == {"robot.force_sensors.pad.num_magnetometers": 10}


def test_types_that_the_doctor_does_not_know_are_left_in_peace():
    data = {
        "robot": {
            "type": "koch_follower",
            "port": "/dev/ttyACM0",
            "cameras": {"c": {"type": "reachy2_camera"}},
        }
    }
    findings, _ = compared(data, usb_port(kind="silent"))
    assert {finding.status for finding in findings.values()} == {"ok"}


def test_every_port_of_two_arms_is_found():
    arm = {"port": "/dev/a", "id": "x", "cameras": {"c": {"type": "zmq", "port": 5555}}}
    data = {
        "robot": {"type": "bi_so_follower", "left_arm_config": arm, "right_arm_config": {"port": "/dev/b"}}
    }
    data["robot"]["force_sensors"] = {"net": {"type": "netft", "address": "a", "port": 49152}}
    assert [(each.key, each.expects) for each in named_ports(data)] == [
        ("robot.left_arm_config.port", "follower"),
        ("robot.right_arm_config.port", "follower"),
    ]
    assert [each.key for each in named_cameras(data)] == ["robot.left_arm_config.cameras.c"]


def test_calibrations_are_looked_for_where_lerobot_has_them(tmp_path):
    data = robot("/dev/a") | {"teleop": {"type": "so101_leader", "id": "me", "port": "/dev/b"}}
    follower, leader = named_ports(data)
    assert calibration_file(follower, tmp_path) == tmp_path / "robots/so_follower/arm.json"
    assert calibration_file(leader, tmp_path) == tmp_path / "teleoperators/so_leader/me.json"
    from lerobot.robots.so_follower import SOFollower
    from lerobot.teleoperators.so_leader import SOLeader

    assert (SOFollower.name, SOLeader.name) == ("so_follower", "so_leader")


def video(**settings) -> dict:
    return {"robot": {"cameras": {"front": {"type": "opencv", **settings}}}}


@pytest.mark.parametrize(
    ("value", "status", "told"),
    [
        (0, "warning", "set robot.cameras.front.index_or_path: /dev/v4l/by-id/usb-cam-index0"),
        ("/dev/video0", "warning", "that number can change"),
        ("/dev/video7", "failed", "/dev/video7 is not there"),
    ],
)
def test_a_webcam_by_number(value, status, told):
    camera = FoundCamera("opencv", "/dev/v4l/by-id/usb-cam-index0", "Webcam", nodes=("/dev/video0",))
    findings, _ = compared(video(index_or_path=value), cameras=[camera])
    finding = findings["robot.cameras.front"]
    assert finding.status == status and told in f"{finding.found} -> {finding.advice}"


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ([], "plug it in"),
        (["1"], 'set robot.cameras.top.serial_number_or_name: "1" (D435)'),
        (["1", "2"], "there are: '1' (D435), '2' (D435)"),
    ],
)
def test_a_realsense_that_is_not_there(there, told):
    data = {"robot": {"cameras": {"top": {"type": "realsense_rgbd", "serial_number_or_name": "9"}}}}
    findings, _ = compared(data, cameras=[FoundCamera("realsense_rgbd", serial, "D435") for serial in there])
    assert findings["robot.cameras.top"].status == "failed" and told in findings["robot.cameras.top"].advice


def test_motors_that_hold_other_numbers_than_the_file(tmp_path):
    (tmp_path / "arm.json").write_text(
        json.dumps({"m": {"id": 2, "homing_offset": 7, "range_min": 0, "range_max": 4095}})
    )
    data = robot("/dev/ttyACM0", calibration_dir=str(tmp_path))
    likely = Role("follower", "likely", "its gripper")
    findings, _ = compared(data, usb_port(role=likely, answer=Answer("arm", servos=servos())))
    assert findings["robot.id"].status == "warning" and "2 (shoulder_lift)" in findings["robot.id"].found
    assert os.fspath(tmp_path) in findings["robot.id"].found
