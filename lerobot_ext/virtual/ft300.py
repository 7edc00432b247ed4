"""A Robotiq FT 300 on a pseudo-terminal: Modbus RTU registers, and the stream that one of them starts.

Written from the sensor's manual (4.4 Serial Communication), without the driver's code, so that a mistake in one of
them shows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from lerobot_ext.virtual.terminal import Terminal
from lerobot_ext.virtual.wrench import WrenchSource

SLAVE_ID = 9
RATE_HZ = 100
STREAM_REGISTER, STREAM_ON = 410, 0x0200
FORCE_REGISTER, SERIAL_REGISTER, YEAR_REGISTER = 180, 510, 514
SERIAL_WORDS = (0x4654, 0x532D, 0x0000, 0x0300)
YEAR = 2021
FULL_SCALE = np.array([300, 300, 300, 30, 30, 30], float)
COUNTS = np.array([100, 100, 100, 1000, 1000, 1000], float)
READ, WRITE = 3, 16
NO_FUNCTION, NO_REGISTER, BAD_VALUE = 1, 2, 3
STOPS = 20  # so many 0xFF in a row end the stream
MAX_REGISTERS = 32


@dataclass
class StreamFaults:
    """What is wrong with a stream, changeable while it runs.

    Attributes:
        silent: Sends nothing, answers nothing.
        garbage, cut, spoilt: Share of frames that get random bytes before them, lose some of theirs, or a flipped bit.
        seed: Of the choice.
    """

    silent: bool = False
    garbage: float = 0.0
    cut: float = 0.0
    spoilt: float = 0.0
    seed: int = 0
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def strike(self, frame: bytes) -> bytes:
        """What arrives of `frame`."""
        rng = self._rng
        if self.spoilt and rng.random() < self.spoilt:
            bit = int(rng.integers(8 * len(frame)))
            frame = bytes(byte ^ ((index == bit // 8) << bit % 8) for index, byte in enumerate(frame))
        if self.cut and rng.random() < self.cut:
            start = int(rng.integers(len(frame) - 1))
            frame = frame[:start] + frame[start + int(rng.integers(1, len(frame))) :]
        if self.garbage and rng.random() < self.garbage:
            frame = rng.bytes(int(rng.integers(1, 40))) + frame
        return frame


class FT300:
    """The sensor: it answers Modbus until the stream is started, then it streams until it hears enough 0xFF."""

    def __init__(self, seed: int = 0) -> None:
        self.source = WrenchSource(seed)
        self.streaming = False
        self._counts = np.zeros(6, np.int64)
        self._heard = bytearray()
        self._stops = 0

    def feed(self, data: bytes) -> bytes:
        """Take what the computer sent; return the answer."""
        if self.streaming:
            for byte in data:
                self._stops = self._stops + 1 if byte == 0xFF else 0
                if self._stops >= STOPS:
                    self.streaming = False
                    self._heard.clear()
            return b""
        self._stops = 0
        self._heard += data
        answer = b""
        while not self.streaming and (request := self._request()):
            answer += self._answer(request)
        return answer

    def step(self, force: np.ndarray) -> bytes:
        """Measure under `force` (N, (3,)); the frame of it while streaming, else nothing."""
        wrench = np.clip(self.source.measure(force), -FULL_SCALE, FULL_SCALE)
        self._counts = np.rint(wrench * COUNTS).astype(np.int64)
        if not self.streaming:
            return b""
        frame = b"\x20\x4e" + struct.pack("<6h", *self._counts.tolist())
        return frame + struct.pack("<H", modbus_crc(frame))

    def _request(self) -> bytes | None:
        """The next whole request in what was heard; bytes that are in none are dropped."""
        heard = self._heard
        while len(heard) >= 8:
            length = 8 if heard[1] != WRITE else 9 + heard[6]
            if heard[0] == SLAVE_ID and heard[1] in (READ, WRITE) and length > len(heard):
                return None
            request = bytes(heard[:length])
            if request[0] == SLAVE_ID and modbus_crc(request[:-2]) == int.from_bytes(request[-2:], "little"):
                del heard[:length]
                return request
            del heard[0]
        return None

    def _answer(self, request: bytes) -> bytes:
        function, register, count = struct.unpack(">BHH", request[1:6])
        if function == READ:
            words = [self._word(register + k) for k in range(min(count, MAX_REGISTERS))]
            if not words or None in words:
                return self._refusal(function, NO_REGISTER)
            body = bytes([SLAVE_ID, READ, 2 * len(words)]) + struct.pack(f">{len(words)}H", *words)
        elif function == WRITE:
            if (register, count) != (STREAM_REGISTER, 1):
                return self._refusal(function, NO_REGISTER)
            if request[7:9] != struct.pack(">H", STREAM_ON):
                return self._refusal(function, BAD_VALUE)
            self.streaming = True
            body = request[:6]
        else:
            return self._refusal(function, NO_FUNCTION)
        return body + struct.pack("<H", modbus_crc(body))

    def _refusal(self, function: int, code: int) -> bytes:
        body = bytes([SLAVE_ID, function | 0x80, code])
        return body + struct.pack("<H", modbus_crc(body))

    def _word(self, register: int) -> int | None:
        if 0 <= register - FORCE_REGISTER < 6:
            return int(self._counts[register - FORCE_REGISTER]) & 0xFFFF
        if 0 <= register - SERIAL_REGISTER < 4:
            return SERIAL_WORDS[register - SERIAL_REGISTER]
        return {YEAR_REGISTER: YEAR, STREAM_REGISTER: 0}.get(register)


class FT300Port:
    """The sensor behind a terminal; it costs nothing while no driver has the port open.

    Attributes:
        terminal: Made with `keep_open=False`; it may be unplugged and plugged in.
        sensor: Who speaks on it.
        faults: What is wrong with what it sends.
        read: Whether somebody had the port open at the last tick.
    """

    def __init__(self, terminal: Terminal, seed: int = 0) -> None:
        self.terminal = terminal
        self.sensor = FT300(seed)
        self.faults = StreamFaults()
        self.read = False

    def tick(self, force: np.ndarray) -> None:
        """A hundredth of a second has passed under `force`: hear, answer, stream."""
        heard = self.terminal.read()  # also what a driver said before it left
        if not self.terminal.listening:
            self.read = False
            self.sensor.feed(heard)
            return
        if not self.read:
            self.read = True
            self.terminal.forget()  # what an earlier reader left is not news to this one
        answer = self.sensor.feed(heard)
        frame = self.sensor.step(force)
        if self.faults.silent:
            return
        self.terminal.write(answer)
        if frame:
            self.terminal.write(self.faults.strike(frame))


def modbus_crc(data: bytes) -> int:
    """CRC-16 of the Modbus specification (serial line, appendix B), bit by bit."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            low = crc & 1
            crc >>= 1
            if low:
                crc ^= 0xA001
    return crc
