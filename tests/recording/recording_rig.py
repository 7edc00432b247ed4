"""An arm that stands still and a skin that can be touched, on pseudo-terminals, and a loop that records them."""

import select
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lerobot.datasets import LeRobotDataset
from lerobot.utils.feature_utils import build_dataset_frame, hw_to_dataset_features

from lerobot_ext.recording import episodes
from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.robots.so_follower_ext import SO101FollowerExt
from lerobot_ext.sensors import AnySkinConfig
from lerobot_ext.virtual import skin as skins
from lerobot_ext.virtual.feetech import FOLLOWER, ServoBus, write_calibration
from lerobot_ext.virtual.terminal import Terminal

FPS = 30


class Rig:
    """The devices' ends of the ports.

    Attributes:
        touched: Somebody's finger trembles on the skin.
        shift_ut: How far the skin's zero is from where it was.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.touched = False
        self.shift_ut = 0.0
        self._servos = ServoBus(FOLLOWER)
        self._skin = skins.Skin()
        self._arm_port = Terminal(directory / "follower")
        self._skin_port = Terminal(directory / "skin")
        write_calibration(directory / "follower.json", FOLLOWER)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve, self._stream)]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            if select.select([self._arm_port], [], [], 0.05)[0]:
                answer = self._servos.feed(self._arm_port.read())
                if answer:
                    self._arm_port.write(answer)

    def _stream(self) -> None:
        while not self._stop.wait(0.01):
            force = np.array([2 + 2 * np.sin(40 * time.monotonic()), 0, 0]) if self.touched else np.zeros(3)
            values = self._skin.step(0.01, force)
            values[:, 1:] += self.shift_ut
            self._skin_port.write(skins.frame(values))

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._arm_port.close()
        self._skin_port.close()

    @contextmanager
    def robot(self, **skin):
        """A connected follower with the skin."""
        config = SO101FollowerExtConfig(
            port=str(self.directory / "follower"),
            id="follower",
            calibration_dir=self.directory,
            force_sensors={"skin": AnySkinConfig(port=str(self.directory / "skin"), **skin)},
        )
        robot = SO101FollowerExt(config)
        robot.connect()
        try:
            yield robot
        finally:
            robot.disconnect()


@contextmanager
def running_rig(directory: Path):
    """A rig in `directory` for the length of a `with` block."""
    rig = Rig(directory)
    try:
        yield rig
    finally:
        rig.close()


def create(root: Path, robot) -> LeRobotDataset:
    """An empty dataset with the robot's features."""
    features = hw_to_dataset_features(robot.observation_features, "observation")
    features |= hw_to_dataset_features(robot.action_features, "action")
    return LeRobotDataset.create(
        "lab/rig", FPS, root=root, robot_type=robot.name, features=features, streaming_encoding=True
    )


def run(robot, dataset: LeRobotDataset, frames: int = 8, pause_s: float = 1 / FPS, during=None) -> None:
    """One episode as LeRobot's loop records it, not saved."""
    with episodes.episode(robot, dataset):
        for number in range(frames):
            observation = robot.get_observation()
            frame = build_dataset_frame(dataset.features, observation, "observation")
            frame |= build_dataset_frame(dataset.features, observation, "action")
            dataset.add_frame(frame | {"task": "press"})
            if during is not None:
                during(number)
            time.sleep(pause_s)
