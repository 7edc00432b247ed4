"""Driver of ATI's Net F/T on the network: UDP, protocol RDT.

The bytes are in `netft_records`, the reading is `stream`'s. Zero is taken here (`tare`), the sensor's own bias is left
as it is.
"""

from __future__ import annotations

import logging
import select
import socket
import time
import urllib.request
from functools import cached_property
from http.client import HTTPException, HTTPResponse

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.sensors.config_netft import NetFTConfig
from lerobot_ext.sensors.netft_records import (
    SATURATION,
    START,
    STOP,
    Record,
    Scales,
    Sequence,
    is_serious,
    records_in,
    request,
    scales_in,
    status_text,
)
from lerobot_ext.sensors.spec import ForceSensorSpec
from lerobot_ext.sensors.stream import POLL_S, SILENCE_S, SampleStream
from lerobot_ext.sensors.wrench import WrenchSensor, wrench_spec

logger = logging.getLogger(__name__)

START_AGAIN_S = 0.25  # without a record for so long, the stream is asked for once more
PAGE_S = 2.0
PAGE_BYTES = 1 << 18
DATAGRAM_BYTES = 2048  # more than a buffered stream's; what is longer is cut off and then no records
DATAGRAMS = 512  # at most in one read, so that the thread can end however fast they come

NO_ADDRESS = (
    "Net F/T at {address}: there is no such address ({error}); look at the sensor's network settings."
)
NO_PAGE = (
    "Net F/T at {address}: its scales cannot be read from {url} ({error}); give counts_per_force and "
    "counts_per_torque (on the sensor's web page, Configurations)."
)
SILENT = (
    "no record within {seconds:g} s from UDP port {port}; is it powered and on this network (`ping {host}`), is RDT "
    "enabled on its web page, and does no other program stream from it?"
)
STRANGE = (
    "{count} datagrams within {seconds:g} s from UDP port {port}, but no RDT record of 36 bytes among them; is it a "
    "Net F/T?"
)
REFUSED = "its computer answers that nothing listens on UDP port {port}; is it a Net F/T, and is RDT enabled?"
SERIOUS = "reports status 0x{status:08x}: {text}; {do}"
UNLOAD = "take the load off it"
LOOK = "look at its web page, switch it off and on"


