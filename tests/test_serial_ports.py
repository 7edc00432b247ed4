"""Ports by the serial number of what is plugged in, on links as udev and the lab make them."""

import os
import pty

import pytest

from lerobot_ext import serial_ports
from lerobot_ext.serial_ports import BY_ID


@pytest.fixture
def terminals():
    """Names of pseudo-terminals that exist while the test runs."""
    pairs = [pty.openpty() for _ in range(3)]
    yield [os.ttyname(far) for _, far in pairs]
    for pair in pairs:
        for fd in pair:
            os.close(fd)


def link(folder, name, target):
    (folder / BY_ID).mkdir(parents=True, exist_ok=True)
    path = folder / BY_ID / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def test_a_port_is_known_by_its_links_and_found_again_under_another_name(tmp_path, terminals):
    first, second = tmp_path / "ttyACM0", tmp_path / "ttyACM1"
    first.symlink_to(terminals[0])
    by_id = link(tmp_path, "usb-1a86_USB_Single_Serial_5A46083062-if00", "../../ttyACM0")
    assert serial_ports.serial_number_of(first) == "5A46083062"
    assert serial_ports.serial_number_of(by_id) == "5A46083062"
    assert serial_ports.serial_number_of(terminals[0]) is None  # nothing beside it tells
    assert serial_ports.find("5A46083062", tmp_path) == str(first)
    (port,) = [port for port in serial_ports.list_ports(tmp_path) if port.path == str(first)]
    assert port.description == "1a86 USB Single Serial" and port.vendor_id is None

    first.unlink()
    assert serial_ports.find("5A46083062", tmp_path) is None  # a link to nothing is no port
    assert serial_ports.serial_number_of(first) is None
    second.symlink_to(terminals[1])
    link(tmp_path, "usb-1a86_USB_Single_Serial_5A46083062-if00", "../../ttyACM1")
    assert serial_ports.find("5A46083062", tmp_path) == str(second)


def test_two_ports_of_one_number_are_not_guessed_between(tmp_path, terminals):
    for number in (0, 1):
        (tmp_path / f"ttyUSB{number}").symlink_to(terminals[number])
        link(tmp_path, f"usb-Silicon_Labs_CP2102_0001-if00-port{number}", f"../../ttyUSB{number}")
    assert serial_ports.serial_number_of(tmp_path / "ttyUSB1") == "0001"
    assert serial_ports.find("0001", tmp_path) is None


def test_other_files_in_the_folder_are_no_ports(tmp_path, terminals):
    link(tmp_path, "pci-0000_00_14.0", terminals[0])
    (tmp_path / BY_ID / "usb-Some_File_1234-if00").write_text("")
    assert not [port for port in serial_ports.list_ports(tmp_path) if str(tmp_path) in port.path]


def test_the_labs_folder_is_looked_at_without_being_asked(tmp_path, terminals, monkeypatch):
    monkeypatch.setenv("LEROBOT_LAB_DIR", str(tmp_path))
    (tmp_path / "follower").symlink_to(terminals[0])
    link(tmp_path, "usb-Virtual_follower_AB12CD340-if00", "../../follower")
    assert serial_ports.find("AB12CD340") == str(tmp_path / "follower")


def test_what_pyserial_knows_comes_first(monkeypatch, tmp_path):
    from serial.tools.list_ports_common import ListPortInfo

    info = ListPortInfo("/dev/ttyACM7", skip_link_detection=True)
    info.serial_number, info.vid, info.pid, info.description = "X1", 0x1A86, 0x55D3, "USB Serial"
    monkeypatch.setattr(serial_ports.pyserial_ports, "comports", lambda: [info])
    monkeypatch.setenv("LEROBOT_LAB_DIR", str(tmp_path))
    ports = [port for port in serial_ports.list_ports() if port.path == "/dev/ttyACM7"]
    assert ports == [serial_ports.SerialPort("/dev/ttyACM7", "X1", 0x1A86, 0x55D3, "USB Serial")]
    assert serial_ports.find("X1") == "/dev/ttyACM7"
