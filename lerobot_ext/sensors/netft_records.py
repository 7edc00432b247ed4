"""What an ATI Net F/T sends and is told: RDT requests and records, its status word, its scales. No socket here.

Source: ATI's RDT protocol (manual 9610-05-1022: UDP interface using RDT, system status code, netftapi2.xml) as public
drivers write it down; the manual itself was not at hand, and no sensor was.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

REQUEST = struct.Struct(">HHI")  # 0x1234, command, how many records (0: until told to stop)
RECORD = struct.Struct(">3I6i")  # rdt_sequence, ft_sequence, status, Fx Fy Fz Tx Ty Tz in counts
MAGIC = 0x1234
STOP, START = 0x0000, 0x0002  # 2: real time, a datagram for each record
MAX_RECORDS = 40  # in a datagram of the buffered mode
WRAP = 1 << 32
RESTARTED = 1 << 20  # a sequence further behind than this is a new one, not a late datagram

ANY_ERROR, MONITOR = 1 << 31, 1 << 16
STATUS_BITS = {
    30: "CPU or RAM error",
    29: "digital board error",
    28: "analog board error",
    27: "serial link communication error",
    26: "program memory verification error",
    25: "halted due to configuration errors",
    24: "settings validation error",
    23: "configuration settings incompatible with the calibration",
    22: "network communication failure",
    21: "CAN communication error",
    20: "RDT communication error",
    19: "EtherNet/IP protocol failure",
    18: "DeviceNet protocol failure",
    17: "transducer saturation or A/D operation error",
    16: "a monitor condition is latched",
    14: "watchdog timeout",
    13: "stack check error",
    12: "serial EEPROM failure",
    11: "serial flash failure",
    10: "analog board watchdog timeout",
    9: "excessive strain gage excitation current",
    8: "insufficient strain gage excitation current",
    7: "artificial analog ground out of range",
    6: "analog board power supply too high",
    5: "analog board power supply too low",
    4: "serial link data unavailable",
    3: "reference voltage or power monitoring error",
    2: "internal temperature error",
    1: "HTTP protocol failure",
}
SATURATION = 1 << 17

# Newtons and newton metres in the units that a sensor can be set to, by their names in netftapi2.xml.
FORCE_UNITS = {"N": 1.0, "kN": 1000.0, "lbf": 4.4482216, "klbf": 4448.2216, "kgf": 9.80665}
TORQUE_UNITS = {
    "N-m": 1.0,
    "Nm": 1.0,
    "N-mm": 0.001,
    "Nmm": 0.001,
    "kN-m": 1000.0,
    "lbf-in": 0.11298483,
    "lbf-ft": 1.3558179,
    "kgf-cm": 0.0980665,
}


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        rdt: Its number within the stream.
        ft: The number of the measurement, since the sensor was powered.
        status: The system status code.
        counts: (6,) float64: Fx, Fy, Fz, Tx, Ty, Tz.
    """

    rdt: int
    ft: int
    status: int
    counts: NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """Counts in a newton and in a newton metre, and what else the sensor's page says.

    Attributes:
        force, torque: Counts.
        identity: Product and serial number, if they are there.
    """

    force: float
    torque: float
    identity: dict[str, str]

    def wrench(self, counts: NDArray[np.float64]) -> NDArray[np.float32]:
        """(6,) float32 in N and Nm."""
        return (counts / self._counts).astype(np.float32)

    @cached_property
    def _counts(self) -> NDArray[np.float64]:
        return np.repeat([self.force, self.torque], 3)


def request(command: int, records: int = 0) -> bytes:
    """The eight bytes of a request."""
    return REQUEST.pack(MAGIC, command, records)


def records_in(datagram: bytes) -> list[Record] | None:
    """The records of a datagram; None if it is none of an RDT stream."""
    if not datagram or len(datagram) % RECORD.size or len(datagram) > MAX_RECORDS * RECORD.size:
        return None
    return [
        Record(rdt, ft, status, np.array(counts, np.float64))
        for rdt, ft, status, *counts in RECORD.iter_unpack(datagram)
    ]


def is_serious(status: int) -> bool:
    """Whether forces with this status must not be used; a latched monitor condition says nothing against them."""
    return bool(status & ~(ANY_ERROR | MONITOR)) or status == ANY_ERROR


def status_text(status: int) -> str:
    """The status in words."""
    words = [text for bit, text in STATUS_BITS.items() if status >> bit & 1]
    return ", ".join(words) or ("an error that it does not name" if status else "healthy")


class Sequence:
    """Which records are new: order, gaps and repetitions.

    Attributes:
        lost: Records that never came.
        late: Records that came after a newer one, or twice.
    """

    def __init__(self) -> None:
        """No record came yet."""
        self.lost = self.late = 0
        self._last: Record | None = None

    def restart(self) -> None:
        """A new stream was asked for: its first record may have any number."""
        self._last = None

    def is_new(self, record: Record) -> bool:
        """Whether `record` is newer than all before; counts what is missing between."""
        last = self._last
        if last is not None:
            # the measurement's number goes on when a stream is started anew, the record's does not
            if -RESTARTED < _ahead(record.ft, last.ft) <= 0:
                self.late += 1
                return False
            self.lost += max(0, _ahead(record.rdt, last.rdt) - 1)
        self._last = record
        return True


def _ahead(number: int, other: int) -> int:
    """How far `number` is ahead of `other`, both counted modulo 2^32."""
    return (number - other + WRAP // 2) % WRAP - WRAP // 2


def scales_in(page: bytes) -> Scales:
    """The scales that `netftapi2.xml` gives, for N and Nm whatever units the sensor is set to.

    Raises:
        ValueError: It is not that page, or its numbers cannot be.
    """
    if b"<!DOCTYPE" in page or b"<!ENTITY" in page:  # entities can be made to grow without end
        raise ValueError("has a document type, expected none")
    try:
        root = ET.fromstring(page)
    except ET.ParseError as error:
        raise ValueError(f"is not XML ({error})") from None
    said = {element.tag.rsplit("}", 1)[-1]: (element.text or "").strip() for element in root.iter()}
    scales = []
    for counts, unit, units in (("cfgcpf", "scfgfu", FORCE_UNITS), ("cfgcpt", "scfgtu", TORQUE_UNITS)):
        try:
            number = float(said[counts])
            newtons = units[said[unit]]
        except (KeyError, ValueError):
            expected = f"a number in <{counts}> and one of {', '.join(units)} in <{unit}>"
            raise ValueError(
                f"has {said.get(counts)!r} and {said.get(unit)!r}, expected {expected}"
            ) from None
        if not 0 < number < float("inf"):
            raise ValueError(f"has {number} in <{counts}>, expected a number above 0")
        scales.append(number / newtons)
    names = {"serial_number": "setserial", "product": "prodname", "firmware": "digfwver"}
    identity = {name: said[tag] for name, tag in names.items() if said.get(tag)}
    return Scales(scales[0], scales[1], identity)
