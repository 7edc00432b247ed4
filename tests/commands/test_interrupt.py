"""Ctrl-C at any point leaves a readable dataset (or none), free ports and no process."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

# What the log says when the moment has come, seconds to wait then, episodes that must be there afterwards.
MOMENTS = {
    "while connecting": (r"skin on .* connected", 0.0, 0),
    "in the first episode": (r"Recording episode 0", 1.5, 0),
    "while the first episode is saved": (r"Reset the environment", 0.55, 1),
    "in the second episode": (r"Recording episode 1", 1.5, 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c(config, lab, tmp_path, moment):
    pattern, pause_s, episodes = MOMENTS[moment]
    words = config(
        "collect.yaml",
        **{"dataset.num_episodes": 3, "dataset.episode_time_s": 2.5, "dataset.reset_time_s": 0.5},
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "lerobot_ext", "record", words], stdout=out, stderr=subprocess.STDOUT
        )
    wait_for(log, pattern, process)
    time.sleep(pause_s)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()[-2000:]
    assert not [child for child in children if child.is_running()]

    root = tmp_path / "dataset"
    if episodes == 0:
        assert not root.exists(), "nothing was saved, so nothing may be in the way of the next try"
    else:
        dataset = LeRobotDataset("lab/press", root=root, video_backend="pyav")
        assert dataset.num_episodes == episodes
        assert dataset[len(dataset) - 1]["observation.force"].shape == (15,)
    for port in (lab.follower, lab.leader, lab.skin):
        assert not holders(port), f"{port} is still held"


def wait_for(log: Path, pattern: str, process: subprocess.Popen, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not re.search(pattern, log.read_text(errors="replace")):
        assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-2000:]
        time.sleep(0.02)


def holders(port: Path) -> list[int]:
    """Processes other than the lab that have the port open."""
    device = os.path.realpath(port)
    found = []
    for process in psutil.process_iter():
        try:
            links = [
                os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")
            ]
        except OSError:
            continue
        if device in links and "lab" not in process.cmdline():
            found.append(process.pid)
    return found
