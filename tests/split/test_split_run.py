"""`lerobot-ext evaluate --split` on the lab: the phases of its start, and what happens when one of the two is killed."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from split_rig import SMALL_SERVER
from test_companion import PATIENCE_S, ended, segments, wait_for

from lerobot_ext.commands.demo import CONFIGS, write_config
from lerobot_ext.commands.evaluate import make_remote
from lerobot_ext.commands.main import main

NOTICED_S = 1.0
STILL_RAD = 0.01
MOVING_RAD = 0.05

pytestmark = pytest.mark.usefixtures("undisturbed_logging", "own_signals")


class Meanwhile:
    """Something that is done in a thread while the run is on; what goes wrong there fails the test."""

    def __init__(self, action) -> None:
        self._action, self._error = action, None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._action()
        except BaseException as error:
            self._error = error
            os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._thread.join(PATIENCE_S)
        if self._error is not None:
            raise self._error
        assert not self._thread.is_alive()


def joints(lab) -> np.ndarray:
    return np.array(lab.client.status().joints_rad)


def wait_moving(lab) -> None:
    place = joints(lab)
    wait_for(lambda: np.abs(joints(lab) - place).max() > MOVING_RAD, "the arm does not move")


def still(lab) -> np.ndarray:
    """Where the arm is; fails if it moves within a second."""
    place = joints(lab)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert np.abs(joints(lab) - place).max() < STILL_RAD, "the arm moves"
        time.sleep(0.05)
    return place


def child_of(pid: int) -> psutil.Process:
    """The inference process that a robot's process has started."""
    found = [
        child
        for child in psutil.Process(pid).children()
        if any(word.startswith("--end_with=") for word in child.cmdline())
    ]
    return found[-1]


def test_the_config_as_it_is_with_a_real_policy(lab, act_of_the_lab, tmp_path, lines):
    """One ACT, one command: both get ready side by side, the arm goes where it shall, an episode is recorded."""
    path = tmp_path / "evaluate_split.yaml"
    changes = {
        "dataset.root": str(tmp_path / "dataset"),
        "dataset.num_episodes": 1,
        "dataset.episode_time_s": 2,
        "policy.path": str(act_of_the_lab),
        "split.load_s": 300,
        "server.timeout_s": 20,
        "visualize": False,
    }
    write_config(CONFIGS / path.name, path, lab.directory, lab.wrist_port, changes)
    assert main(["evaluate", "--split", "--yes", f"--config_path={path}"]) == 0
    dataset = LeRobotDataset("lab/rollout_split", root=tmp_path / "dataset", video_backend="pyav")
    assert dataset.num_episodes == 1 and len(dataset) > 5 and dataset.fps == 60
    state = dict(
        zip(dataset.features["observation.state"]["names"], dataset[0]["observation.state"], strict=True)
    )
    assert state["wrist_flex.pos"] == pytest.approx(60, abs=6), "from the initial position"
    log = (tmp_path / "dataset.inference.log").read_text()
    address = Path(re.search(r"ipc://(\S+)", log).group(1))
    assert "stopped." in log and not address.parent.exists()
    for said in ("robot ready", "policy ready", "inference: ready: act"):
        assert lines.first(said), said


def test_a_killed_inference_process(lab, config, small_server, tmp_path, lines, capsys):
    """The arm holds, what was recorded is saved, the exit status tells, the next start is clean, another run can go on."""
    seen = {}

    def kill():
        wait_for(lambda: lines.first("policy ready"))
        wait_moving(lab)
        child = child_of(os.getpid())
        seen["used"] = segments(os.getpid()) | segments(child.pid)
        seen["killed"] = time.time()
        child.kill()
        wait_for(lambda: lines.first("was ended by SIGKILL"))
        time.sleep(0.5)
        seen["place"] = still(lab)

    with Meanwhile(kill):
        assert main(["evaluate", "--split", "--yes", config()]) == 2
    told = lines.first("was ended by SIGKILL")
    assert told.created - seen["killed"] < NOTICED_S
    assert lines.first("the run ends, the arm holds where it is").created - seen["killed"] < NOTICED_S
    assert np.abs(still(lab) - seen["place"]).max() < STILL_RAD, "it holds, also when the run has ended"
    assert seen["used"] and not any(Path(name).exists() for name in seen["used"])
    assert "was ended by SIGKILL" in capsys.readouterr().err.splitlines()[-1]
    root = tmp_path / "dataset"
    assert LeRobotDataset("lab/rollout_split", root=root).num_episodes == 1

    changes = {"dataset.num_episodes": 1, "dataset.episode_time_s": 1, "resume": True}
    assert main(["evaluate", "--split", "--yes", config(**changes)]) == 0, "the next start is clean"
    assert LeRobotDataset("lab/rollout_split", root=root).num_episodes == 2


