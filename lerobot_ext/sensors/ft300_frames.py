"""What a Robotiq FT 300 says on its serial line: frames of its stream, and Modbus RTU. No port and no time here.

Source: Robotiq FT 300 Instruction Manual, 4.4 Serial Communication (FT 150 and FT 300-S alike), and the Modbus over
serial line specification for the requests and the CRC.
"""

from __future__ import annotations

import struct

import numpy as np

from lerobot_ext.sensors.frames import Frame

HEADER = b"\x20\x4e"
FRAME = struct.Struct("<2s6hH")  # header, Fx Fy Fz (N x 100), Mx My Mz (Nm x 1000), CRC of what is before it
SCALE = np.array([100, 100, 100, 1000, 1000, 1000], np.float32)
STREAM_REGISTER, STREAM_ON = 410, 0x0200
SERIAL_REGISTER, YEAR_REGISTER = 510, 514  # four registers and one
STOP = b"\xff" * 50  # "sending a series of 0xff"
READ, WRITE, REFUSED = 3, 16, 0x80


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ 0xA001 if value & 1 else value >> 1
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc16(data: bytes) -> int:
    """Modbus' CRC: polynomial 0xA001 reflected, from 0xFFFF; it is sent low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


def with_crc(data: bytes) -> bytes:
    """`data` and its CRC."""
    return data + struct.pack("<H", crc16(data))


def has_crc(data: bytes) -> bool:
    """Whether `data` ends with the CRC of what is before."""
    return len(data) > 2 and crc16(data[:-2]) == int.from_bytes(data[-2:], "little")


def read_request(slave_id: int, register: int, count: int) -> bytes:
    """Ask for `count` holding registers (function 3)."""
    return with_crc(struct.pack(">BBHH", slave_id, READ, register, count))


def write_request(slave_id: int, register: int, value: int) -> bytes:
    """Set one register (function 16, which is what the manual uses)."""
    return with_crc(struct.pack(">BBHHBH", slave_id, WRITE, register, 1, 2, value))


def registers_in(data: bytes, slave_id: int, count: int) -> list[int] | None:
    """The registers of an answer to `read_request` that stands somewhere in `data`; None if there is none."""
    start = bytes([slave_id, READ, 2 * count])
    at = data.find(start)
    while at >= 0:
        answer = data[at : at + 5 + 2 * count]
        if len(answer) == 5 + 2 * count and has_crc(answer):
            return list(struct.unpack(f">{count}H", answer[3:-2]))
        at = data.find(start, at + 1)
    return None


class FT300Finder:
    """Cuts the stream's frames out of bytes: a header and a CRC that fits make one.

    Attributes:
        spoilt: Headers whose CRC did not fit: frames that were cut or changed on their way.
        resynced: How often there was something else between two frames.
    """

    size = FRAME.size

    def __init__(self) -> None:
        """Nothing was fed yet."""
        self.spoilt = self.resynced = 0
        self._buffer = bytearray()
        self._before = 0  # bytes of the stream before the buffer
        self._in_step = self._begun = False

    @property
    def counts(self) -> dict[str, int]:
        """See `frames.FrameFinder.counts`."""
        return {"dropped": self.spoilt, "resynced": self.resynced}

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes; return the frames that are complete: (6,) float32 in N and Nm."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= self.size:
            if not self._buffer.startswith(HEADER):
                self._skip()
            elif not has_crc(bytes(self._buffer[: self.size])):
                self.spoilt += 1
                self._drop(1)
                self._in_step = False
            else:
                _, *numbers, _ = FRAME.unpack_from(self._buffer)
                frames.append(Frame(self._before, np.array(numbers, np.float32) / SCALE))
                self.resynced += self._begun and not self._in_step
                self._in_step = self._begun = True
                self._drop(self.size)
        return frames

    def _skip(self) -> None:
        at = self._buffer.find(HEADER)
        if at < 0:  # the last byte may be the first of a header
            at = len(self._buffer) - 1
        self._drop(at)
        self._in_step = False

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._before += count
