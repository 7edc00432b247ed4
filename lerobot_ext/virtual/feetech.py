"""Six Feetech STS3215 servos on one bus, as far as a driver can tell: packets in, status packets out.

Protocol 0 of Feetech's SCS/STS series (`FF FF id length instruction parameters checksum`) over the servo's memory
table. Bytes and registers only: which joint a servo turns, and how, is told by `sense` and asked by `drive`.
"""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lerobot_ext.virtual import trouble
from lerobot_ext.virtual.read_watch import ReadWatch
from lerobot_ext.virtual.world import JOINTS, Drive

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x04, 0x05, 0x82, 0x83
BROADCAST = 0xFE
TICKS = 4096  # of the magnetic encoder, per turn
RAD_PER_TICK = 2 * math.pi / TICKS
HALF_TURN = 2047

# (address, bytes); the same names and numbers as in lerobot/motors/feetech/tables.py, which a test compares.
# They stand here because importing that module imports torch, and the lab needs none of it.
REGISTERS = {
    "Firmware_Major_Version": (0, 1),
    "Firmware_Minor_Version": (1, 1),
    "Model_Number": (3, 2),
    "ID": (5, 1),
    "Response_Status_Level": (8, 1),
    "Min_Position_Limit": (9, 2),
    "Max_Position_Limit": (11, 2),
    "Max_Temperature_Limit": (13, 1),
    "Max_Voltage_Limit": (14, 1),
    "Min_Voltage_Limit": (15, 1),
    "Max_Torque_Limit": (16, 2),
    "Phase": (18, 1),
    "P_Coefficient": (21, 1),
    "D_Coefficient": (22, 1),
    "I_Coefficient": (23, 1),
    "Homing_Offset": (31, 2),
    "Operating_Mode": (33, 1),
    "Torque_Enable": (40, 1),
    "Goal_Position": (42, 2),
    "Torque_Limit": (48, 2),
    "Lock": (55, 1),
    "Present_Position": (56, 2),
    "Present_Velocity": (58, 2),
    "Present_Load": (60, 2),
    "Present_Voltage": (62, 1),
    "Present_Temperature": (63, 1),
    "Status": (65, 1),
    "Moving": (66, 1),
    "Present_Current": (69, 2),
}
SIGN_BITS = {
    "Homing_Offset": 11,
    "Goal_Position": 15,
    "Present_Position": 15,
    "Present_Velocity": 15,
    "Present_Load": 10,
}
READ_ONLY = frozenset((*range(0, 5), *range(56, 80)))
POWER_ON = {
    "Firmware_Major_Version": 3,
    "Firmware_Minor_Version": 10,
    "Model_Number": 777,
    "Response_Status_Level": 1,
    "Max_Position_Limit": TICKS - 1,
    "Max_Temperature_Limit": 70,
    "Max_Voltage_Limit": 140,
    "Min_Voltage_Limit": 40,
    "Max_Torque_Limit": 1000,
    "Phase": 12,
    "P_Coefficient": 32,
    "D_Coefficient": 32,
    "Torque_Limit": 1000,
    "Lock": 1,
    "Present_Voltage": 121,
    "Present_Temperature": 31,
}
USUAL_P = 16  # what LeRobot writes into P_Coefficient; the world's stiffness 1


@dataclass(frozen=True)
class ServoSpec:
    """One servo as it was built into an arm and calibrated.

    Attributes:
        id: Its address on the bus.
        homing_offset: Encoder ticks; Present_Position = encoder - homing_offset.
        range_min, range_max: Calibrated range of Present_Position.
        zero: Present_Position where the joint's angle is 0.
    """

    id: int
    homing_offset: int
    range_min: int
    range_max: int
    zero: float


