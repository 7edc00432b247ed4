"""What the doctor asks of Feetech servos: are they there, how do they feel, what does their memory hold. Reads only.

Packets are Feetech's protocol 0: `FF FF id length instruction parameters checksum`, answered by `FF FF id length error
data checksum`. Nothing is written to a servo and no torque is touched. Which arm it is, is judged in `doctor_arms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

BAUDRATE = 1_000_000
PING, READ = 0x01, 0x02
STS3215 = 777
MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")  # ids 1 to 6
MODEL = (3, 2)  # where it stands in the memory table, and its bytes
FIRST_WAIT_S, SECOND_WAIT_S = 0.03, 0.06  # a USB adapter that waits for more (FTDI) adds 16 ms
TRIES = 3


class Line(Protocol):
    """A serial port as it is needed here."""

    def exchange(self, request: bytes, length: int, timeout_s: float) -> bytes:
        """Forget what was received, send `request`, and return what comes until `length` bytes or the time is up."""


@dataclass(frozen=True)
class Servo:
    """What one servo told.

    Attributes:
        id: Its address.
        model: Model number; 777 is an STS3215.
        errors: Error bits of its answers; `lerobot_ext.robots.servo_errors` has the words.
        voltage_v, min_voltage_v, max_voltage_v: Of the supply, and what the servo accepts.
        temperature_c, max_temperature_c: Likewise.
        torque: Whether it holds its position.
        homing_offset, range_min, range_max: The calibration in its memory, encoder ticks.
        max_torque, protection_current: LeRobot sets both on a follower's gripper only.
    """

    id: int
    model: int
    errors: int = 0
    voltage_v: float | None = None
    min_voltage_v: float | None = None
    max_voltage_v: float | None = None
    temperature_c: int | None = None
    max_temperature_c: int | None = None
    torque: bool | None = None
    homing_offset: int | None = None
    range_min: int | None = None
    range_max: int | None = None
    max_torque: int | None = None
    protection_current: int | None = None

    @property
    def name(self) -> str:
        """`3 (elbow_flex)`."""
        return motor_name(self.id)


def motor_name(number: int) -> str:
    """`3 (elbow_flex)`, as LeRobot numbers the motors of an SO arm."""
    return f"{number} ({MOTORS[number - 1]})" if 1 <= number <= len(MOTORS) else str(number)


def find(line: Line) -> dict[int, Servo]:
    """The servos with ids 1 to 6 that answer on `line`, which must be at BAUDRATE.

    Takes 0.6 s if none answers. Something that only repeats what it is sent is not taken for a servo.
    """
    there: list[int] = []
    for wait_s in (FIRST_WAIT_S, SECOND_WAIT_S):
        there += [i for i in range(1, 7) if i not in there and _answer(line, i, PING, b"", 0, wait_s)]
    servos = (_examine(line, number) for number in sorted(there))
    return {servo.id: servo for servo in servos if servo is not None}


def _examine(line: Line, number: int) -> Servo | None:
    told = _read(line, number, *MODEL)
    if told is None:
        return None
    errors, facts = told[0], {"model": _number(told[1])}
    for stretch, meaning in MEANINGS.items():
        told = _read(line, number, *stretch)
        if told is not None:
            errors |= told[0]
            facts |= meaning(told[1])
    return Servo(number, errors=errors, **facts)


def _read(line: Line, number: int, address: int, count: int) -> tuple[int, bytes] | None:
    """Error byte and `count` bytes of the memory; None if no whole answer came in TRIES."""
    for _ in range(TRIES):
        told = _answer(line, number, READ, bytes((address, count)), count, SECOND_WAIT_S)
        if told is not None:
            return told
    return None


def _answer(
    line: Line, number: int, instruction: int, parameters: bytes, count: int, wait_s: float
) -> tuple[int, bytes] | None:
    request = packet(number, instruction, parameters)
    received = line.exchange(request, 6 + count, wait_s)
    echo = instruction != PING and received == request  # an answer to a ping can look like the ping
    start = received.find(bytes((0xFF, 0xFF, number, count + 2)))
    answer = received[start : start + 6 + count]
    if start < 0 or echo or len(answer) < 6 + count or checksum(answer[2:-1]) != answer[-1]:
        return None
    return answer[4], answer[5:-1]


def packet(number: int, instruction: int, parameters: bytes = b"") -> bytes:
    """An instruction packet."""
    body = bytes((number, len(parameters) + 2, instruction)) + parameters
    return b"\xff\xff" + body + bytes((checksum(body),))


def checksum(body: bytes) -> int:
    """Of a packet from its id on: the low byte of the complement of the sum."""
    return ~sum(body) & 0xFF


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _signed(value: int, bit: int) -> int:
    """Feetech's sign: one bit above the magnitude."""
    magnitude = value & ((1 << bit) - 1)
    return -magnitude if value >> bit & 1 else magnitude


# What else is read, as (address, bytes), and what it means; lerobot/motors/feetech/tables.py names the addresses.
MEANINGS: dict[tuple[int, int], Callable[[bytes], dict[str, Any]]] = {
    (9, 9): lambda data: {
        "range_min": _number(data[0:2]),
        "range_max": _number(data[2:4]),
        "max_temperature_c": data[4],
        "max_voltage_v": data[5] / 10,
        "min_voltage_v": data[6] / 10,
        "max_torque": _number(data[7:9]),
    },
    (28, 2): lambda data: {"protection_current": _number(data)},
    (31, 2): lambda data: {"homing_offset": _signed(_number(data), 11)},
    (40, 1): lambda data: {"torque": bool(data[0])},
    (62, 2): lambda data: {"voltage_v": data[0] / 10, "temperature_c": data[1]},
}
