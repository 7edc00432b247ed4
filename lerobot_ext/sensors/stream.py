"""What all sensors that stream have in common: one thread reads, everyone else looks at what it kept.

A driver gives a `SampleStream` (bytes and units); here are the thread, the last second of samples, the measured rate,
the deadline for silence, the errors and the way back after the sensor was unplugged.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import time
from collections import deque
from threading import Condition, Event, Thread

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.sensors.config import ForceSensorConfig
from lerobot_ext.sensors.sensor import ForceSensor, RawSample

logger = logging.getLogger(__name__)

POLL_S = 0.05  # a stream's read waits no longer, so that the thread can end
SILENCE_S = 1.0  # without a sample for so long, the sensor counts as lost
KEPT_S = 1.5
JOIN_S = 3.0

LOST = "{sensor}: lost ({error}); plug it in again{then}."
AGAIN = ", it is then found again by itself"
RECONNECT = " and reconnect"
NOT_CONNECTED = "{sensor}: not connected; call connect() first."
NO_NEW = "{sensor}: no new sample within {ms:.0f} ms."


class SampleStream(abc.ABC):
    """An open device that sends samples.

    Attributes:
        counts: What happened to the stream, by name; at least "dropped", samples that are known to be missing.
        fault: Why the samples of the last `read` must not be used, in words; None if there is no reason.
        identity: What the device says of itself (serial number, firmware), for the metadata.
    """

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.counts: dict[str, int] = {"dropped": 0}
        self.fault: str | None = None
        self.identity: dict[str, str] = {}

    @abc.abstractmethod
    def read(self) -> list[tuple[float, NDArray[np.float32]]]:
        """What has come, waiting for at most `POLL_S` if nothing has.

        Returns:
            For each sample its time (`time.perf_counter`) and its numbers (raw channels,), oldest first.

        Raises:
            Exception: Anything, if the device is lost.
        """

    @abc.abstractmethod
    def why_silent(self) -> str:
        """One sentence on what may be wrong when no sample came within `SILENCE_S`, and what to do."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release the device."""


