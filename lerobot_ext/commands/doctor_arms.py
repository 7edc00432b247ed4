"""Follower or leader? Both have the same servos, so the doctor judges by what is in their memory, and says how sure.

Best is a calibration file whose numbers the servos hold: LeRobot writes them into both at once. Else LeRobot's
limits of a follower's gripper, then the supply's voltage, then that the other arm is the other. Nothing is opened here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lerobot_ext.commands.doctor_servos import MOTORS, Servo

FOLLOWER, LEADER = "follower", "leader"
SURE, LIKELY, UNKNOWN = "sure", "likely", "unknown"
OTHER = {FOLLOWER: LEADER, LEADER: FOLLOWER}
ENOUGH = 4  # of six homing offsets that agree are no accident
FOLLOWER_VOLTAGE_V = 9.0  # above what 7.4 V motors take, which leaders have
GRIPPER_LIMITS = (
    500,
    250,
)  # Max_Torque_Limit, Protection_Current: lerobot's SOFollower.configure writes them
SILENCE_ADVICE = "unplug one of the two arms and look again, or calibrate both: then the doctor knows them"


@dataclass(frozen=True)
class Calibration:
    """One calibration file.

    Attributes:
        role: Whose folder it is in: FOLLOWER or LEADER.
        id: Its name, which is the arm's `id`.
        path: The file.
        motors: By id: homing offset, smallest and largest position.
    """

    role: str
    id: str
    path: Path
    motors: dict[int, tuple[int, int, int]]

    def agrees(self, servos: Mapping[int, Servo]) -> int:
        """How many servos hold its homing offsets."""
        return sum(
            number in servos and servos[number].homing_offset == held[0]
            for number, held in self.motors.items()
        )

    def differing(self, servos: Mapping[int, Servo]) -> list[int]:
        """Ids of the servos there that hold other numbers: for these, LeRobot asks to calibrate."""
        return [
            number
            for number, held in self.motors.items()
            if number in servos
            and held != (servos[number].homing_offset, servos[number].range_min, servos[number].range_max)
        ]


@dataclass(frozen=True)
class Role:
    """What an arm was found to be.

    Attributes:
        name: FOLLOWER, LEADER, or empty.
        sureness: SURE, LIKELY or UNKNOWN.
        why: In words.
        calibration: The file that its servos hold, if there is one.
    """

    name: str
    sureness: str
    why: str
    calibration: Calibration | None = None

    @property
    def id(self) -> str:
        """The arm's id by its calibration file; empty if there is none."""
        return self.calibration.id if self.calibration else ""

    def __str__(self) -> str:
        if not self.name:
            return f"an arm, follower or leader is not known ({self.why})"
        id_ = f" '{self.id}'" if self.id else ""
        return f"{self.name}{id_} ({self.sureness}: {self.why})"


def judge(arms: Mapping[str, Mapping[int, Servo]], files: Iterable[Calibration]) -> dict[str, Role]:
    """The role of each arm.

    Args:
        arms: Servos by id, by port.
        files: All calibration files there are.

    Returns:
        A role for each port of `arms`.
    """
    files = list(files)
    roles = {port: _by_memory(servos, files) for port, servos in arms.items()}
    for port, servos in arms.items():
        others_low = all(_voltage(other) < FOLLOWER_VOLTAGE_V for name, other in arms.items() if name != port)
        if not roles[port].name and _voltage(servos) >= FOLLOWER_VOLTAGE_V and others_low:
            why = f"it runs on {_voltage(servos):.1f} V; leaders' motors take 7.4 V"
            roles[port] = replace(roles[port], name=FOLLOWER, sureness=LIKELY, why=why)
    unknown = [port for port, role in roles.items() if not role.name]
    if len(arms) == 2 and len(unknown) == 1:
        (other,) = (role for port, role in roles.items() if port != unknown[0])
        why = f"the other arm is the {other.name}"
        roles[unknown[0]] = Role(OTHER[other.name], LIKELY, why)
    return roles


def _by_memory(servos: Mapping[int, Servo], files: list[Calibration]) -> Role:
    best = max((file.agrees(servos) for file in files), default=0)
    agreeing = [file for file in files if file.agrees(servos) == best] if best >= ENOUGH else []
    if len({file.role for file in agreeing}) == 1:
        file = agreeing[0]
        others = file.differing(servos)
        if best == len(MOTORS) and not others:
            return Role(file.role, SURE, "its motors hold that calibration", file)
        why = f"{best} of {len(MOTORS)} homing offsets are those of that calibration"
        return Role(file.role, LIKELY, why, file)
    gripper = servos.get(len(MOTORS))
    if gripper is not None and (gripper.max_torque, gripper.protection_current) == GRIPPER_LIMITS:
        return Role(FOLLOWER, LIKELY, "its gripper has LeRobot's limits for a follower")
    if agreeing:
        return Role("", UNKNOWN, "a follower's and a leader's calibration file hold the same numbers")
    return Role("", UNKNOWN, "its motors hold no calibration that there is a file of")


def _voltage(servos: Mapping[int, Servo]) -> float:
    return max((servo.voltage_v or 0.0 for servo in servos.values()), default=0.0)


def calibrations(root: Path, *more: tuple[str, Path]) -> list[Calibration]:
    """The calibration files below `root` (LeRobot's HF_LEROBOT_CALIBRATION), and `more` as (role, file)."""
    places = [
        (role, file)
        for role, folder, kind in ((FOLLOWER, "robots", "*follower*"), (LEADER, "teleoperators", "*leader*"))
        for file in sorted((root / folder).glob(f"{kind}/*.json"))
    ]
    found = [read(role, file) for role, file in dict.fromkeys([*places, *more])]
    return [file for file in found if file is not None]


def read(role: str, path: Path) -> Calibration | None:
    """A calibration file as LeRobot writes it; None if it is none."""
    try:
        motors = {
            int(motor["id"]): (int(motor["homing_offset"]), int(motor["range_min"]), int(motor["range_max"]))
            for motor in json.loads(path.read_text()).values()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Calibration(role, path.stem, path, motors)
