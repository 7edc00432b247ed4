"""Force and tactile sensors: the interface, the registry, and the drivers' configurations.

Importing this package registers the configurations; a driver and its device library are imported when one is
made. Nothing here knows of datasets or robots.
"""

from lerobot_ext.sensors.config_anyskin import AnySkinConfig
from lerobot_ext.sensors.sensor import (
    ForceSensor,
    ForceSensorConfig,
    ForceSensorSpec,
    make_force_sensors_from_configs,
)

__all__ = [
    "AnySkinConfig",
    "ForceSensor",
    "ForceSensorConfig",
    "ForceSensorSpec",
    "make_force_sensors_from_configs",
]
