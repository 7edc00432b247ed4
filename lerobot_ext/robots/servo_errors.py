"""The error bits of a Feetech servo in words, and who of an arm's servos shows which.

Every status packet carries them, also one whose data is good. LeRobot's single reads fail on them and its reads of
all servos throw them away; here they are kept and warned of, once when they appear.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)

AGAIN_S = 60.0  # a servo that comes and goes is warned of once a minute


@dataclass(frozen=True)
class ServoError:
    """One bit of the error byte, which is also the register Status (65) of an STS3215."""

    bit: int
    word: str
    remedy: str


# Bits: Feetech's memory table of the STS series ("servo status"), scservo_sdk's ERRBIT_*.
ERRORS = (
    ServoError(
        1,
        "voltage",
        "its supply is too low or too high: see that the supply has the servos' voltage (5 V for the 7.4 V servos, "
        "12 V for the 12 V ones) and enough current, and that its plug and the cable to the servo sit firmly",
    ),
    ServoError(2, "angle sensor", "its encoder reads nothing sensible: power-cycle the arm; if it stays, replace it"),
    ServoError(4, "overheat", "let it cool with the power off, then lower the load or rest more often"),
    ServoError(8, "overcurrent", "it is blocked or short of power: free it and power-cycle the arm"),
    ServoError(
        32, "overload", "it pushes against something: let go or lower the load; power-cycle the arm if it stays limp"
    ),
)  # fmt: skip


def in_words(bits: int) -> str:
    """The error byte `bits` as words: "overload, overheat"; empty if it is 0."""
    known = [error.word for error in ERRORS if bits & error.bit]
    unknown = bits & ~sum(error.bit for error in ERRORS)
    return ", ".join([*known, f"unknown ({unknown:#x})"] if unknown else known)


def with_remedies(bits: int) -> str:
    """As `in_words`, with what to do about each: "overload (it pushes against ...)"."""
    known = [f"{error.word} ({error.remedy})" for error in ERRORS if bits & error.bit]
    unknown = bits & ~sum(error.bit for error in ERRORS)
    return "; ".join([*known, f"unknown ({unknown:#x})"] if unknown else known)


class ErrorWatch:
    """What each servo of a bus said last about itself.

    Args:
        names: The servos' names by their ids.

    Attributes:
        bits: The error byte of each servo that has said anything but 0, by id.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.bits: dict[int, int] = {}
        self._names = names
        self._warned_s: dict[tuple[int, int], float] = {}

    def note(self, id_: int, bits: int) -> None:
        """Take the error byte of a good status packet; warns of what is new."""
        before = self.bits.get(id_, 0)
        if bits == before or id_ not in self._names:
            return
        self.bits[id_] = bits
        new = bits & ~before
        now_s = time.monotonic()
        for error in ERRORS:
            key = (id_, error.bit)
            if new & error.bit and now_s - self._warned_s.get(key, -AGAIN_S) >= AGAIN_S:
                self._warned_s[key] = now_s
                logger.warning("%s reports %s: %s.", self.name(id_), error.word, error.remedy)
        if not bits:
            del self.bits[id_]
            logger.info("%s is well again (it reported %s).", self.name(id_), in_words(before))

    def name(self, id_: int) -> str:
        """How a servo is called in messages: "elbow_flex (servo 3)"."""
        return f"{self._names.get(id_, 'unknown')} (servo {id_})"

    def sentence(self) -> str:
        """Everything that servos report now, with remedies; empty if nothing."""
        return "; ".join(
            f"{self.name(id_)} reports {with_remedies(bits)}" for id_, bits in sorted(self.bits.items())
        )