def arm_specs(homing_offsets: Sequence[int]) -> dict[str, ServoSpec]:
    """Servos of a calibrated arm by joint; only the homing offsets differ from arm to arm."""
    reach = {"shoulder_pan": 1251, "shoulder_lift": 1140, "elbow_flex": 1101, "wrist_flex": 1082}
    specs = {}
    for number, (name, offset) in enumerate(zip(JOINTS, homing_offsets, strict=True), start=1):
        if name == "gripper":  # closed at one end of its range
            low, high, zero = 1477, 2618, 1477.0
        elif name == "wrist_roll":  # turns without end: LeRobot gives it the whole range
            low, high, zero = 0, TICKS - 1, (TICKS - 1) / 2
        else:
            low, high, zero = HALF_TURN - reach[name], HALF_TURN + reach[name], float(HALF_TURN)
        specs[name] = ServoSpec(number, offset, low, high, zero)
    return specs


FOLLOWER = arm_specs((-83, 412, -1021, 655, 204, -338))
LEADER = arm_specs((127, -569, 840, -31, 377, 1002))
LEFT_FOLLOWER = arm_specs((291, -148, 733, -902, -57, 466))
LEFT_LEADER = arm_specs((-640, 218, -95, 512, -811, 73))


def write_calibration(path: Path, specs: dict[str, ServoSpec]) -> None:
    """Write what LeRobot's `calibrate()` would have written for that arm (`MotorCalibration` by joint, JSON)."""
    calibration = {
        name: {
            "id": spec.id,
            "drive_mode": 0,
            "homing_offset": spec.homing_offset,
            "range_min": spec.range_min,
            "range_max": spec.range_max,
        }
        for name, spec in specs.items()
    }
    path.write_text(json.dumps(calibration, indent=4))


@dataclass(frozen=True)
class Faults:
    """Shares (0 to 1) of status packets that are lost, arrive with a flipped bit or without their end."""

    drop: float = 0.0
    corrupt: float = 0.0
    seed: int = 0
    truncate: float = 0.0


class Servo:
    """The memory of one servo."""

    def __init__(self, spec: ServoSpec) -> None:
        self.memory = bytearray(256)
        self._encoder_zero = spec.zero + spec.homing_offset
        for name, value in POWER_ON.items():
            self.set(name, value)
        self.set("ID", spec.id)
        self.set("Homing_Offset", spec.homing_offset)
        self.set("Min_Position_Limit", spec.range_min)
        self.set("Max_Position_Limit", spec.range_max)
        self.pending: tuple[int, bytes] | None = None
        self.sense(0.0, 0.0, 0.0)

    @property
    def id(self) -> int:
        """Its address on the bus; asked so often that it has a short way of its own."""
        return self.memory[REGISTERS["ID"][0]]

    def get(self, name: str) -> int:
        """A register's value, its sign decoded."""
        address, length = REGISTERS[name]
        value = int.from_bytes(self.memory[address : address + length], "little")
        bit = SIGN_BITS.get(name)
        if bit is None:
            return value
        magnitude = value & ((1 << bit) - 1)
        return -magnitude if value >> bit & 1 else magnitude

    def set(self, name: str, value: int) -> None:
        """Set a register, its sign encoded as magnitude and sign bit."""
        address, length = REGISTERS[name]
        bit = SIGN_BITS.get(name)
        if bit is not None:
            value = min(abs(value), (1 << bit) - 1) | (1 << bit if value < 0 else 0)
        self.memory[address : address + length] = value.to_bytes(length, "little")

    def sense(self, angle: float, velocity: float, load: float) -> None:
        """Show the joint's angle (rad), velocity (rad/s) and load (-1 to 1 of the stall torque)."""
        encoder = round(self._encoder_zero + angle / RAD_PER_TICK)
        self.set("Present_Position", (encoder - self.get("Homing_Offset")) % TICKS)
        self.set("Present_Velocity", round(velocity / RAD_PER_TICK))
        self.set("Present_Load", round(load * 1000))
        self.set(
            "Present_Current", min(0xFFFF, round(abs(load) * 2700 / 6.5))
        )  # 2.7 A at stall, 6.5 mA a count
        self.set("Moving", int(abs(velocity) > 0.02))

    @property
    def goal(self) -> float:
        """The angle (rad) that Goal_Position asks for, within the position limits."""
        low, high = self.get("Min_Position_Limit"), self.get("Max_Position_Limit")
        ticks = self.get("Goal_Position")
        if low < high:
            ticks = min(max(ticks, low), high)
        turns = (ticks + self.get("Homing_Offset") - self._encoder_zero) / TICKS
        return (turns - math.floor(turns + 0.5)) * 2 * math.pi

    def write(self, address: int, data: bytes) -> None:
        """Store `data` as the bus asked; read-only bytes stay as they are."""
        was_on = self.get("Torque_Enable")
        for offset, byte in enumerate(data):
            if address + offset not in READ_ONLY and address + offset < len(self.memory):
                self.memory[address + offset] = byte
        if self.get("Torque_Enable") and not was_on:
            self.set("Goal_Position", self.get("Present_Position"))  # it holds where it is


