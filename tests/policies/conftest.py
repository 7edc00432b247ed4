"""Policies with the plugin registered, as LeRobot's commands have it."""

import lerobot_ext

lerobot_ext.register()
