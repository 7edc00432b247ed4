"""Cameras that this plugin adds to LeRobot: `realsense_rgbd`, and what makes points in space of its depth.

Importing this package registers the configurations only; drivers and device libraries are imported when used.
"""

from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.intrinsics import Extrinsics, Intrinsics
from lerobot_ext.cameras.point_cloud import point_cloud

__all__ = ["Extrinsics", "Intrinsics", "RealSenseRGBDCameraConfig", "point_cloud"]
