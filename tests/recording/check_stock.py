"""Run by a test as a program: opens recordings with LeRobot alone and checks each of their frames.

Usage: check_stock.py FOLDER=EPISODES...; fails at the first that is not right.
"""

import sys
from pathlib import Path

import small_recording

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder, _, least = argument.rpartition("=")
        found = small_recording.load(Path(folder)).meta.total_episodes
        assert found >= int(least), f"{folder}: {found} episodes, {least} were saved"
        small_recording.check(Path(folder), found)
    small_recording.check(Path(folder), found, episodes=[found - 1])
    assert not any(name.startswith("lerobot_ext") for name in sys.modules), "this was to be LeRobot alone"
