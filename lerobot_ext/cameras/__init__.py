"""Cameras that this plugin adds to LeRobot: `realsense_rgbd`.

Importing this package registers the configurations only; drivers and device libraries are imported when used.
"""

from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig

__all__ = ["RealSenseRGBDCameraConfig"]
