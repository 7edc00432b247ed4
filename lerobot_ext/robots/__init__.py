"""Robots that this plugin adds to LeRobot: SO-100 and SO-101 followers with force sensors.

Importing this package registers the configurations; the robot itself is imported when one is made.
"""

from lerobot_ext.robots.config_so_follower_ext import (
    SO100FollowerExtConfig,
    SO101FollowerExtConfig,
    SOFollowerExtConfig,
)

__all__ = ["SO100FollowerExtConfig", "SO101FollowerExtConfig", "SOFollowerExtConfig"]
