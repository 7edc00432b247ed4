"""Driver of magnetic skins on a serial port: one thread reads, everyone else looks at the newest sample.

Written anew because the usual reader hangs on a wrong port, returns zeros before the first sample and hides the
errors of its process. Frames are found by `anyskin_frames`.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from threading import Condition, Thread

import numpy as np
import serial
from numpy.typing import NDArray

from lerobot_ext.sensors.anyskin_frames import LIMIT, FrameFinder
from lerobot_ext.sensors.config_anyskin import AnySkinConfig
from lerobot_ext.sensors.sensor import ForceSensor, ForceSensorSpec

logger = logging.getLogger(__name__)

RATE_HZ = 100.0
SILENCE_S = 1.0  # without a frame for so long, the skin counts as lost
POLL_S = 0.05

NO_PORT = "skin: there is no port {port}; plug the skin in and look with `ls /dev/ttyACM* /dev/ttyUSB*`."
NO_PERMISSION = "skin on {port}: no permission to open it; run `sudo usermod -aG dialout $USER`, then log out and in again."
BUSY = "skin on {port}: another program holds the port; stop it first."
NOT_SERIAL = "skin on {port}: cannot be opened as a serial port ({error})."
SILENT = (
    "skin on {port}: no frame within {seconds:g} s at {baudrate} baud; is the board powered, and is it the skin's "
    "port?"
)
GARBAGE = (
    "skin on {port}: {count} bytes within {seconds:g} s at {baudrate} baud, but no frame of {magnetometers} "
    "magnetometers among them; is it the skin's port, and is num_magnetometers right?"
)
LOST = "skin on {port}: lost ({error}); plug it in again and reconnect."
NOT_CONNECTED = "skin on {port}: not connected; call connect() first."
NO_NEW = "skin on {port}: no new sample within {ms:.0f} ms."


class AnySkin(ForceSensor):
    """A magnetic skin: x, y, z of each magnetometer, in microtesla; temperatures are kept aside.

    The board streams without being asked. A sample's time is the host's when the chunk with the frame's first
    byte was read: late by the USB packet's delay, not by the wait of whoever reads.
    """

    config: AnySkinConfig

    def __init__(self, config: AnySkinConfig):
        """Prepare to read `config.port`; opens nothing."""
        super().__init__(config)
        channels = (f"m{m}_{axis}" for m in range(config.num_magnetometers) for axis in "xyz")
        self._spec = ForceSensorSpec(tuple(channels), unit="uT", rate_hz=RATE_HZ, limit=LIMIT)
        self._changed = Condition()
        self._serial: serial.Serial | None = None
        self._thread: Thread | None = None
        self._forget()

    def _forget(self) -> None:
        self._stop = False
        self._error: ConnectionError | None = None
        self._number = 0
        self._at_s = 0.0
        self._values: NDArray[np.float32] | None = None
        self._times: deque[float] = deque(maxlen=200)
        self._returned = 0
        self._baseline = None
        self.finder = FrameFinder(self.config.num_magnetometers)

    def __str__(self) -> str:
        return f"skin on {self.config.port}"

    @property
    def spec(self) -> ForceSensorSpec:
        """15 channels `m0_x … m4_z` for five magnetometers."""
        return self._spec

    @property
    def is_connected(self) -> bool:
        """Whether `connect` succeeded and `disconnect` was not called since; a lost skin still is connected."""
        return self._serial is not None

    @property
    def temperatures(self) -> NDArray[np.float32] | None:
        """(magnetometers,) degrees Celsius of the newest sample; None before the first."""
        with self._changed:
            return None if self._values is None else self._values[:, 0].copy()

    @property
    def measured_rate_hz(self) -> float | None:
        """Samples a second over the last 200; None while there are fewer than two."""
        with self._changed:
            if len(self._times) < 2 or self._times[-1] == self._times[0]:
                return None
            return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def connect(self, warmup: bool = True) -> None:
        """Open the port and start reading; with `warmup`, wait for the first sample.

        Raises:
            ConnectionError: No such port, no permission, in use, silent, or no frames in what it sends.
        """
        if self._serial is not None:
            raise ConnectionError(f"{self}: already connected.")
        self._forget()
        self._serial = self._open()
        self._thread = Thread(target=self._run, args=(self._serial,), name=str(self), daemon=True)
        self._thread.start()
        if warmup:
            try:
                self.wait_raw(0, 2 * SILENCE_S)  # the thread notices silence first, and says what it saw
            except BaseException:
                self.disconnect()
                raise
        logger.info("%s connected.", self)

    def _open(self) -> serial.Serial:
        port = self.config.port
        if not os.path.exists(port):
            raise ConnectionError(NO_PORT.format(port=port))
        try:
            opened = serial.Serial(port, self.config.baudrate, timeout=POLL_S, exclusive=True)
        except OSError as error:  # serial.SerialException is one, errno not always kept
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ConnectionError(NO_PERMISSION.format(port=port)) from error
            if "lock" in str(error) or error.errno == errno.EBUSY:
                raise ConnectionError(BUSY.format(port=port)) from error
            raise ConnectionError(NOT_SERIAL.format(port=port, error=error)) from error
        except Exception as error:  # termios.error of a file that is no terminal
            raise ConnectionError(NOT_SERIAL.format(port=port, error=error)) from error
        opened.reset_input_buffer()  # frames that piled up while nobody read are not fresh
        return opened

    def disconnect(self) -> None:
        """Stop the thread and close the port, within about a tenth of a second; again does nothing."""
        port, thread = self._serial, self._thread
        if port is None:
            return
        with self._changed:
            self._stop = True
            self._serial = self._thread = None
            self._changed.notify_all()
        thread.join(timeout=1.0)
        port.close()
        logger.info("%s disconnected.", self)

    def latest_raw(self) -> tuple[int, float, NDArray[np.float32]]:
        """See `ForceSensor.latest_raw`."""
        with self._changed:
            self._check()
            return self._sample()

    def wait_raw(self, after: int, timeout_s: float) -> tuple[int, float, NDArray[np.float32]]:
        """See `ForceSensor.wait_raw`."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._number > after or self._error or self._serial is None, max(0.0, timeout_s)
            )
            self._check()
            if self._number <= after:
                raise TimeoutError(NO_NEW.format(port=self.config.port, ms=max(0.0, timeout_s) * 1e3))
            return self._sample()

    def _check(self) -> None:
        if self._serial is None:
            raise ConnectionError(NOT_CONNECTED.format(port=self.config.port))
        if self._error is not None:
            raise ConnectionError(str(self._error)) from self._error

    def _sample(self) -> tuple[int, float, NDArray[np.float32]]:
        if self._values is None:
            return 0, 0.0, np.empty(0, np.float32)
        return self._number, self._at_s, self._values[:, 1:].reshape(-1)

    # The thread.

    def _run(self, port: serial.Serial) -> None:
        try:
            self._read(port)
        except ConnectionError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, whoever reads must hear of it
            self._fail(ConnectionError(LOST.format(port=self.config.port, error=error)))

    def _fail(self, error: ConnectionError) -> None:
        with self._changed:
            if not self._stop:
                self._error = error
            self._changed.notify_all()

    def _read(self, port: serial.Serial) -> None:
        received = 0
        arrivals: deque[tuple[int, float]] = deque()  # (bytes received up to and with a chunk, when)
        last_frame_s, bytes_then = time.perf_counter(), 0
        while not self._stop:
            chunk = port.read(1)
            chunk += port.read(port.in_waiting) if chunk else b""
            now_s = time.perf_counter()
            frames = []
            if chunk:
                received += len(chunk)
                arrivals.append((received, now_s))
                frames = self.finder.feed(chunk)
            for frame in frames:
                while arrivals[0][0] <= frame.start:
                    arrivals.popleft()
                self._publish(frame.values, arrivals[0][1])
            if frames:
                last_frame_s, bytes_then = now_s, received
            elif now_s - last_frame_s > SILENCE_S:
                raise ConnectionError(self._why_silent(received - bytes_then))

    def _why_silent(self, count: int) -> str:
        # A frame that trickles in or the rest of one is not what makes a stream.
        text = SILENT if count < 2 * self.finder.size else GARBAGE
        return text.format(
            port=self.config.port,
            seconds=SILENCE_S,
            baudrate=self.config.baudrate,
            count=count,
            magnetometers=self.config.num_magnetometers,
        )

    def _publish(self, values: NDArray[np.float32], at_s: float) -> None:
        with self._changed:
            self._number += 1
            self._at_s, self._values = at_s, values
            self._times.append(at_s)
            self._changed.notify_all()
