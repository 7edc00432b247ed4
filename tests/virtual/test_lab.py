"""The lab as a process: its ports, its end, and what its command says."""

import os
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
import serial
import zmq
from lerobot.cameras.zmq import ZMQCamera, ZMQCameraConfig
from lerobot.robots.so_follower import SO100Follower, SO100FollowerConfig
from lerobot.teleoperators.so_leader import SO100Leader, SO100LeaderConfig

from lerobot_ext.errors import UserError
from lerobot_ext.virtual import link
from lerobot_ext.virtual.client import LabClient
from lerobot_ext.virtual.directory import LabDirectory
from lerobot_ext.virtual.lab import LabConfig
from lerobot_ext.virtual.testing import free_port, running_lab

pytestmark = pytest.mark.usefixtures("unhurried_bus")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("shared")) as lab:
        yield lab


def command(*words, timeout=60):
    run = [sys.executable, "-m", "lerobot_ext", "lab", *map(str, words)]
    return subprocess.run(run, capture_output=True, text=True, timeout=timeout)


def gone(pid):
    """Whether no process of that number runs (one that only waits to be collected does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_stock_follower_and_leader_connect_without_a_question(lab, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("LeRobot asked a question"))
    follower = SO100Follower(
        SO100FollowerConfig(port=str(lab.follower), id="follower", calibration_dir=lab.calibration)
    )
    leader = SO100Leader(
        SO100LeaderConfig(port=str(lab.leader), id="leader", calibration_dir=lab.calibration)
    )
    follower.connect()
    leader.connect()
    try:
        action = leader.get_action()
        seen = follower.get_observation()
        assert seen == pytest.approx(action, abs=1.5)
        follower.send_action(action | {"shoulder_pan.pos": 20.0})
        end = time.monotonic() + 10
        while abs(follower.get_observation()["shoulder_pan.pos"] - 20) > 1 and time.monotonic() < end:
            time.sleep(0.05)
        assert follower.get_observation()["shoulder_pan.pos"] == pytest.approx(20, abs=1)
        follower.send_action(action)
    finally:
        follower.disconnect()
        leader.disconnect()


def test_the_skin_streams_frames_to_whoever_listens(lab):
    with serial.Serial(str(lab.skin), 115200, timeout=2) as port:
        frames = [port.read(82) for _ in range(50)]
    assert all(len(frame) == 82 and frame.endswith(b"\r\n") for frame in frames)
    values = np.array([np.frombuffer(frame[:80], "<f4").reshape(5, 4) for frame in frames])
    assert np.all((values[..., 0] > 15) & (values[..., 0] < 45))
    assert np.all(values[..., 1:].std(axis=0) < 5)


def test_a_broken_message_of_somebody_who_left_costs_nobody_an_answer(lab):
    """libzmq's REP socket would drop the next reply, most of the time."""
    context = zmq.Context()
    try:
        for _ in range(20):
            stranger = context.socket(zmq.DEALER)
            stranger.connect(f"ipc://{lab.directory / 'control'}")
            stranger.send_multipart([b"no", b"delimiter"])
            time.sleep(0.02)
            stranger.close(linger=0)
            time.sleep(0.02)
            assert lab.client.status().pid == lab.process.pid
    finally:
        context.destroy(linger=0)


