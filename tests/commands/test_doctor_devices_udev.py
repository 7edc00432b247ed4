"""The udev rules, line by line, and what /sys tells about USB, from a tree as Linux has it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from ports import servos, usb_port

from lerobot_ext.commands import doctor_cameras, doctor_devices, doctor_usb, udev
from lerobot_ext.commands.doctor_arms import Calibration, Role
from lerobot_ext.commands.doctor_cameras import FoundCamera
from lerobot_ext.commands.doctor_ports import Answer
from lerobot_ext.commands.doctor_survey import Survey
from lerobot_ext.commands.main import main

MATCHES = {"ACTION", "SUBSYSTEM", "KERNELS", "DRIVER", "ATTR", "ATTRS", "ENV"}
SETTINGS = {"SYMLINK", "GROUP", "MODE", "TAG", "ENV", "ATTR", "GOTO", "LABEL"}
PART = re.compile(r'(?P<key>[A-Z]+)(?P<name>\{[A-Za-z_]+\})?(?P<how>==|!=|\+=|=)"(?P<value>[^"]*)"')
FOLLOWER = Role("follower", "sure", "why")
REALSENSE = doctor_usb.UsbDevice("2-1", "8086", "0b07", "123", "Intel(R) RealSense(TM) 435", 5000.0, "")


def parsed(text: str) -> list[list[tuple[str, str, str, str]]]:
    """The parts of each rule; fails for a line that udev would not take."""
    rules = []
    for line in text.splitlines():
        assert line == line.strip()
        if not line or line.startswith("#"):
            continue
        parts = [PART.fullmatch(part) for part in line.split(", ")]
        assert all(parts), f"not a rule: {line}"
        rule = [(p["key"], (p["name"] or "").strip("{}"), p["how"], p["value"]) for p in parts]
        for key, name, how, _ in rule:
            assert key in (MATCHES if how in ("==", "!=") else SETTINGS), line
            assert bool(name) == (key in ("ATTR", "ATTRS", "ENV")), line
        kinds = [how in ("==", "!=") for _, _, how, _ in rule]
        assert kinds == sorted(kinds, reverse=True), f"what is asked stands before what is set: {line}"
        rules.append(rule)
    return rules


def rules(*ports, cameras=(), folders=()) -> tuple[str, list[dict]]:
    """The text, and each rule that sets something as a mapping of `KEY{name}`."""
    text = udev.rules(ports, cameras, folders)
    found = parsed(text)
    jumps = {rule[-1][3] for rule in found if rule[-1][0] == "GOTO"}
    assert jumps == {rule[0][3] for rule in found if rule[0][0] == "LABEL"} == {"lerobot_end"}
    return text, [
        {f"{key}{{{name}}}" if name else key: value for key, name, _, value in rule}
        for rule in found
        if rule[-1][0] not in ("GOTO", "LABEL")
    ]


def test_a_port_is_named_by_its_serial_number_and_left_alone_by_modemmanager():
    text, (rule,) = rules(usb_port(role=FOLLOWER))
    assert rule == {
        "SUBSYSTEM": "tty",
        "ATTRS{idVendor}": "1a86",
        "ATTRS{idProduct}": "55d3",
        "ATTRS{serial}": "5A460",
        "SYMLINK": "lerobot_follower",
        "GROUP": "dialout",
        "MODE": "0660",
        "TAG": "uaccess",
        "ENV{ID_MM_DEVICE_IGNORE}": "1",
        "ENV{ID_MM_PORT_IGNORE}": "1",
    }
    for step in (
        "sudo install -m 644 70-lerobot.rules /etc/udev/rules.d/",
        "udevadm control --reload",
        "trigger",
    ):
        assert step in text


def test_an_ftdi_adapter_gets_its_low_latency():
    _, found = rules(usb_port("/dev/ttyUSB0", role=FOLLOWER, driver="ftdi_sio"))
    assert found[1] == {
        "ACTION": "add",
        "SUBSYSTEM": "usb-serial",
        "DRIVER": "ftdi_sio",
        "ATTRS{idVendor}": "1a86",
        "ATTRS{idProduct}": "55d3",
        "ATTRS{serial}": "5A460",
        "ATTR{latency_timer}": "1",
    }
    finding = doctor_devices.look_at_port(Survey(), usb_port(role=FOLLOWER, driver="ftdi_sio"))
    assert finding.status == "warning" and "16 ms" in finding.advice


def test_without_a_serial_number_of_its_own_a_port_is_known_by_its_socket():
    for ports in (
        [usb_port(serial=None, role=FOLLOWER)],
        [usb_port("/dev/ttyACM0", role=FOLLOWER), usb_port("/dev/ttyACM1", kind="skin")],
    ):
        text, found = rules(*ports)
        assert all(rule["KERNELS"] == "1-2.3" and "ATTRS{serial}" not in rule for rule in found)
        assert "holds only while it stays in USB socket 1-2.3" in text


@pytest.mark.parametrize(("driver", "interfaces", "asked"), [("cdc_acm", 2, False), ("ftdi_sio", 2, True)])
def test_an_adapter_with_several_ports_is_asked_for_the_right_one(driver, interfaces, asked):
    port = usb_port(role=FOLLOWER, driver=driver)
    port.place = replace(port.place, interfaces=interfaces, interface="01")
    _, found = rules(port)
    assert found[0].get("ENV{ID_USB_INTERFACE_NUM}") == ("01" if asked else None)


def test_names_are_unique_and_say_which():
    def arm(path, serial, name):
        calibration = Calibration("follower", name, Path(f"{name}.json"), {})
        return usb_port(path, serial, role=Role("follower", "sure", "why", calibration))

    unknown = Role("", "unknown", "why")
    ports = [
        arm("/dev/ttyACM0", "A", "left one"),
        arm("/dev/ttyACM1", "B", "right"),
        usb_port("/dev/ttyACM2", "C", role=unknown),
        usb_port("/dev/ttyACM3", "D", role=unknown),
        usb_port("/dev/ttyACM4", "E", kind="skin"),
        usb_port("/dev/ttyACM5", "F", kind="silent"),
    ]
    text, found = rules(*ports)
    assert [rule["SYMLINK"] for rule in found] == [
        *(
            "lerobot_follower_left_one",
            "lerobot_follower_right",
            "lerobot_arm_1",
            "lerobot_arm_2",
            "lerobot_skin",
        )
    ]
    assert "/dev/ttyACM5: silent, USB Single Serial: no rule" in text


def test_characters_that_mean_something_to_udev_are_asked_for_as_any():
    _, (rule,) = rules(usb_port(serial='5A"*[,4\n', role=FOLLOWER))
    assert rule["ATTRS{serial}"] == "5A????4?"


def test_a_webcam_gets_a_name_and_a_realsense_its_rights_if_nobody_gave_them(tmp_path):
    webcam = doctor_usb.UsbDevice("1-4", "046d", "0825", "ABC", "Webcam C270", 480.0, "")
    cameras = [
        FoundCamera("opencv", "/dev/video0", "C270", nodes=("/dev/video0",), usb_device=webcam),
        FoundCamera("realsense_rgbd", "123", "D435", usb_device=REALSENSE),
    ]
    text, found = rules(cameras=cameras, folders=[str(tmp_path)])
    assert found[0]["SYMLINK"] == "lerobot_camera_1" and found[0]["ATTR{index}"] == "0"
    assert [rule["SUBSYSTEM"] for rule in found[1:]] == ["usb", "video4linux"]
    assert all(rule["ATTRS{idProduct}"] == "0b07" and rule["MODE"] == "0660" for rule in found[1:])
    assert "https://github.com/IntelRealSense/librealsense/" in text
    (tmp_path / "99-realsense-libusb.rules").touch()
    text, found = rules(cameras=cameras, folders=[str(tmp_path)])
    assert len(found) == 1 and "RealSense" not in text


def test_the_command_prints_the_file_and_nothing_else(lab, capsys):
    assert main(["doctor", "--udev"]) == 0
    text = capsys.readouterr().out
    parsed(text)
    assert f"not on USB, so they need no rule: {lab.follower}" in text


# --- /sys ---


@pytest.fixture
def tree(tmp_path):
    """A /sys with a bus adapter, an FTDI adapter, a webcam with two nodes, and a RealSense on USB 2."""

    def device(path: str, **attributes) -> Path:
        folder = tmp_path / "devices" / path
        folder.mkdir(parents=True)
        for name, value in attributes.items():
            (folder / name).write_text(f"{value}\n")
        return folder

    def link(path: str, target: Path) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(target)

    device(
        "1-1",
        idVendor="1a86",
        idProduct="55d3",
        serial="5A46",
        busnum=1,
        devnum=4,
        speed=12,
        bNumInterfaces=2,
    )
    acm = device("1-1/1-1:1.0", bInterfaceNumber="00")
    link("class/tty/ttyACM0/device", acm)
    link("devices/1-1/1-1:1.0/driver", device("drivers/cdc_acm"))
    device("1-2", idVendor="0403", idProduct="6014", busnum=1, devnum=5, speed=480, bNumInterfaces=1)
    device("1-2/1-2:1.0", bInterfaceNumber="00")
    link("class/tty/ttyUSB0/device", device("1-2/1-2:1.0/ttyUSB0", latency_timer=16))
    link("devices/1-2/1-2:1.0/driver", device("drivers/ftdi_sio"))
    link("class/tty/ttyS0/device", device("platform/serial8250"))
    device("1-3", idVendor="046d", idProduct="0825", product="Webcam C270", busnum=1, devnum=6, speed=480)
    realsense = {"manufacturer": "Intel(R)", "product": "RealSense(TM) 435", "speed": 480}
    folder = device("1-4", idVendor="8086", idProduct="0b07", busnum=1, devnum=7, **realsense)
    link("bus/usb/devices/1-4", folder)
    for number, (where, name, index) in enumerate(
        (("1-3", "C270", 0), ("1-3", "C270", 1), ("1-4", "RealSense", 0))
    ):
        interface = device(f"{where}/{where}:1.{number}")
        node = device(f"{where}/{where}:1.{number}/video{number}", name=name, index=index)
        link(f"devices/{where}/{where}:1.{number}/video{number}/device", interface)
        link(f"class/video4linux/video{number}", node)
    return tmp_path


def test_a_ports_place_on_usb(tree):
    place = doctor_usb.serial_place("/dev/ttyACM0", tree)
    assert (place.device.socket, place.device.serial_number, place.device.node) == (
        "1-1",
        "5A46",
        "/dev/bus/usb/001/004",
    )
    assert (place.interface, place.interfaces, place.driver, place.latency_ms) == ("00", 2, "cdc_acm", None)
    place = doctor_usb.serial_place("/dev/ttyUSB0", tree)
    assert (place.device.vendor, place.driver, place.latency_ms) == ("0403", "ftdi_sio", 16)
    assert place.device.serial_number is None
    assert doctor_usb.serial_place("/dev/ttyS0", tree) is None
    assert doctor_usb.serial_place("/dev/pts/3", tree) is None


def test_webcams_are_listed_once_and_realsense_nodes_not_at_all(tree, tmp_path):
    (camera,) = doctor_cameras.find_video(tree, tmp_path / "by-id")
    assert (camera.id, camera.name, camera.nodes) == ("/dev/video0", "C270", ("/dev/video0",))
    assert camera.usb_device.name == "Webcam C270"


def test_a_realsense_that_librealsense_does_not_see_is_told_of_with_its_usb_2(tree):
    cameras, _ = doctor_cameras.find_realsense(tree)
    (camera,) = [each for each in cameras if each.usb_device is not None]
    assert camera.id == "" and camera.on_usb2 and camera.nodes == ("/dev/bus/usb/001/007",)
    survey = Survey(cameras=[camera])
    finding = doctor_devices.look_at_camera(survey, camera)
    assert finding.status == "failed" or "librealsense does not see it" in finding.found


def test_a_realsense_on_usb_2_or_with_old_firmware_is_worth_a_warning():
    def told(**facts):
        return doctor_devices.look_at_camera(Survey(), FoundCamera("realsense_rgbd", "1", "D435", **facts))

    assert told(usb="3.2", firmware="5.16.0.1").status == "ok"
    assert "USB 3 socket" in told(usb="2.1").advice
    assert "5.17.0.1 is recommended" in told(usb="3.2", firmware="5.16.0.1", newer_firmware="5.17.0.1").advice


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"temperature_c": 60}, "has 60 °C: let it cool down"),
        (
            {"voltage_v": 12.0, "min_voltage_v": 4.0, "max_voltage_v": 8.0},
            "gets 12.0 V and takes 4.0 to 8.0 V",
        ),
        ({"errors": 4}, "reports overheat"),
    ],
)
def test_what_is_wrong_with_an_arm_that_answers(facts, told):
    port = usb_port(role=FOLLOWER, answer=Answer("arm", servos=servos(**facts)))
    finding = doctor_devices.look_at_port(Survey(), port)
    assert finding.status == "warning" and told in finding.advice


def test_a_new_arm_with_one_motor_is_told_how_to_get_ids():
    one = {1: servos()[1]}
    finding = doctor_devices.look_at_port(Survey(), usb_port(role=FOLLOWER, answer=Answer("arm", servos=one)))
    assert finding.status == "failed" and "new motors all have id 1" in finding.advice


def test_broken_and_unknown_ports_are_described():
    for kind, status in (
        ("broken", "failed"),
        ("unknown", "warning"),
        ("silent", "warning"),
        ("busy", "warning"),
    ):
        finding = doctor_devices.look_at_port(Survey(), usb_port(kind=kind, description="CP2102"))
        assert finding.status == status and finding.found.startswith("CP2102: ") and finding.advice