class ServoBus:
    """The servos of one arm behind one port; `feed` answers bytes, `sense` and `drive` join them to the joints."""

    def __init__(self, specs: dict[str, ServoSpec], faults: Faults | None = None) -> None:
        self.servos = [Servo(spec) for spec in specs.values()]
        self.positions_read = ReadWatch()
        self.skipped = 0  # bytes that belonged to no packet
        self._usual = self._faults = faults or Faults()
        self._silent: frozenset[int] = frozenset()  # ids of servos without a cable
        self._luck = random.Random(self._faults.seed)
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._sensed = (np.zeros(len(self.servos)),) * 3
        self._shown = False  # whether the registers show what was sensed last
        self._drive: Drive | None = None

    @property
    def faults(self) -> Faults:
        """What happens to status packets on their way; may be set at any time."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults

    def trouble(self, fault: str) -> None:
        """Have the fault that `trouble.py` describes instead of the one before; empty: as it was at first."""
        word, argument = trouble.split(fault)
        with self._lock:
            self._faults = self._usual
            if word in trouble.SHARES:
                self._faults = replace(self._usual, **{word: float(argument)})
            self._silent = frozenset(
                servo.id
                for servo in self.servos
                if word == trouble.FROZEN or (word == trouble.SILENT and argument == str(servo.id))
            )
            for servo in self.servos:
                ails = argument == str(servo.id)
                servo.set("Status", trouble.ERROR_BITS.get(word, 0) if ails else 0)

    def sense(self, angles: np.ndarray, velocities: np.ndarray, loads: np.ndarray) -> None:
        """Show the joints' state to the servos; arrays of shape (6,) in rad, rad/s and shares of the stall torque."""
        with self._lock:
            self._sensed, self._shown = (angles, velocities, loads), False

    def drive(self) -> Drive:
        """What the servos ask of their motors now."""
        with self._lock:
            if self._drive is None:
                servos = self.servos
                self._drive = Drive(
                    goal=np.array([servo.goal for servo in servos]),
                    powered=np.array([servo.get("Torque_Enable") == 1 for servo in servos]),
                    stiffness=np.array([servo.get("P_Coefficient") / USUAL_P for servo in servos]),
                    torque=np.array([min(servo.get("Torque_Limit") / 1000, 1.0) for servo in servos]),
                )
            return self._drive

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the bus and return the status packets they cause; half a packet waits for the rest."""
        self._buffer += data
        answer = b""
        while True:
            start = self._buffer.find(b"\xff\xff")
            if start < 0:
                self._skip(max(0, len(self._buffer) - 1))
                return answer
            self._skip(start)
            if len(self._buffer) < 4:
                return answer
            length = self._buffer[3]
            if self._buffer[2] == 0xFF or not 2 <= length <= 250:  # a header cannot start here
                self._skip(1)
                continue
            if len(self._buffer) < 4 + length:
                return answer
            packet = bytes(self._buffer[: 4 + length])
            if checksum(packet[2:-1]) != packet[-1]:
                self._skip(2)
                continue
            del self._buffer[: 4 + length]
            with self._lock:
                self._refresh()
                answer += b"".join(map(self._spoil, self._execute(packet[2], packet[4], packet[5:-1])))
                if packet[4] not in (PING, READ, SYNC_READ):
                    self._drive, self._shown = None, False  # a new homing offset moves the position shown

    def _skip(self, n_bytes: int) -> None:
        del self._buffer[:n_bytes]
        self.skipped += n_bytes

    def _refresh(self) -> None:
        """Bring the registers up to what was sensed last; most of it is never read, so it waits until now."""
        if not self._shown:
            for servo, *state in zip(self.servos, *self._sensed, strict=True):
                servo.sense(*map(float, state))
            self._shown = True

    def _execute(self, address: int, instruction: int, parameters: bytes) -> list[bytes]:
        """Carry out one instruction; returns the status packets, in the order of the bus."""
        if instruction == SYNC_READ and len(parameters) >= 2:
            start, count, ids = parameters[0], parameters[1], parameters[2:]
            return [self._read(servo, start, count) for id_ in ids for servo in self._of(id_)]
        if instruction == SYNC_WRITE and len(parameters) >= 2:
            start, count = parameters[:2]
            for offset in range(2, len(parameters) - count, count + 1):
                for servo in self._of(parameters[offset]):
                    servo.write(start, parameters[offset + 1 : offset + 1 + count])
            return []
        return [
            packet
            for servo in self._of(address)
            if (packet := self._single(servo, instruction, parameters)) is not None
            and (address != BROADCAST or instruction == PING)
        ]

    def _single(self, servo: Servo, instruction: int, parameters: bytes) -> bytes | None:
        if instruction == PING:
            return status(servo)
        if instruction == READ and len(parameters) == 2:
            return self._read(servo, *parameters)
        if instruction == WRITE and len(parameters) >= 2:
            servo.write(parameters[0], parameters[1:])
        elif instruction == REG_WRITE and len(parameters) >= 2:
            servo.pending = (parameters[0], parameters[1:])
        elif instruction == ACTION:
            if servo.pending:
                servo.write(*servo.pending)
            servo.pending = None
        else:
            return None
        return status(servo) if servo.get("Response_Status_Level") else None

    def _read(self, servo: Servo, start: int, count: int) -> bytes:
        address, length = REGISTERS["Present_Position"]
        if start <= address and address + length <= start + count:
            self.positions_read.note()
        return status(servo, bytes(servo.memory[start : start + count]))

    def _of(self, id_: int) -> list[Servo]:
        return [
            servo for servo in self.servos if id_ in (BROADCAST, servo.id) and servo.id not in self._silent
        ]

    def _spoil(self, packet: bytes) -> bytes:
        """The packet as it arrives."""
        if self._faults.drop and self._luck.random() < self._faults.drop:
            return b""
        if self._faults.corrupt and self._luck.random() < self._faults.corrupt:
            spoilt = bytearray(packet)
            spoilt[self._luck.randrange(len(spoilt))] ^= 1 << self._luck.randrange(8)
            return bytes(spoilt)
        if self._faults.truncate and self._luck.random() < self._faults.truncate:
            return packet[: self._luck.randrange(1, len(packet))]
        return packet


def checksum(body: bytes) -> int:
    """Low byte of the complement of the sum of everything between the header and the checksum."""
    return ~sum(body) & 0xFF


def status(servo: Servo, data: bytes = b"") -> bytes:
    """A status packet: `FF FF id length error data checksum`; its error is what the register Status shows."""
    body = bytes([servo.id, len(data) + 2, servo.get("Status")]) + data
    return b"\xff\xff" + body + bytes([checksum(body)])
