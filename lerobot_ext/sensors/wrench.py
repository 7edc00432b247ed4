"""What sensors of three forces and three torques have in common: channels, units, and limits for each unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.sensors.config import ForceSensorConfig
from lerobot_ext.sensors.spec import ForceSensorSpec, display_unit
from lerobot_ext.sensors.stream import StreamSensor

CHANNELS = ("Fx", "Fy", "Fz", "Mx", "My", "Mz")
UNITS = ("N",) * 3 + ("Nm",) * 3


@dataclass(kw_only=True)
class WrenchSensorConfig(ForceSensorConfig):
    """What sensors of force and torque can be told; `tare_max_std` and `max_drift` are those of the forces.

    Attributes:
        tare_max_torque_std: As `tare_max_std`, of the torques, in Nm.
        max_torque_drift: As `max_drift`, of the torques, in Nm.
    """

    tare_max_std: float = 1.0
    max_drift: float = 2.0
    tare_max_torque_std: float = 0.05
    max_torque_drift: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        for key in ("tare_max_torque_std", "max_torque_drift"):
            self.require_above(key, 0)


def wrench_spec(rate_hz: float, force_limit_n: float, torque_limit_nm: float) -> ForceSensorSpec:
    """Fx, Fy, Fz in N and Mx, My, Mz in Nm."""
    limits = (float(force_limit_n),) * 3 + (float(torque_limit_nm),) * 3
    return ForceSensorSpec(CHANNELS, display_unit(UNITS), float(rate_hz), max(limits), UNITS, limits)


class WrenchSensor(StreamSensor):
    """A streaming sensor of force and torque."""

    config: WrenchSensorConfig
    setting = "tare_max_std or tare_max_torque_std"

    @property
    def tare_limits(self) -> NDArray[np.float64]:
        """See `ForceSensor.tare_limits`."""
        return np.repeat([self.config.tare_max_std, self.config.tare_max_torque_std], 3)

    @property
    def drift_limits(self) -> NDArray[np.float64]:
        """See `ForceSensor.drift_limits`."""
        return np.repeat([self.config.max_drift, self.config.max_torque_drift], 3)
