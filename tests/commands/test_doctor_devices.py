"""`lerobot-ext doctor`: what is plugged in, told from the running lab and from ports with something wrong."""

from __future__ import annotations

import os
from functools import partial

import pytest
import yaml
from doctoring import examine
from ports import held_by_another_process, plugged

from lerobot_ext.commands import doctor_access, doctor_cameras, doctor_ports
from lerobot_ext.commands.main import main


@pytest.fixture(autouse=True)
def no_calibrations_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_CALIBRATION", tmp_path / "calibration")


@pytest.fixture
def doctor(lab, capsys):
    """`status, checks = doctor("--config_path=…")`, with the session's lab running."""
    return partial(examine, capsys)


@pytest.fixture
def trouble(lab):
    """`trouble("follower", "silent:3")`, until the end of the test."""
    given = []

    def give(device: str, fault: str) -> None:
        given.append(device)
        lab.client.fault(device, fault)

    yield give
    for device in given:
        lab.client.fault(device, "")


def test_everything_in_the_lab_is_found_and_told_apart(lab, doctor):
    status, checks = doctor()
    assert status == 0, checks
    for role in ("follower", "leader"):
        found = checks[str(lab.directory / role)]["found"]
        assert (
            f"{role} '{role}' (sure: its motors hold that calibration); motors 1 to 6, 12.1 V, 31 °C" in found
        )
    assert "magnetic skin, 5 magnetometers" in checks[str(lab.skin)]["found"]
    assert "Robotiq FT 300" in checks[str(lab.directory / "ft300")]["found"]
    assert f"virtual:{lab.directory}/side" in checks["lab's side camera"]["found"]
    assert str(lab.wrist_port) in checks["lab's wrist camera"]["found"]
    assert "may open all" in checks["permissions"]["found"]


def test_programs_get_ports_cameras_yaml_and_rules(lab, capsys):
    import json

    main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    ports = {port["path"]: port for port in told["ports"]}
    follower = ports[str(lab.follower)]
    assert follower["kind"] == "arm" and follower["role"]["name"] == "follower"
    assert follower["servos"]["3"]["homing_offset"] == -1021
    assert ports[str(lab.skin)]["magnetometers"] == 5
    assert any(camera["id"] == f"virtual:{lab.directory}/side" for camera in told["cameras"])
    assert told["udev"].startswith("# ") and str(lab.directory) in told["labs"]
    described = yaml.safe_load(told["yaml"])
    assert described["robot"]["port"] == str(lab.follower) and described["teleop"]["port"] == str(lab.leader)
    assert described["robot"]["calibration_dir"] == str(lab.calibration)
    assert described["robot"]["force_sensors"]["skin"] == {"type": "anyskin", "port": str(lab.skin)}
    assert described["robot"]["cameras"]["wrist"]["port"] == lab.wrist_port


def test_printed_it_is_a_line_a_check_and_a_yaml_that_the_doctor_agrees_with(lab, doctor, capsys, tmp_path):
    assert main(["doctor"]) == 0
    lines, _, pasted = capsys.readouterr().out.partition("\n\n# for a YAML of lerobot-ext record:\n")
    assert all(line.startswith(("ok ", "warning ")) for line in lines.splitlines())
    path = tmp_path / "pasted.yaml"
    path.write_text(pasted)
    status, checks = doctor(f"--config_path={path}")
    assert status == 0
    assert {name: each["status"] for name, each in checks.items() if name.startswith(("robot.", "teleop."))} == dict.fromkeys(
        ("robot.port", "robot.force_sensors.skin.port", "robot.force_sensors.ft300.port", "teleop.port")
        + ("robot.id", "teleop.id", "robot.cameras.side", "robot.cameras.wrist"),
        "ok",
    )  # fmt: skip


def test_a_silent_motor_is_named_with_the_cable_to_look_at(lab, doctor, trouble):
    trouble("follower", "silent:3")
    status, checks = doctor()
    finding = checks[str(lab.follower)]
    assert status == 1 and finding["status"] == "failed"
    assert "motors 3 (elbow_flex) do not answer" in finding["found"] and "follower" in finding["found"]
    assert "cable between 2 (shoulder_lift) and 3 (elbow_flex)" in finding["advice"]


def test_a_motors_error_bits_come_in_words(lab, doctor, trouble):
    trouble("leader", "overload:2")
    _, checks = doctor()
    finding = checks[str(lab.leader)]
    assert finding["status"] == "warning" and "motor 2 (shoulder_lift) reports overload" in finding["advice"]


