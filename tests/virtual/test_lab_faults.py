"""Faults on request: what the lab does to its ports and cameras, and what its command says."""

import json
import os
import subprocess
import sys
import time

import pytest
import serial
import zmq

from lerobot_ext import serial_ports
from lerobot_ext.virtual import trouble
from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.testing import running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("shared"), no_operator=True) as lab:
        yield lab


@pytest.fixture(autouse=True)
def well_again(lab):
    yield
    for device in dict(lab.client.status().faults):
        lab.client.fault(device)


@pytest.mark.parametrize("device", ["follower", "leader", "skin"])
def test_an_unplugged_port_comes_back_under_a_new_name(lab, device):
    number = serial_ports.serial_number_of(lab.directory / device)
    before = serial_ports.find(number, lab.directory)
    with serial.Serial(str(lab.directory / device), 1_000_000, timeout=0.2) as port:
        assert lab.client.fault(device, "unplugged").faults == {device: "unplugged"}
        assert not os.path.lexists(lab.directory / device)
        assert serial_ports.find(number, lab.directory) is None
        with pytest.raises(OSError):
            for _ in range(5):  # what was sent before may still be read
                port.read(4096)
    assert lab.client.fault(device).faults == {}
    after = serial_ports.find(number, lab.directory)
    assert after != before and os.path.basename(after) == f"{device}1"
    assert os.path.realpath(after) == os.path.realpath(lab.directory / device)
    assert serial_ports.serial_number_of(after) == number


def test_a_port_that_came_back_answers(lab):
    for _ in range(2):
        lab.client.fault("follower", "unplugged")
        lab.client.fault("follower")
    with serial.Serial(str(lab.follower), 1_000_000, timeout=2) as port:
        port.write(bytes([0xFF, 0xFF, 1, 2, 1, 0xFB]))
        assert port.read(6) == bytes([0xFF, 0xFF, 1, 2, 0, 0xFC])


def test_a_frozen_skin_is_silent(lab):
    with serial.Serial(str(lab.skin), 115200, timeout=2) as port:
        assert len(port.read(82)) == 82
        lab.client.fault("skin", "frozen")
        time.sleep(0.1)
        port.reset_input_buffer()
        port.timeout = 0.2
        assert port.read(1) == b""
        lab.client.fault("skin")
        port.timeout = 2
        assert len(port.read(82)) == 82


def test_a_frozen_camera_shows_the_same_frame_and_an_unplugged_one_none(lab):
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.subscribe(b"")
        socket.rcvtimeo = 10_000
        socket.connect(f"ipc://{lab.directory / 'side'}")
        socket.recv_multipart()
        lab.client.fault("side", "frozen")
        frames = [json.loads(socket.recv_multipart()[0])["frame_number"] for _ in range(8)]
        assert len(set(frames[-4:])) == 1
        lab.client.fault("side", "unplugged")
        socket.rcvtimeo = 300
        with pytest.raises(zmq.Again):
            for _ in range(20):
                socket.recv_multipart()
        socket.rcvtimeo = 10_000
        lab.client.fault("side")
        assert json.loads(socket.recv_multipart()[0])["frame_number"] > frames[-1]


@pytest.mark.parametrize(
    ("device", "fault", "complaint"),
    [
        ("hand", "unplugged", "there is no device 'hand'; there are: follower, leader, skin"),
        ("skin", "overload:1", "'skin' cannot be 'overload:1'; it can be: unplugged, frozen"),
        ("follower", "overload:7", "'follower' cannot be 'overload:7'"),
        ("follower", "corrupt:2", "corrupt:SHARE"),
        ("follower", "corrupt:much", "corrupt:SHARE"),
    ],
)
def test_what_cannot_be_is_refused(lab, device, fault, complaint):
    with pytest.raises(RuntimeError, match=complaint):
        lab.client.fault(device, fault)
    assert lab.client.status().faults == {}


def test_the_command_gives_faults_shows_them_and_mends_them(lab):
    def command(*words):
        run = [sys.executable, "-m", "lerobot_ext", "lab", f"--dir={lab.directory}", *words]
        return subprocess.run(run, capture_output=True, text=True, timeout=60).stdout

    assert command("--fault=follower=overload:3") == "follower: overload:3.\n"
    assert "fault: follower is overload:3" in command("--status")
    assert command("--fault=follower=") == "follower: well again.\n"
    assert lab.client.status().faults == {}


def test_every_error_bit_has_a_word_that_can_be_asked_for():
    assert set(trouble.ERROR_BITS.values()) == {1, 2, 4, 8, 32}
    for word in trouble.ERROR_BITS:
        trouble.check("leader", f"{word}:6")


def test_closing_a_terminal_removes_its_names_even_after_it_was_plugged_again(tmp_path):
    terminal = Terminal(tmp_path / "port", by_id=tmp_path / "serial" / "by-id" / "usb-A_B_C-if00")
    terminal.unplug()
    terminal.unplug()
    assert not terminal.plugged and terminal.read() == b"" and not terminal.write(b"x")
    assert not terminal.listening and not list(tmp_path.iterdir())[1:]
    terminal.plug()
    terminal.plug()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["port", "port1", "serial"]
    terminal.close()
    terminal.close()
    assert not list(tmp_path.iterdir())
