"""The inference process alone: how its end is noticed, told and survived, and that it never outlives the robot's."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from split_rig import SMALL_SERVER

from lerobot_ext.rollout.companion import InferenceProcess, ending
from simplify_work.local.client import PolicyClient
from simplify_work.wire.private import PrivateFolder
from simplify_work.wire.shared import FOLDER

NOTICED_S = 1.0
PATIENCE_S = 120.0  # a loaded machine is slow
STATE = {"observation.state": np.zeros(6, np.float32)}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """`started(mood, restarts=1)`: an inference process and the client's address; ended with the test."""
    running = []

    def start(mood="", name="log", **options):
        monkeypatch.setenv("SMALL_SERVER", mood)
        folder = PrivateFolder()
        process = InferenceProcess(SMALL_SERVER, folder, tmp_path / name, **options)
        running.append((process, folder))
        process.start()
        return process, folder

    yield start
    for process, folder in running:
        process.stop()
        folder.close()


def wait_for(condition, what="it does not happen"):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def segments(pid: int) -> set[str]:
    """Names of the shared memory that a process uses, also of that whose name is gone."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {word for word in maps.split() if word.startswith(f"{FOLDER}/lrx_")}


def ended(process: psutil.Process) -> bool:
    """Also if nobody has asked for its exit status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_two_runs_at_once_do_not_collide(started, tmp_path):
    (one, here), (other, there) = started(name="one"), started(name="other")
    wait_for(lambda: one.ready and other.ready)
    assert here.address != there.address
    with PolicyClient(here.address) as first, PolicyClient(there.address) as second:
        first.infer(STATE), second.infer(STATE)
        one.stop()
        here.close()
        assert second.infer(STATE).actions.shape == (36, 6), "the other one goes on"
    assert one.death is None, "an end that was asked for is no death"
    assert "stopped." in (tmp_path / "one").read_text()
    assert not here.path.exists() and there.path.exists()


def test_a_kill_is_noticed_at_once_and_told_with_the_last_lines(started, lines):
    process, folder = started()
    dead = threading.Event()
    process.when_dead(dead.set)
    wait_for(lambda: process.ready)
    pid = process.pid
    with PolicyClient(folder.address) as client:
        client.infer(STATE)
        used = segments(os.getpid())
        assert used, "through shared memory"
        os.kill(pid, signal.SIGKILL)
        killed = time.time()
        assert dead.wait(PATIENCE_S)
    told = lines.first("was ended by SIGKILL")
    assert told.levelname == "ERROR" and told.created - killed < NOTICED_S
    for word in (f"pid {pid}", "out of memory", str(process.log), "| ready: swing"):
        assert word in told.getMessage()
    process.stop()
    folder.close()
    assert not folder.path.exists() and not any(Path(name).exists() for name in used)
    late = threading.Event()
    process.when_dead(late.set)
    assert late.is_set(), "who asks afterwards is told, too"


def test_warnings_are_shown_with_a_prefix_and_everything_is_in_the_file(started, lines):
    process, _ = started()
    wait_for(lambda: process.ready)
    shown = [record.getMessage() for record in lines.records if record.levelname == "WARNING"]
    assert shown == ["inference: a warning from the policy"]
    log = process.log.read_text()
    assert "loading" in log and "a warning from the policy" in log and "ready: swing" in log
    assert process.doing == "ready"


def test_it_is_started_again_as_often_as_wanted(started, lines):
    process, folder = started(restarts=1)
    wait_for(lambda: process.ready)
    with PolicyClient(folder.address, timeout_s=PATIENCE_S) as client:
        client.infer(STATE)
        first = process.pid
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: process.pid != first and process.ready)
        assert process.death is None and lines.first("started again (1 of 1)")
        client.reset()
        assert client.infer(STATE).actions.shape == (36, 6), "the same client, the same address"
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: process.death is not None)


def test_one_that_was_never_ready_is_not_started_again(started, lines):
    process, _ = started("fail", restarts=3)
    wait_for(lambda: process.death is not None)
    assert "ended with exit status 2" in process.death
    assert "model.safetensors is missing" in process.last_lines()
    assert lines.first("started again") is None


def test_one_that_does_not_end_is_made_to(started):
    process, folder = started("deaf", stop_s=0.3)
    wait_for(lambda: process.ready)
    pid = process.pid
    process.stop()
    folder.close()
    assert not psutil.pid_exists(pid) and not folder.path.exists()


def test_it_does_not_outlive_a_robots_process_that_is_killed(tmp_path):
    script = Path(__file__).with_name("lone_robot.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as robot:
        pid, folder = robot.stdout.readline().split()
        child, used = psutil.Process(int(pid)), segments(robot.pid) | segments(int(pid))
        assert used and Path(folder).is_dir()
        robot.kill()
        robot.wait()
        killed = time.monotonic()
        wait_for(lambda: ended(child))
        assert time.monotonic() - killed < NOTICED_S
    assert not Path(folder).exists() and not any(Path(name).exists() for name in used)
    assert "is gone" in (tmp_path / "log").read_text()
    PrivateFolder().close()


def test_also_while_it_loads(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from lerobot_ext.rollout.companion import InferenceProcess\n"
        "from simplify_work.wire.private import PrivateFolder\n"
        "folder = PrivateFolder()\n"
        f"process = InferenceProcess({SMALL_SERVER!r}, folder, Path({str(tmp_path / 'log')!r}))\n"
        "process.start()\n"
        "while 'loading' not in process.doing: time.sleep(0.01)\n"
        "print(process.pid, folder.path, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"SMALL_SERVER": "slow"},
    ) as robot:
        pid, folder = robot.stdout.readline().split()
        child = psutil.Process(int(pid))
        robot.kill()
        wait_for(lambda: ended(child))
    assert not Path(folder).exists()


def test_endings_in_words():
    assert ending(0) == "ended with exit status 0"
    assert ending(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert "out of memory" in ending(-signal.SIGKILL)
    assert ending(-250) == "was ended by signal 250"
