"""Configuration of the force sensor type `anyskin`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the driver.
"""

import math
from dataclasses import dataclass

from lerobot_ext.sensors.config import ForceSensorConfig


@ForceSensorConfig.register_subclass("anyskin")
@dataclass(kw_only=True)
class AnySkinConfig(ForceSensorConfig):
    """A magnetic skin (AnySkin, ReSkin, WowSkin) on a serial port; its raw unit is the microtesla.

    Attributes:
        port: The serial port, for example `/dev/ttyACM2`.
        baudrate: Its rate; nominal on a board with native USB.
        num_magnetometers: How many the board has, or all boards behind one port together.
        temperature: Whether the magnetometers' temperatures are channels, too.
        layout_mm: Where each magnetometer is on the pad, x and y, for pictures; None: as on AnySkin's board, if
            there are five.
    """

    port: str
    baudrate: int = 115200
    num_magnetometers: int = 5
    temperature: bool = False
    layout_mm: list[list[float]] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if not self.port:
            raise ValueError("anyskin: port is empty; give the skin's serial port, for example /dev/ttyACM2.")
        for key in ("baudrate", "num_magnetometers"):
            self.require_above(key, 0, "anyskin")
        if self.layout_mm is not None:
            count = self.num_magnetometers
            right = len(self.layout_mm) == count and all(
                len(point) == 2 and all(math.isfinite(x) for x in point) for point in self.layout_mm
            )
            if not right:
                text = f"anyskin: layout_mm is {self.layout_mm}; expected {count} pairs [x, y] in mm."
                raise ValueError(text)
