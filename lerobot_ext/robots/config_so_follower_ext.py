"""Configurations of the robots `so100_follower_ext` and `so101_follower_ext`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the robot.
"""

from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig
from lerobot.robots.so_follower.config_so_follower import SOFollowerRobotConfig

from lerobot_ext.sensors import ForceSensorConfig


@dataclass(kw_only=True)
class SOFollowerExtConfig(SOFollowerRobotConfig):
    """LeRobot's SO follower with force sensors.

    Attributes:
        force_sensors: Their configurations, by name; the order is that of the numbers in `observation.force`.
        num_read_retries: How often an instruction that a motor did not answer is tried again, also while connecting.
    """

    force_sensors: dict[str, ForceSensorConfig] = field(default_factory=dict)
    num_read_retries: int = 3


@RobotConfig.register_subclass("so100_follower_ext")
@dataclass(kw_only=True)
class SO100FollowerExtConfig(SOFollowerExtConfig):
    """An SO-100 follower with force sensors."""


@RobotConfig.register_subclass("so101_follower_ext")
@dataclass(kw_only=True)
class SO101FollowerExtConfig(SOFollowerExtConfig):
    """An SO-101 follower with force sensors."""