def test_side_frames_have_colour_depth_and_rising_numbers(lab):
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    try:
        socket.subscribe(b"")
        socket.rcvtimeo = 10_000
        socket.connect(f"ipc://{lab.directory / 'side'}")
        frames = [socket.recv_multipart() for _ in range(5)]
    finally:
        context.destroy(linger=0)
    headers = [msgspec.json.decode(header, type=link.SideFrame) for header, _, _ in frames]
    numbers = [header.frame_number for header in headers]
    assert numbers == sorted(set(numbers))
    assert abs(headers[-1].timestamp_ms / 1000 - time.time()) < 30
    status = lab.client.status()
    _, color, depth = frames[-1]
    size = status.camera.color.height, status.camera.color.width
    assert len(color) == size[0] * size[1] * 3
    raw = np.frombuffer(depth, np.uint16).reshape(size)
    assert 300 < raw[size[0] * 3 // 4, size[1] // 2] < 900


def test_the_wrist_camera_is_lerobots_zmq_camera(lab):
    camera = ZMQCamera(
        ZMQCameraConfig(
            server_address="127.0.0.1",
            port=lab.wrist_port,
            camera_name="wrist",
            width=424,
            height=240,
            fps=30,
            timeout_ms=15_000,
        )
    )
    camera.connect()
    try:
        picture = camera.read_latest(max_age_ms=10_000).astype(int)
    finally:
        camera.disconnect()
    assert picture.shape == (240, 424, 3)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert ((red > green + 60) & (red > blue + 60)).sum() > 300  # the lamp: red, so the channels are in order


def test_episodes_are_opened_and_judged(lab):
    assert lab.client.start_episode(operate=False).in_episode
    height = lab.client.status().block_height_m
    episode = lab.client.end_episode()
    assert not episode.success and episode.block_height_m == height
    assert lab.client.status().episodes[-1] == episode
    with pytest.raises(RuntimeError, match="no episode is open"):
        lab.client.end_episode()


def test_a_malformed_request_is_refused_and_the_lab_lives_on(lab):
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    try:
        socket.rcvtimeo = 10_000
        socket.connect(f"ipc://{lab.directory / 'control'}")
        for message, answer in ((b"\xff{", "not a request"), (b'{"op": "fly"}', "there is no request 'fly'")):
            socket.send(message)
            assert answer in msgspec.json.decode(socket.recv(), type=link.Reply).error
    finally:
        context.destroy(linger=0)
    assert lab.client.status().pid == lab.process.pid


def test_starting_it_twice_says_that_it_runs_already(lab):
    second = command(f"--dir={lab.directory}")
    assert second.returncode == 2
    assert f"a lab runs already in {lab.directory} (pid {lab.process.pid})" in second.stderr
    assert "--stop" in second.stderr
    assert lab.client.status().pid == lab.process.pid


def test_a_taken_wrist_port_gets_a_sentence_and_leaves_nothing(lab, tmp_path):
    other = command(f"--dir={tmp_path / 'other'}", f"--wrist_port={lab.wrist_port}")
    assert other.returncode == 2
    assert f"{lab.wrist_port}" in other.stderr and "--wrist_port" in other.stderr
    assert "Traceback" not in other.stderr
    assert not (tmp_path / "other").exists()


def test_status_is_printed_for_people_and_for_machines(lab):
    text = command("--status", f"--dir={lab.directory}")
    assert text.returncode == 0 and "contact force" in text.stdout
    machine = command("--status", "--json", f"--dir={lab.directory}")
    assert msgspec.json.decode(machine.stdout, type=link.Status).pid == lab.process.pid


def test_detached_it_starts_answers_and_stops_without_a_trace(tmp_path):
    directory = tmp_path / "lab"
    started = command(f"--dir={directory}", f"--wrist_port={free_port()}", "--detach")
    assert started.returncode == 0, started.stderr
    with LabClient(directory) as client:
        pid = client.status().pid
    assert (directory / "lab.log").read_text().startswith("lab ready")
    again = command(f"--dir={directory}", "--detach")
    assert again.returncode == 2 and "runs already" in again.stderr
    stopped = command("--stop", f"--dir={directory}")
    assert stopped.returncode == 0, stopped.stderr
    end = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(pid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_and_what_was_there_before_stays(tmp_path, number):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine").write_text("kept")
    with running_lab(tmp_path) as lab:
        lab.process.send_signal(number)
        assert lab.process.wait(20) == 0
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["mine"]


def test_after_a_kill_it_starts_again_and_still_leaves_nothing(tmp_path):
    with running_lab(tmp_path) as lab:
        lab.process.kill()
        lab.process.wait()
        assert (lab.directory / "follower").is_symlink()
        with pytest.raises(ConnectionError, match="no lab answers in"):
            LabClient(lab.directory, timeout_s=0.3).status()
    with running_lab(tmp_path) as lab:
        assert lab.client.status().episodes == ()
    assert not (tmp_path / "lab").exists()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    script = (
        "import sys, os, pathlib\n"
        "from lerobot_ext.virtual.testing import running_lab\n"
        "with running_lab(pathlib.Path(sys.argv[1])) as lab:\n"
        "    print(lab.process.pid, flush=True)\n"
        "    os._exit(1)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=90
    )
    pid = int(out.stdout)
    end = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(pid)
    assert not (tmp_path / "lab").exists()


def test_no_lab_is_a_sentence(tmp_path):
    none = command("--status", f"--dir={tmp_path / 'none'}")
    assert none.returncode == 2
    assert "no lab answers in" in none.stderr and "lerobot-ext lab" in none.stderr


def test_a_directory_too_long_for_a_socket_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="Linux allows 107"):
        LabDirectory(tmp_path / ("x" * 120))


def test_a_file_in_the_directorys_place_is_a_sentence(tmp_path):
    (tmp_path / "lab").write_text("")
    with pytest.raises(UserError, match="is a file"):
        LabDirectory(tmp_path / "lab")


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"width": 10_000}, {"wrist_port": 70_000}])
def test_impossible_options_are_a_sentence(wrong):
    with pytest.raises(UserError, match="expected a number from"):
        LabConfig(**wrong)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads /proc")
def test_the_lab_needs_neither_torch_nor_lerobot(lab):
    with open(f"/proc/{lab.process.pid}/maps") as file:
        maps = file.read()
    assert "libtorch" not in maps


def test_a_hand_moves_the_arms_on_request(lab):
    lab.client.hand("middle")
    end = time.monotonic() + 20
    while max(map(abs, lab.client.status().joints_rad[:5])) > 0.05 and time.monotonic() < end:
        time.sleep(0.1)
    assert lab.client.status().joints_rad[:5] == pytest.approx([0.0] * 5, abs=0.05)
    lab.client.hand("home")
    with pytest.raises(RuntimeError, match="there is no pose 'up'"):
        lab.client.hand("up")
