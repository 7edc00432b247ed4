"""Configuration of the force sensor type `anyskin`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the driver.
"""

from dataclasses import dataclass

from lerobot_ext.sensors.sensor import ForceSensorConfig


@ForceSensorConfig.register_subclass("anyskin")
@dataclass(kw_only=True)
class AnySkinConfig(ForceSensorConfig):
    """A magnetic skin (AnySkin, ReSkin, WowSkin) on a serial port.

    Attributes:
        port: The serial port, for example `/dev/ttyACM2`.
        baudrate: Its rate; nominal on a board with native USB.
        num_magnetometers: How many the board has.
    """

    port: str
    baudrate: int = 115200
    num_magnetometers: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if not self.port:
            raise ValueError("anyskin: port is empty; give the skin's serial port, for example /dev/ttyACM2.")
        for key in ("baudrate", "num_magnetometers"):
            if getattr(self, key) <= 0:
                raise ValueError(f"anyskin: {key} is {getattr(self, key)}; expected a number above 0.")
