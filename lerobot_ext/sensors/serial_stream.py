"""Samples from a serial port: opening it with errors that say what to do, and the time at which bytes came.

Which bytes are a sample is the driver's matter. The port of a device that was plugged in again is found by its USB
serial number, because its name may have changed.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import serial
from numpy.typing import NDArray

from lerobot_ext import serial_ports
from lerobot_ext.sensors.frames import Frame, FrameFinder
from lerobot_ext.sensors.stream import POLL_S, SILENCE_S, SampleStream

NO_PORT = "{kind}: there is no port {port}; plug the {kind} in and look with `ls /dev/ttyACM* /dev/ttyUSB*`."
GONE = (
    "{kind}: the device with the serial number {serial} (last on {port}) is not plugged in; plug it in again."
)
NO_PERMISSION = "{kind} on {port}: no permission to open it; run `sudo usermod -aG dialout $USER`, then log out and in again."
BUSY = "{kind} on {port}: another program holds the port; stop it first."
NOT_SERIAL = "{kind} on {port}: cannot be opened as a serial port ({error})."
SILENT = (
    "no frame within {seconds:g} s at {baudrate} baud; is the {powered} powered, and is it the {kind}'s port?"
)
GARBAGE = (
    "{count} bytes within {seconds:g} s at {baudrate} baud, but no frame of {what} among them; is it the {kind}'s "
    "port{hint}?"
)


class SerialDevice:
    """A device on a serial port, found again when its port has another name.

    Attributes:
        port: Where it was when it was last opened.
        serial_number: Its USB serial number; None before it was opened, or if it has none.
    """

    def __init__(self, kind: str, port: str, baudrate: int):
        """Nothing is opened; `kind` is what the errors call it."""
        self.kind, self.port, self.baudrate = kind, port, baudrate
        self.serial_number: str | None = None
        self._folder = Path(port).absolute().parent

    def open(self) -> serial.Serial:
        """The port, for this program alone, with nothing old in it.

        Raises:
            ConnectionError: It is not there, not allowed, in use, or no serial port.
        """
        if self.serial_number is not None:
            found = serial_ports.find(self.serial_number, self._folder)
            if found is None:  # its old name may belong to another device by now
                raise ConnectionError(self._text(GONE, serial=self.serial_number))
            self.port = found
        if not os.path.exists(self.port):
            raise ConnectionError(self._text(NO_PORT))
        opened = self._opened()
        self.serial_number = self.serial_number or serial_ports.serial_number_of(self.port)
        return opened

    def _opened(self) -> serial.Serial:
        try:
            opened = serial.Serial(
                self.port, self.baudrate, timeout=POLL_S, write_timeout=1.0, exclusive=True
            )
            opened.reset_input_buffer()  # frames that piled up while nobody read are not fresh
        except OSError as error:  # serial.SerialException is one, errno not always kept
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ConnectionError(self._text(NO_PERMISSION)) from error
            if "lock" in str(error) or error.errno == errno.EBUSY:
                raise ConnectionError(self._text(BUSY)) from error
            raise ConnectionError(self._text(NOT_SERIAL, error=error)) from error
        except Exception as error:  # termios.error of a file that is no terminal
            raise ConnectionError(self._text(NOT_SERIAL, error=error)) from error
        return opened

    def _text(self, text: str, **more: object) -> str:
        return text.format(kind=self.kind, port=self.port, **more)


class SerialStream(SampleStream):
    """Frames out of an open port. A sample's time is the host's when the chunk with its first byte was read."""

    what = "its samples"  # what the frames are of, for the errors
    hint = ""
    powered = "sensor"

    def __init__(self, device: SerialDevice, port: serial.Serial, finder: FrameFinder):
        """Read `port`, which `device` opened, and own it."""
        super().__init__()
        self.device, self.port, self.finder = device, port, finder
        self._received = 0
        self._arrivals: deque[tuple[int, float]] = deque()  # (bytes received up to and with a chunk, when)
        self._before_silence = 0

    def samples(self, frames: Sequence[Frame]) -> list[NDArray[np.float32]]:
        """The raw samples of frames: (channels,) each."""
        return [frame.values for frame in frames]

    def read(self) -> list[tuple[float, NDArray[np.float32]]]:
        """See `SampleStream.read`."""
        chunk = self.port.read(1)
        chunk += self.port.read(self.port.in_waiting) if chunk else b""
        if not chunk:
            return []
        self._received += len(chunk)
        self._arrivals.append((self._received, time.perf_counter()))
        frames = self.finder.feed(chunk)
        self.counts = self.finder.counts
        times = []
        for frame in frames:
            while self._arrivals[0][0] <= frame.start:
                self._arrivals.popleft()
            times.append(self._arrivals[0][1])
        while len(self._arrivals) > 1 and self._arrivals[0][0] <= self._received - 4 * self.finder.size:
            self._arrivals.popleft()  # garbage alone must not be remembered for ever
        if frames:
            self._before_silence = self._received
        return list(zip(times, self.samples(frames), strict=True))

    def why_silent(self) -> str:
        """See `SampleStream.why_silent`."""
        count = self._received - self._before_silence
        # A frame that trickles in or the rest of one is not what makes a stream.
        text = SILENT if count < 2 * self.finder.size else GARBAGE
        return text.format(
            kind=self.device.kind,
            seconds=SILENCE_S,
            baudrate=self.device.baudrate,
            count=count,
            what=self.what,
            hint=self.hint,
            powered=self.powered,
        )

    def close(self) -> None:
        """See `SampleStream.close`."""
        self.port.close()