def test_an_arm_that_is_lost_in_a_run(lab, config, small_server, tmp_path, lines, capsys):
    """What was recorded is saved, both processes end, and that the torque may still be on is said."""
    seen = {}

    def unplug():
        wait_for(lambda: lines.first("policy ready"))
        wait_moving(lab)
        seen["child"] = child_of(os.getpid())
        lab.client.fault("follower", "unplugged")

    try:
        with Meanwhile(unplug):
            assert main(["evaluate", "--split", "--yes", config(**{"robot.reopen_s": 0.2})]) == 2
    finally:
        lab.client.fault("follower")
    assert "did not come back within 0.2 s" in capsys.readouterr().err.splitlines()[-1]
    assert lines.first("arm: its port is gone, so its torque could not be switched off")
    assert ended(seen["child"])
    assert LeRobotDataset("lab/rollout_split", root=tmp_path / "dataset").num_episodes == 1


def test_an_inference_process_that_is_started_again(lab, config, small_server, tmp_path, lines):
    def kill():
        wait_for(lambda: lines.first("policy ready"))
        wait_moving(lab)
        child_of(os.getpid()).kill()
        wait_for(
            lambda: len([line for line in lines.records if "inference: ready" in line.getMessage()]) == 2
        )
        wait_moving(lab)
        os.kill(os.getpid(), signal.SIGINT)

    changes = {"split.restarts": 1, "return_to_initial_position": False}
    with Meanwhile(kill):
        assert main(["evaluate", "--split", "--yes", config(**changes)]) == 0
    assert lines.first("started again (1 of 1)")
    assert lines.first("was ended by") is not None and lines.first("the run ends") is None


def test_ctrl_c_ends_both_once_and_the_arm_goes_back(lab, config, small_server, lines, tmp_path):
    seen = {}

    def interrupt():
        wait_for(lambda: lines.first("policy ready"))
        wait_moving(lab)
        seen["child"] = child_of(os.getpid())
        os.kill(os.getpid(), signal.SIGINT)

    with Meanwhile(interrupt):
        assert main(["evaluate", "--split", "--yes", config()]) == 0
    assert ended(seen["child"])
    log = (tmp_path / "dataset.inference.log").read_text()
    assert log.count("stopped.") == 1 and "KeyboardInterrupt" not in log
    assert lines.first("was ended by") is None
    assert np.degrees(still(lab)[3]) == pytest.approx(80, abs=6), "LeRobot takes it back to where it began"


