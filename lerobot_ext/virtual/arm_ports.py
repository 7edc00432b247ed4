"""The two buses of one arm, the follower's and its leader's, with the names that its ports have in the lab's directory.

What is moved by them, and when, is the task's and the lab's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lerobot_ext.virtual import feetech
from lerobot_ext.virtual.arm import Drive
from lerobot_ext.virtual.feetech import Faults, ServoBus, ServoSpec
from lerobot_ext.virtual.two_arms import LEFT


@dataclass(frozen=True)
class ArmPorts:
    """One arm and its leader as the lab shows them.

    Attributes:
        suffix: Of its ports' names: empty if there is one arm only, else "_right" or "_left".
        prefix: Of its names in MuJoCo's model.
        specs: How the follower's and the leader's servos are built in and calibrated.
        follower: The follower's bus.
        leader: The leader's.
    """

    suffix: str
    prefix: str
    specs: tuple[dict[str, ServoSpec], dict[str, ServoSpec]]
    follower: ServoBus
    leader: ServoBus

    @property
    def follower_name(self) -> str:
        """Of the follower's port."""
        return f"follower{self.suffix}"

    @property
    def skin(self) -> str:
        """Of the port of the skin on its pad."""
        return f"skin{self.suffix}"

    @property
    def wrist(self) -> str:
        """Of its wrist camera in LeRobot's ZMQ messages."""
        return f"wrist{self.suffix}"

    @property
    def wrist_in_model(self) -> str:
        """Of its wrist camera in MuJoCo's model."""
        return f"{self.prefix}wrist"

    @property
    def buses(self) -> dict[str, ServoBus]:
        """Both buses by the names of their ports."""
        return {self.follower_name: self.follower, f"leader{self.suffix}": self.leader}

    def drives(self) -> tuple[Drive, Drive]:
        """What the follower's and the leader's servos ask for now."""
        return self.follower.drive(), self.leader.drive()

    def write_calibrations(self, folder: Path) -> None:
        """Write the calibration files of both, under their ports' names, as LeRobot writes them."""
        for name, specs in zip(self.buses, self.specs, strict=True):
            feetech.write_calibration(folder / f"{name}.json", specs)


def arm_ports(arms: int, faults: Faults) -> list[ArmPorts]:
    """The one arm, or the right one and then the left one; `faults` are the followers'."""
    right = (feetech.FOLLOWER, feetech.LEADER)
    if arms == 1:
        return [_made("", "", right, faults)]
    left = (feetech.LEFT_FOLLOWER, feetech.LEFT_LEADER)
    return [
        _made("_right", "", right, faults),
        _made("_left", LEFT, left, replace(faults, seed=faults.seed + 1)),  # bad luck of its own
    ]


def _made(
    suffix: str, prefix: str, specs: tuple[dict[str, ServoSpec], dict[str, ServoSpec]], faults: Faults
) -> ArmPorts:
    follower, leader = specs
    return ArmPorts(suffix, prefix, specs, ServoBus(follower, faults), ServoBus(leader))
