"""Configuration of the robot `replay`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the robot.
"""

import math
from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("replay")
@dataclass(kw_only=True)
class ReplayRobotConfig(RobotConfig):
    """A recorded episode in place of a robot.

    Attributes:
        root: Folder of a LeRobot dataset on this computer.
        repo_id: Its name on the hub, which is asked only if there is no `root`.
        episode: Which episode, or several, played one after the other.
        start_frame: The first frame that is shown; those before it are skipped.
        stride: Every so many frames one is shown; the others are skipped.
        loop: When all are over, begin again. Otherwise the end of the last one ends the run.
        speed: 1 is real time by the recorded timestamps, 2 twice as fast; a loop that is slower misses frames. 0: every
            observation is the next frame, whatever the clock says.
    """

    root: str | None = None
    repo_id: str | None = None
    episode: int | list[int] = 0
    start_frame: int = 0
    stride: int = 1
    loop: bool = False
    speed: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if self.root is None and self.repo_id is None:
            raise ValueError("robot: replay needs a recording; give robot.root, the folder of a dataset.")
        for key, least in (("start_frame", 0), ("stride", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"robot: {key} is {getattr(self, key)}; expected {least} or more.")
        if not 0 <= self.speed < math.inf:
            raise ValueError(
                f"robot: speed is {self.speed}; expected 1 for real time, or 0 for as fast as asked."
            )
        if not self.episodes or min(self.episodes) < 0:
            raise ValueError(
                f"robot: episode is {self.episode}; expected a number from 0 up, or several as [0, 2]."
            )

    @property
    def episodes(self) -> tuple[int, ...]:
        """The episodes in the order in which they are played."""
        return (self.episode,) if isinstance(self.episode, int) else tuple(self.episode)