@pytest.mark.parametrize(
    ("mood", "changes", "words"),
    [
        ("slow", {"split.load_s": 1.0}, ("policy:", "split.load_s=1 s", "robot: ", "split.load_s")),
        (
            "",
            {"split.move_s": 0.3, "initial_speed": 2, "initial_position": {"shoulder_pan": 30}},
            ("robot:", "initial_position", "split.move_s=0.3 s"),
        ),
        ("", {"initial_position": {"elbow": 3}}, ("initial_position names 'elbow'", "elbow_flex.pos")),
        ("", {"robot.port": "/dev/null"}, ("/dev/null",)),
    ],
    ids=["policy too slow", "arm too slow", "no such joint", "no arm"],
)
def test_a_phase_that_does_not_come_says_which(lab, config, small_server, capsys, mood, changes, words):
    small_server(mood)
    before = joints(lab)
    assert main(["evaluate", "--split", "--yes", config(**changes)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in said
    if not mood and "initial_speed" not in changes:
        assert np.abs(joints(lab) - before).max() < STILL_RAD, "nothing moved"
    assert not [child for child in psutil.Process().children() if "--end_with=" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split"], "no terminal"),
        (["--yes"], "add --split"),
        (["--split=maybe", "--yes"], "expected --split alone"),
        (["--split", "--yes", "--split.load_s=0"], "split.load_s is 0"),
        (["--split", "--yes", "--policy.path=nowhere/at/all"], "there is no checkpoint"),
        (["--split", "--yes", "--split.laod_s=3"], "did you mean 'split.load_s'"),
        (["--split", "--yes", "--initial_speed=0"], "initial_speed is 0"),
    ],
)
def test_mistakes_are_told_before_anything_starts(config, capsys, monkeypatch, words, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["evaluate", config(), *words]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_that_cannot_be_loaded(lab, config, capsys):
    """The real `serve` says what is wrong with it, in the error of this command."""
    assert main(["evaluate", "--split", "--yes", config()]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    for word in ("policy:", "exit status 2", "model.safetensors", "is missing", "dataset.inference.log"):
        assert word in said
    still(lab)


def test_env_local_and_split_contradict_each_other(config, capsys, monkeypatch):
    monkeypatch.setenv("ENV", "local")
    assert main(["evaluate", config(), "--split", "--yes"]) == 2
    assert "leave one out" in capsys.readouterr().err


def test_what_the_inference_process_does_not_get_is_told(lines):
    def warned():
        return [record.getMessage() for record in lines.records if record.levelname == "WARNING"]

    policy = {"path": "checkpoint", "device": "cpu", "n_action_steps": 5}
    made = make_remote({"policy": policy, "server": {"address": "ipc://here"}})
    assert made["policy"]["address"] == "ipc://here"
    assert [text.partition(":")[0] for text in warned()] == ["policy.n_action_steps"]
    make_remote({"policy": policy | {"type": "remote"}})
    assert len(warned()) == 1, "that is the remote policy's own"


def test_enter_starts_and_a_killed_robots_process_leaves_nothing(lab, config, tmp_path):
    """Asked on a terminal, which is a real one: nothing begins before Enter; then `kill -9` of the robot's process."""
    ours, theirs = os.openpty()
    code = (
        "import sys; from lerobot_ext.commands import split; from lerobot_ext.commands.main import main\n"
        f"split.command = lambda name, *words: [*{SMALL_SERVER!r}, *words]\n"
        f"sys.exit(main(['evaluate', '--split', {config()!r}]))\n"
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        robot = subprocess.Popen(
            [sys.executable, "-c", code], stdin=theirs, stdout=out, stderr=subprocess.STDOUT
        )
    os.close(theirs)
    try:
        os.write(ours, b"\n")  # too early: no answer to a question that nobody asked yet
        wait_for(lambda: "Press Enter" in log.read_text() or robot.poll() is not None, "it does not ask")
        assert robot.poll() is None, log.read_text()[-2000:]
        place = still(lab)
        assert np.degrees(place[3]) == pytest.approx(80, abs=6), "at the initial position"
        os.write(ours, b"\n")
        wait_moving(lab)
        child = child_of(robot.pid)
        used = segments(robot.pid) | segments(child.pid)
        folder = Path(re.search(r"ipc://(\S+)", " ".join(child.cmdline())).group(1)).parent
        assert used and folder.is_dir()
        robot.kill()
        robot.wait()
        killed = time.monotonic()
        wait_for(lambda: ended(child))
        assert time.monotonic() - killed < NOTICED_S
    finally:
        robot.kill()
        robot.wait()
        os.close(ours)
    assert not folder.exists() and not any(Path(name).exists() for name in used)
    time.sleep(0.3)  # to the last position that was commanded
    still(lab)
