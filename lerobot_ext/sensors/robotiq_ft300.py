"""Driver of Robotiq's FT 150, FT 300 and FT 300-S on a serial port.

The sensor streams only after it was told to. The bytes are in `ft300_frames`, the reading is `stream`'s.
"""

from __future__ import annotations

import logging
import time
from functools import cached_property

import numpy as np
import serial
from numpy.typing import NDArray

from lerobot_ext.sensors.config_robotiq_ft300 import RobotiqFT300Config
from lerobot_ext.sensors.ft300_frames import (
    SERIAL_REGISTER,
    STOP,
    STREAM_ON,
    STREAM_REGISTER,
    YEAR_REGISTER,
    FT300Finder,
    read_request,
    registers_in,
    write_request,
)
from lerobot_ext.sensors.serial_stream import SerialDevice, SerialStream
from lerobot_ext.sensors.spec import ForceSensorSpec
from lerobot_ext.sensors.wrench import WrenchSensor, wrench_spec

logger = logging.getLogger(__name__)

RATE_HZ, FORCE_N, TORQUE_NM = 100.0, 300.0, 30.0  # of the data sheet
ANSWER_S = 0.25  # 8 + 15 bytes at 19200 baud take 12 ms
TRIES = 2
START_AGAIN_S = 0.3  # without a frame for so long, the sensor is told once more to stream


class FT300Stream(SerialStream):
    """The frames of an open port; the stream is started, and started again when it stops."""

    def __init__(self, device: SerialDevice, config: RobotiqFT300Config):
        """Open the port, ask who is there, and start the stream.

        Raises:
            ConnectionError: The port cannot be opened, or takes nothing.
        """
        super().__init__(device, device.open(), FT300Finder())
        self.what = f"an FT 300 with the Modbus address {config.slave_id}"
        self._slave_id = config.slave_id
        try:
            self._stop()
            self._identify()
            self._start()
        except (OSError, serial.SerialException) as error:
            self.port.close()
            text = f"{device.kind} on {device.port}: cannot be written to ({error}); plug it in again."
            raise ConnectionError(text) from error

    def read(self) -> list[tuple[float, NDArray[np.float32]]]:
        """See `SampleStream.read`."""
        samples = super().read()
        now_s = time.perf_counter()
        if samples:
            self._heard_s = now_s
        elif now_s - self._heard_s > START_AGAIN_S:
            self._start()
        return samples

    def close(self) -> None:
        """Stop the stream and close the port."""
        try:
            self._stop()
            self.port.flush()
        except (OSError, serial.SerialException) as error:  # it is not there any more
            logger.debug("%s: not stopped: %s", self.device.kind, error)
        super().close()

    def _start(self) -> None:
        self.port.write(write_request(self._slave_id, STREAM_REGISTER, STREAM_ON))
        self._heard_s = time.perf_counter()

    def _stop(self) -> None:
        self.port.write(STOP)

    def _identify(self) -> None:
        """Serial number and year of production, if the sensor says them; a stream that did not stop hides them."""
        count = YEAR_REGISTER - SERIAL_REGISTER + 1
        for _ in range(TRIES):
            time.sleep(0.05)
            self.port.reset_input_buffer()
            self.port.write(read_request(self._slave_id, SERIAL_REGISTER, count))
            heard, until_s = b"", time.perf_counter() + ANSWER_S
            while time.perf_counter() < until_s:
                heard += self.port.read(1)
                heard += self.port.read(self.port.in_waiting)
                if (registers := registers_in(heard, self._slave_id, count)) is not None:
                    *number, year = registers
                    self.identity = {
                        "serial_number": "-".join(f"{word:04x}" for word in number),
                        "production_year": str(year),
                    }
                    return
            self._stop()


class RobotiqFT300(WrenchSensor):
    """Forces in N and torques in Nm at 100 Hz, as the sensor computes them; untared until `tare`."""

    config: RobotiqFT300Config

    def __init__(self, config: RobotiqFT300Config):
        """Prepare to read `config.port`; opens nothing."""
        super().__init__(config)
        self._device = self._new_device()

    def _new_device(self) -> SerialDevice:
        return SerialDevice("FT 300", self.config.port, self.config.baudrate)

    def __str__(self) -> str:
        return f"FT 300 on {self._device.port if self.is_connected else self.config.port}"

    @cached_property
    def raw_spec(self) -> ForceSensorSpec:
        """Fx, Fy, Fz up to 300 N and Mx, My, Mz up to 30 Nm, 100 times a second."""
        return wrench_spec(RATE_HZ, FORCE_N, TORQUE_NM)

    def connect(self, warmup: bool = True) -> None:
        """As `StreamSensor.connect`, on the port that the configuration has now."""
        if not self.is_connected:
            self._device = self._new_device()
        super().connect(warmup)

    def open_stream(self) -> FT300Stream:
        """See `StreamSensor.open_stream`."""
        return FT300Stream(self._device, self.config)