def test_an_unplugged_device_is_not_there_and_back_under_another_name_it_is(lab, doctor, trouble):
    trouble("skin", "unplugged")
    _, checks = doctor()
    assert not any("magnetic skin" in each["found"] for each in checks.values())
    lab.client.fault("skin", "")
    _, checks = doctor()
    assert "magnetic skin" in checks[str(lab.skin)]["found"]
    assert sum("magnetic skin" in each["found"] for each in checks.values()) == 1, "it has two names now"


def test_a_port_in_use_is_left_alone_and_its_user_named(lab, doctor):
    with held_by_another_process(lab.follower) as pid:
        status, checks = doctor()
    finding = checks[str(lab.follower)]
    assert status == 0 and finding["status"] == "warning"
    assert f"in use by {pid} (sleep)" in finding["found"] and "stop it" in finding["advice"]
    assert "leader" in checks[str(lab.leader)]["found"], "the others are looked at all the same"


def test_a_node_that_this_user_may_not_open(lab, doctor, monkeypatch):
    real = os.access
    closed = os.path.realpath(lab.skin)
    if os.geteuid() == 0:  # root may open everything
        monkeypatch.setattr(
            os, "access", lambda path, *a, **k: os.path.realpath(path) != closed and real(path, *a, **k)
        )
    else:
        os.chmod(closed, 0o000)
    try:
        status, checks = doctor()
    finally:
        if os.geteuid() != 0:
            os.chmod(closed, 0o620)
    assert status == 1
    assert str(lab.skin) in checks["permissions"]["found"] and checks["permissions"]["advice"]
    assert "may not open it" in checks[str(lab.skin)]["found"]


def test_the_line_that_mends_a_permission(monkeypatch):
    obstacle = doctor_access.Obstacle
    serial = obstacle("/dev/ttyACM0", "crw-rw---- root:dialout", "dialout")
    video = obstacle("/dev/video0", "crw-rw---- root:video", "video")
    usb = obstacle("/dev/bus/usb/001/004", "crw-rw-r-- root:root", "")
    monkeypatch.setattr(doctor_access, "_is_member", lambda group: False)
    told = doctor_access.remedy([serial, video])
    assert told == "run `sudo usermod -aG dialout,video $USER`, then log out and in again"
    assert "lerobot-ext doctor --udev" in doctor_access.remedy([usb])
    monkeypatch.setattr(doctor_access, "_is_member", lambda group: True)
    assert "after you logged in" in doctor_access.remedy([serial])


def test_a_node_is_described_with_its_owners(tmp_path, monkeypatch):
    node = tmp_path / "node"
    node.touch(0o640)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (found,) = doctor_access.obstacles([str(node), str(tmp_path / "nowhere"), str(node)])
    assert found.owners.startswith("-rw-r----- ") and found.group == "", "its group may not write"


def test_without_anything_plugged_in_the_doctor_says_what_to_plug_in(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEROBOT_LAB_DIR", str(tmp_path / "no-lab"))
    monkeypatch.setattr("lerobot_ext.serial_ports.pyserial_ports.comports", lambda: [])
    monkeypatch.setattr(doctor_cameras, "find_realsense", lambda: ([], ""))
    monkeypatch.setattr(doctor_cameras, "find_video", lambda: [])
    status, checks = examine(capsys)
    assert status == 0
    assert "lerobot-ext lab" in checks["serial ports"]["advice"] and checks["cameras"]["status"] == "warning"


def test_a_missing_pyrealsense2_is_said(lab, doctor, monkeypatch):
    def missing():
        raise ConnectionError("RealSense cameras need the package pyrealsense2; run pip install it")

    monkeypatch.setattr("lerobot_ext.cameras.librealsense.load", missing)
    status, checks = doctor()
    assert status == 0 and checks["cameras"]["status"] == "warning"
    assert (
        "pyrealsense2" in checks["cameras"]["found"] and checks["cameras"]["advice"] == "run pip install it"
    )


def test_the_far_end_of_a_port_is_the_device_and_no_user():
    with plugged() as (path, _):
        assert doctor_ports.find_holders([path]) == {}
        with held_by_another_process(path) as pid:
            assert doctor_ports.find_holders([path]) == {path: (f"{pid} (sleep)",)}
