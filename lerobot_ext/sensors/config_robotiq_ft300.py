"""Configuration of the force sensor type `robotiq_ft300`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the driver.
"""

from dataclasses import dataclass

from lerobot_ext.sensors.config import ForceSensorConfig
from lerobot_ext.sensors.wrench import WrenchSensorConfig


@ForceSensorConfig.register_subclass("robotiq_ft300")
@dataclass(kw_only=True)
class RobotiqFT300Config(WrenchSensorConfig):
    """A Robotiq FT 150, FT 300 or FT 300-S force torque sensor on a serial port.

    Attributes:
        port: The serial port of its USB converter, for example `/dev/ttyUSB0`.
        slave_id: Its Modbus address.
        baudrate: Its rate.
    """

    port: str
    slave_id: int = 9
    baudrate: int = 19200

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if not self.port:
            raise ValueError(
                "robotiq_ft300: port is empty; give the sensor's serial port, for example /dev/ttyUSB0."
            )
        if not 1 <= self.slave_id <= 247:
            raise ValueError(f"robotiq_ft300: slave_id is {self.slave_id}; expected 1 to 247.")
        self.require_above("baudrate", 0, "robotiq_ft300")