class StreamSensor(ForceSensor):
    """A force sensor that streams. A driver gives `raw_spec`, `open_stream` and `__str__`."""

    def __init__(self, config: ForceSensorConfig):
        """Prepare to connect; opens no device."""
        super().__init__(config)
        self._changed = Condition()
        self._thread: Thread | None = None
        self._stop = Event()
        self._forget()

    def _forget(self) -> None:
        self._error: ConnectionError | None = None
        self._stream: SampleStream | None = None
        kept = max(self.config.tare_samples, math.ceil(KEPT_S * self.raw_spec.rate_hz))
        self._kept: deque[RawSample] = deque(maxlen=kept)
        self._number = 0
        self._reconnects = 0
        self._anew = False  # the stream was opened again and has not given a sample yet
        self._past: dict[str, int] = {}  # counts of streams that were closed
        self._identity: dict[str, str] = {}
        self._returned = self._averaged = 0
        self._baseline = None

    @abc.abstractmethod
    def open_stream(self) -> SampleStream:
        """Open the device. It is called again, from the thread, after the device was lost.

        Raises:
            ConnectionError: One sentence on what is wrong and what to do. Nothing stays open then.
        """

    @property
    def is_connected(self) -> bool:
        """Whether `connect` succeeded and `disconnect` was not called since; a lost sensor still is connected."""
        return self._thread is not None

    @property
    def measured_rate_hz(self) -> float | None:
        """Samples a second over the last second or so; None while there are fewer than two."""
        with self._changed:
            if len(self._kept) < 2 or self._kept[-1][1] == self._kept[0][1]:
                return None
            return (len(self._kept) - 1) / (self._kept[-1][1] - self._kept[0][1])

    @property
    def counts(self) -> dict[str, int]:
        """Since `connect`: "received" samples, "dropped" ones, "reconnects", and what the driver counts besides."""
        with self._changed:
            now = self._stream.counts if self._stream is not None else {}
            more = {
                key: self._past.get(key, 0) + now.get(key, 0) for key in {"dropped": 0} | self._past | now
            }
            return {"received": self._number, **more, "reconnects": self._reconnects}

    def metadata(self) -> dict:
        """As `ForceSensor.metadata`, with the measured rate and what the device said of itself."""
        rate = self.measured_rate_hz
        with self._changed:
            known = dict(self._identity)
        return super().metadata() | {"measured_rate_hz": rate and round(rate, 2)} | known

    def connect(self, warmup: bool = True) -> None:
        """Open the device and start reading; with `warmup`, wait for the first sample.

        Raises:
            ConnectionError: It cannot be opened, is silent, or sends something else; nothing stays open.
        """
        if self._thread is not None:
            raise ConnectionError(f"{self}: already connected.")
        self._forget()
        self._stop.clear()
        stream = self.open_stream()
        self._adopt(stream)
        self._thread = Thread(target=self._run, args=(stream,), name=str(self), daemon=True)
        self._thread.start()
        if warmup:
            try:
                self.wait_raw(0, 3 * SILENCE_S)  # the thread notices silence first, and says what it saw
            except BaseException:
                self.disconnect()
                raise
        logger.info("%s connected.", self)

    def disconnect(self) -> None:
        """Stop the thread, which closes the device, within about a tenth of a second; again does nothing."""
        thread = self._thread
        if thread is None:
            return
        self._stop.set()
        with self._changed:
            self._thread = None
            self._changed.notify_all()
        thread.join(timeout=JOIN_S)
        if thread.is_alive():
            logger.warning("%s: its device does not let go; the thread that reads it is left behind.", self)
        logger.info("%s disconnected.", self)

    def latest_raw(self) -> RawSample:
        """See `ForceSensor.latest_raw`."""
        with self._changed:
            self._check()
            return self._newest()

    def wait_raw(self, after: int, timeout_s: float) -> RawSample:
        """See `ForceSensor.wait_raw`."""
        timeout_s = max(0.0, timeout_s)
        with self._changed:
            self._changed.wait_for(
                lambda: self._number > after or self._error or self._thread is None, timeout_s
            )
            self._check()
            if self._number <= after:
                raise TimeoutError(NO_NEW.format(sensor=self, ms=timeout_s * 1e3))
            return self._newest()

    def history_raw(self, after: int) -> list[RawSample]:
        """See `ForceSensor.history_raw`; about the last second and a half is kept."""
        with self._changed:
            self._check()
            news = max(0, min(self._number - max(after, 0), len(self._kept)))
            return list(self._kept)[len(self._kept) - news :]

    def _check(self) -> None:
        if self._thread is None:
            raise ConnectionError(NOT_CONNECTED.format(sensor=self))
        if self._error is not None:
            raise ConnectionError(str(self._error)) from self._error

    def _newest(self) -> RawSample:
        return self._kept[-1] if self._kept else (0, 0.0, np.empty(0, np.float32))

    # The thread.

    def _run(self, stream: SampleStream | None) -> None:
        while stream is not None:
            try:
                self._pump(stream)
                return
            except ConnectionError as error:
                self._report(error)
            except Exception as error:  # whatever it is, whoever reads must hear of it
                self._report(ConnectionError(self._lost(error)))
            finally:
                self._release(stream)
            stream = self._reopened()

    def _pump(self, stream: SampleStream) -> None:
        """Read until told to stop.

        Raises:
            Exception: The device is lost.
        """
        heard_s = time.perf_counter()
        while not self._stop.is_set():
            samples = stream.read()
            if samples:
                self._publish(samples)
            if stream.fault is not None:
                self._report(ConnectionError(f"{self}: {stream.fault}"))
            if samples or stream.fault is not None:
                heard_s = time.perf_counter()
            elif time.perf_counter() - heard_s > SILENCE_S:
                raise ConnectionError(f"{self}: {stream.why_silent()}")

    def _reopened(self) -> SampleStream | None:
        """The device, opened again as soon as it is back; None when told to stop, or not to try."""
        every_s = self.config.reconnect_s
        while every_s > 0 and not self._stop.wait(every_s):
            try:
                stream = self.open_stream()
            except ConnectionError as error:
                logger.debug("%s", error)
                continue
            except Exception as error:  # a driver's bug must not end the search in silence
                self._report(ConnectionError(self._lost(error)))
                continue
            self._adopt(stream)
            self._anew = True
            return stream
        return None

    def _adopt(self, stream: SampleStream) -> None:
        with self._changed:
            self._stream = stream
            self._identity |= stream.identity

    def _release(self, stream: SampleStream) -> None:
        with self._changed:
            self._past |= {key: self._past.get(key, 0) + n for key, n in stream.counts.items()}
            self._stream = None
        with contextlib.suppress(Exception):
            stream.close()

    def _publish(self, samples: list[tuple[float, NDArray[np.float32]]]) -> None:
        with self._changed:
            for at_s, raw in samples:
                self._number += 1
                raw.flags.writeable = False  # it is everybody's
                self._kept.append((self._number, at_s, raw))
            back = self._error is not None and not self._stop.is_set()
            if back:
                self._error = None
            self._reconnects += self._anew
            self._anew = False
            self._changed.notify_all()
        if back:
            logger.warning("%s is back.", self)

    def _report(self, error: ConnectionError) -> None:
        with self._changed:
            if self._stop.is_set():
                return
            first = self._error is None
            self._error = error
            self._changed.notify_all()
        if first and self._number:
            logger.warning("%s", error)

    def _lost(self, error: Exception) -> str:
        then = AGAIN if self.config.reconnect_s > 0 else RECONNECT
        return LOST.format(sensor=self, error=" ".join(str(error).split()) or type(error).__name__, then=then)
