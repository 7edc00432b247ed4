"""LeRobot's Feetech bus, where everything is tried again and not only the reads of the control loop.

A packet can be lost at any time: connecting alone takes about a hundred of them, and LeRobot tries each once.
"""

from __future__ import annotations

from typing import Any

from lerobot.motors.feetech import FeetechMotorsBus
from lerobot.motors.motors_bus import NameOrID, Value


class PatientBus(FeetechMotorsBus):
    """A Feetech bus that tries each instruction `num_retries` times more, unless asked for even more.

    Attributes:
        num_retries: The least number of further attempts.
    """

    num_retries = 0

    @classmethod
    def like(cls, bus: FeetechMotorsBus, num_retries: int) -> PatientBus:
        """The same bus, not opened yet, with patience."""
        patient = cls(bus.port, bus.motors, bus.calibration, bus.protocol_version)
        patient.num_retries = num_retries
        return patient

    def ping(self, motor: NameOrID, num_retry: int = 0, raise_on_error: bool = False) -> int | None:
        """See LeRobot."""
        return super().ping(motor, max(num_retry, self.num_retries), raise_on_error)

    def read(self, data_name: str, motor: str, *, num_retry: int = 0, **more: Any) -> Value:
        """See LeRobot."""
        return super().read(data_name, motor, num_retry=max(num_retry, self.num_retries), **more)

    def write(self, data_name: str, motor: str, value: Value, *, num_retry: int = 0, **more: Any) -> None:
        """See LeRobot."""
        super().write(data_name, motor, value, num_retry=max(num_retry, self.num_retries), **more)

    def sync_read(
        self, data_name: str, motors: Any = None, *, num_retry: int = 0, **more: Any
    ) -> dict[str, Value]:
        """See LeRobot."""
        return super().sync_read(data_name, motors, num_retry=max(num_retry, self.num_retries), **more)

    def _read(self, address: int, length: int, motor_id: int, *, num_retry: int = 0, **more: Any) -> Any:
        # The handshake reads the firmware's version by way of this one.
        return super()._read(address, length, motor_id, num_retry=max(num_retry, self.num_retries), **more)
