"""Force and tactile sensors: the interface, the registry, and the drivers' configurations.

Importing this package registers the configurations; a driver and its device library are imported when one is
made. Nothing here knows of datasets or robots.
"""

from lerobot_ext.sensors.calibration import Calibration
from lerobot_ext.sensors.config import ForceSensorConfig
from lerobot_ext.sensors.config_anyskin import AnySkinConfig
from lerobot_ext.sensors.config_netft import NetFTConfig
from lerobot_ext.sensors.config_robotiq_ft300 import RobotiqFT300Config
from lerobot_ext.sensors.sensor import ForceSensor, make_force_sensors_from_configs
from lerobot_ext.sensors.spec import ForceSensorSpec
from lerobot_ext.sensors.zero import Drift, TareRefused

__all__ = [
    "AnySkinConfig",
    "Calibration",
    "Drift",
    "ForceSensor",
    "ForceSensorConfig",
    "ForceSensorSpec",
    "NetFTConfig",
    "RobotiqFT300Config",
    "TareRefused",
    "make_force_sensors_from_configs",
]
