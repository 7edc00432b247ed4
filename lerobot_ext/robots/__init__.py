"""Robots that this plugin adds to LeRobot: SO-100 and SO-101 followers with force sensors, one arm or two, and a recording.

Importing this package registers the configurations; the robot itself is imported when one is made.
"""

from lerobot_ext.robots.config_bi_so_follower_ext import (
    BiSO100FollowerExtConfig,
    BiSO101FollowerExtConfig,
    BiSOFollowerExtConfig,
)
from lerobot_ext.robots.config_replay import ReplayRobotConfig
from lerobot_ext.robots.config_so_follower_ext import (
    SO100FollowerExtConfig,
    SO101FollowerExtConfig,
    SOFollowerExtConfig,
)

__all__ = [
    "BiSO100FollowerExtConfig",
    "BiSO101FollowerExtConfig",
    "BiSOFollowerExtConfig",
    "ReplayRobotConfig",
    "SO100FollowerExtConfig",
    "SO101FollowerExtConfig",
    "SOFollowerExtConfig",
]