class NetFTStream(SampleStream):
    """A stream of records to a socket that takes datagrams from the sensor only."""

    def __init__(self, config: NetFTConfig, scales: Scales):
        """Open a socket and ask for the stream.

        Raises:
            ConnectionError: There is no such address.
        """
        super().__init__()
        self.config, self.scales = config, scales
        self.identity = scales.identity
        self.counts = {"dropped": 0, "late": 0, "strange": 0}
        self._sequence = Sequence()
        self._strange_now = 0
        self._refused = False
        self._monitored = False
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                config.address, config.port, type=socket.SOCK_DGRAM
            )[0]
            self._socket = socket.socket(family, kind)
            # connected: the kernel drops what others send
            self._socket.connect(address)
        except OSError as error:
            raise ConnectionError(NO_ADDRESS.format(address=config.address, error=error.strerror)) from error
        self._socket.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLIN)
        self._ask()

    def read(self) -> list[tuple[float, NDArray[np.float32]]]:
        """See `SampleStream.read`."""
        self.fault = None
        samples = []
        for at_s, datagram in self._datagrams():
            records = records_in(datagram)
            if records is None:
                self.counts["strange"] += 1
                self._strange_now += 1
                continue
            self._heard_s, self._strange_now, self._refused = at_s, 0, False
            samples += [(at_s, self.scales.wrench(r.counts)) for r in records if self._is_good(r)]
        self.counts |= {"dropped": self._sequence.lost, "late": self._sequence.late}
        if time.perf_counter() - self._heard_s > START_AGAIN_S:
            self._ask()
        return samples

    def _datagrams(self) -> list[tuple[float, bytes]]:
        """What has come, waiting a little for the first."""
        found = []
        if not self._poller.poll(POLL_S * 1e3):
            return found
        try:
            while len(found) < DATAGRAMS:
                datagram = self._socket.recv(DATAGRAM_BYTES)
                found.append((time.perf_counter(), datagram))
        except BlockingIOError:
            pass
        except ConnectionRefusedError:  # an ICMP answer to what was sent before
            self._refused = True
            time.sleep(POLL_S)
        return found

    def _is_good(self, record: Record) -> bool:
        if not self._sequence.is_new(record):
            return False
        if is_serious(record.status):
            do = UNLOAD if record.status & SATURATION else LOOK
            self.fault = SERIOUS.format(status=record.status, text=status_text(record.status), do=do)
            return False
        self.fault = None
        if record.status and not self._monitored:
            logger.warning("Net F/T at %s: %s.", self.config.address, status_text(record.status))
        self._monitored = bool(record.status)
        return True

    def _ask(self) -> None:
        self._sequence.restart()
        self._send(START)
        self._heard_s = time.perf_counter()

    def _send(self, command: int) -> None:
        try:
            self._socket.send(request(command))
        except ConnectionRefusedError:  # an answer to what was sent before
            self._refused = True

    def why_silent(self) -> str:
        """See `SampleStream.why_silent`."""
        text = STRANGE if self._strange_now else REFUSED if self._refused else SILENT
        return text.format(
            seconds=SILENCE_S, port=self.config.port, host=self.config.address, count=self._strange_now
        )

    def close(self) -> None:
        """Tell the sensor to stop, and close the socket."""
        try:
            self._send(STOP)
        except OSError as error:
            logger.debug("Net F/T at %s: not stopped: %s", self.config.address, error)
        self._socket.close()


class NetFT(WrenchSensor):
    """Forces in N and torques in Nm, as the sensor's calibration and tool transformation give them."""

    config: NetFTConfig

    def __init__(self, config: NetFTConfig):
        """Prepare to connect; opens nothing."""
        super().__init__(config)
        self._scales: Scales | None = None

    def __str__(self) -> str:
        return f"Net F/T at {self.config.address}"

    @cached_property
    def raw_spec(self) -> ForceSensorSpec:
        """Fx, Fy, Fz in N and Mx, My, Mz in Nm, with rate and range as configured."""
        config = self.config
        return wrench_spec(config.rate_hz, config.force_limit_n, config.torque_limit_nm)

    def connect(self, warmup: bool = True) -> None:
        """As `StreamSensor.connect`; asks the sensor's page for its scales if the configuration has none."""
        if not self.is_connected:
            self._scales = self._find_scales()
        super().connect(warmup)

    def open_stream(self) -> NetFTStream:
        """See `StreamSensor.open_stream`."""
        return NetFTStream(self.config, self._scales)

    def _find_scales(self) -> Scales:
        config = self.config
        if config.counts_per_force is not None:
            return Scales(config.counts_per_force, config.counts_per_torque, {})
        url = f"http://{config.address}:{config.http_port}/netftapi2.xml"
        # no proxy: the sensor is on this network
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=PAGE_S) as answer:
                return scales_in(_read(answer))
        except (OSError, ValueError, HTTPException) as error:  # urllib's errors are OSErrors
            raise ConnectionError(NO_PAGE.format(address=config.address, url=url, error=error)) from error


def _read(answer: HTTPResponse) -> bytes:
    """The whole page.

    Raises:
        ValueError: It has no end, in bytes or in time.
    """
    page, until_s = b"", time.perf_counter() + PAGE_S
    while part := answer.read1(1 << 16):
        page += part
        if len(page) > PAGE_BYTES:
            raise ValueError(f"it is longer than {PAGE_BYTES} bytes")
        if time.perf_counter() > until_s:
            raise ValueError(f"it takes longer than {PAGE_S:g} s")
    return page
