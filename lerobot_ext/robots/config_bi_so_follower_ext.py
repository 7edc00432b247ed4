"""Configurations of the robots `bi_so100_follower_ext` and `bi_so101_follower_ext`: two arms, in the shape of LeRobot's
`bi_so_follower`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the robot.
"""

from dataclasses import dataclass, field

from lerobot.cameras import CameraConfig
from lerobot.robots.config import RobotConfig

from lerobot_ext.robots.config_so_follower_ext import SOFollowerExtArmConfig, check_devices, check_numbers
from lerobot_ext.sensors import ForceSensorConfig

SIDES = ("left", "right")


@dataclass(kw_only=True)
class BiSOFollowerExtConfig(RobotConfig):
    """Two SO followers as one robot.

    What an arm's own section names gets the arm's prefix: its joints, cameras and sensors are `left_shoulder_pan.pos`,
    `left_wrist`, `left_skin`. What is named at the top keeps its name. With `id: follower` the arms' calibrations are
    `follower_left.json` and `follower_right.json`, the files of LeRobot's `bi_so_follower` of that id.

    Attributes:
        left_arm_config, right_arm_config: The arms.
        cameras: Those that belong to neither arm.
        force_sensors: Likewise. In `observation.force` come the left arm's, the right arm's, then these.
        on_error, warn_age_ms: Of the cameras and sensors at the top; as for one arm.
        skip_limit_s: How long one observation waits for a camera or sensor of any of the three sections.
    """

    left_arm_config: SOFollowerExtArmConfig
    right_arm_config: SOFollowerExtArmConfig
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    force_sensors: dict[str, ForceSensorConfig] = field(default_factory=dict)
    on_error: dict[str, str] = field(default_factory=dict)
    skip_limit_s: float = 10.0
    warn_age_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        check_numbers(self, "skip_limit_s")
        check_devices(self)
        ports = [arm.port for arm in self.arms.values()]
        if ports[0] == ports[1]:
            raise ValueError(f"robot: both arms have port {ports[0]}; expected two ports.")
        for what in ("cameras", "force_sensors"):
            names = [
                *(f"{side}_{name}" for side, arm in self.arms.items() for name in getattr(arm, what)),
                *getattr(self, what),
            ]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(
                        f"robot: {what} has '{name}' twice, at the top and of an arm; rename one."
                    )

    @property
    def arms(self) -> dict[str, SOFollowerExtArmConfig]:
        """Both arms' sections, by side."""
        return {side: getattr(self, f"{side}_arm_config") for side in SIDES}

    def all_of(self, what: str) -> dict:
        """Both arms' and the top's `cameras`, `force_sensors`, `on_error` or `warn_age_ms`, by prefixed name."""
        found = {
            f"{side}_{name}": value
            for side, arm in self.arms.items()
            for name, value in getattr(arm, what).items()
        }
        return found | getattr(self, what)


@RobotConfig.register_subclass("bi_so100_follower_ext")
@dataclass(kw_only=True)
class BiSO100FollowerExtConfig(BiSOFollowerExtConfig):
    """Two SO-100 followers."""


@RobotConfig.register_subclass("bi_so101_follower_ext")
@dataclass(kw_only=True)
class BiSO101FollowerExtConfig(BiSOFollowerExtConfig):
    """Two SO-101 followers."""
