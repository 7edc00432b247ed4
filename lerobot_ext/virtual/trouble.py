"""What is wrong with the lab's devices, on request: which troubles there are, and which each device has now.

Words only. What a trouble does to a device is done by the lab, by `terminal` and `feetech`, or, for the camera, in the
driver's process that reads it from the lab's status.
"""

from __future__ import annotations

from collections.abc import Sequence

UNPLUGGED, FROZEN = "unplugged", "frozen"
# Error bits of a servo's status packet, by the word a request uses
# (scservo_sdk/protocol_packet_handler.py: ERRBIT_*; the STS3215's memory table: bits of "Unloading condition").
ERROR_BITS = {"voltage": 1, "angle": 2, "temperature": 4, "current": 8, "overload": 32}
SHARES = ("drop", "corrupt", "truncate")
SILENT = "silent"
ARMS = ("follower", "leader")  # how the names of arms begin
DEVICES = (*ARMS, "skin", "side", "wrist", "ft300")
ARM_HELP = (
    f"silent:ID, {', '.join(f'{word}:ID' for word in ERROR_BITS)}, {', '.join(f'{s}:SHARE' for s in SHARES)}"
)


def split(fault: str) -> tuple[str, str]:
    """Word and argument of a fault: `overload:3` is ("overload", "3")."""
    word, _, argument = fault.partition(":")
    return word, argument


class Troubles:
    """The troubles that the lab's `devices` have now; not more than one each."""

    def __init__(self, devices: Sequence[str] = DEVICES) -> None:
        self.devices = tuple(devices)
        self.now: dict[str, str] = {}

    def of(self, device: str) -> str:
        """The trouble of `device`; empty if it has none."""
        return self.now.get(device, "")

    def set(self, device: str, fault: str) -> None:
        """Give `device` that trouble instead of the one it has; empty: none.

        Raises:
            ValueError: There is no such device, or it cannot have that trouble.
        """
        check(device, fault, self.devices)
        self.now.pop(device, None)
        if fault:
            self.now[device] = fault


def check(device: str, fault: str, devices: Sequence[str] = DEVICES) -> None:
    """See that `device`, one of `devices`, can have the trouble `fault`.

    Raises:
        ValueError: It cannot; says what there is.
    """
    if device not in devices:
        raise ValueError(f"there is no device '{device}'; there are: {', '.join(devices)}.")
    if fault in ("", UNPLUGGED, FROZEN):
        return
    word, argument = split(fault)
    arm = device.startswith(ARMS)
    good = arm and (
        (word in (SILENT, *ERROR_BITS) and argument in list("123456"))
        or (word in SHARES and _is_share(argument))
    )
    if not good:
        more = f", {ARM_HELP}" if arm else ""
        raise ValueError(
            f"'{device}' cannot be '{fault}'; it can be: {UNPLUGGED}, {FROZEN}{more}, or nothing."
        )


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
