"""Configuration of the force sensor type `netft`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the driver.
"""

from dataclasses import dataclass

from lerobot_ext.sensors.config import ForceSensorConfig
from lerobot_ext.sensors.wrench import WrenchSensorConfig


@ForceSensorConfig.register_subclass("netft")
@dataclass(kw_only=True)
class NetFTConfig(WrenchSensorConfig):
    """An ATI Net F/T, or another sensor that speaks its RDT protocol (Axia), on the network.

    Attributes:
        address: Its address or name, for example `192.168.1.1`.
        port: Its UDP port.
        counts_per_force: Counts in a newton; None: asked of the sensor's web page when it is connected.
        counts_per_torque: Counts in a newton metre; None: likewise.
        rate_hz: How often it sends, as its web page has it ("RDT Output Rate").
        force_limit_n, torque_limit_nm: The range of its calibration.
        http_port: TCP port of its web page.
    """

    address: str
    port: int = 49152
    counts_per_force: float | None = None
    counts_per_torque: float | None = None
    rate_hz: float = 1000.0
    force_limit_n: float = 1000.0
    torque_limit_nm: float = 100.0
    http_port: int = 80

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if not self.address:
            raise ValueError("netft: address is empty; give the sensor's address, for example 192.168.1.1.")
        for key in ("port", "http_port"):
            if not 1 <= getattr(self, key) <= 65535:
                raise ValueError(f"netft: {key} is {getattr(self, key)}; expected 1 to 65535.")
        for key in ("rate_hz", "force_limit_n", "torque_limit_nm"):
            self.require_above(key, 0, "netft")
        if (self.counts_per_force is None) != (self.counts_per_torque is None):
            raise ValueError("netft: give both counts_per_force and counts_per_torque, or neither.")
        if self.counts_per_force is not None:
            self.require_above("counts_per_force", 0, "netft")
            self.require_above("counts_per_torque", 0, "netft")
