"""Configurations of the robots `so100_follower_ext` and `so101_follower_ext`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the robot.
"""

import math
from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig
from lerobot.robots.so_follower.config_so_follower import SOFollowerConfig, SOFollowerRobotConfig

from lerobot_ext.sensors import ForceSensorConfig

ON_ERROR = ("stop", "skip_frame")


@dataclass(kw_only=True)
class SOFollowerExtArmConfig(SOFollowerConfig):
    """One SO follower arm with force sensors, and with patience for what fails for a moment; no robot by itself.

    Attributes:
        force_sensors: Their configurations, by name; the order is that of the numbers in `observation.force`.
        num_read_retries: How often an instruction that a motor did not answer is tried again, also while connecting.
        reopen_s: How long an arm that stopped answering in a run is waited for while its port is opened again; with 0
            that is tried once, at once.
        on_error: By camera or sensor, what happens when it fails: "stop" ends the run, "skip_frame" waits for it. For
            those that are not named here, their own `on_error` counts; LeRobot's cameras have none, and stop.
        warn_age_ms: By camera or sensor, how old its data may be when the joints are read before it is warned of. For
            those that are not named here, one frame: of the camera's own fps, of 30 fps for a sensor.
    """

    force_sensors: dict[str, ForceSensorConfig] = field(default_factory=dict)
    num_read_retries: int = 3
    reopen_s: float = 5.0
    on_error: dict[str, str] = field(default_factory=dict)
    warn_age_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        # Only a robot's configuration has more above it.
        getattr(super(), "__post_init__", lambda: None)()
        check_numbers(self, "num_read_retries", "reopen_s")
        check_devices(self)


@dataclass(kw_only=True)
class SOFollowerExtConfig(SOFollowerExtArmConfig, SOFollowerRobotConfig):
    """A robot of one such arm.

    Attributes:
        skip_limit_s: How long one observation waits for a device with `on_error: skip_frame`.
    """

    skip_limit_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        check_numbers(self, "skip_limit_s")


@RobotConfig.register_subclass("so100_follower_ext")
@dataclass(kw_only=True)
class SO100FollowerExtConfig(SOFollowerExtConfig):
    """An SO-100 follower with force sensors."""


@RobotConfig.register_subclass("so101_follower_ext")
@dataclass(kw_only=True)
class SO101FollowerExtConfig(SOFollowerExtConfig):
    """An SO-101 follower with force sensors."""


def check_numbers(config: RobotConfig | SOFollowerConfig, *keys: str) -> None:
    """Refuse a field of `keys` that is not a finite number from 0 up."""
    for key in keys:
        if not 0 <= getattr(config, key) < math.inf:
            raise ValueError(f"robot: {key} is {getattr(config, key)}; expected a number from 0 up.")


def check_devices(config: RobotConfig | SOFollowerConfig) -> None:
    """Refuse `on_error` and `warn_age_ms` that name no device of `config`, or say what they cannot."""
    devices = {*config.cameras, *config.force_sensors}
    for key in ("on_error", "warn_age_ms"):
        for name in getattr(config, key):
            if name not in devices:
                raise ValueError(
                    f"robot: {key} names '{name}', but there is no such camera or sensor; there are: "
                    f"{', '.join(sorted(devices)) or 'none'}."
                )
    for name, policy in config.on_error.items():
        if policy not in ON_ERROR:
            raise ValueError(f"robot: on_error of '{name}' is '{policy}'; expected {' or '.join(ON_ERROR)}.")
    for name, age_ms in config.warn_age_ms.items():
        if not age_ms > 0:
            raise ValueError(f"robot: warn_age_ms of '{name}' is {age_ms}; expected a number above 0.")
