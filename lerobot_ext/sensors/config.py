"""What every force sensor can be told, and the registry of its kinds.

The kinds' own configurations are in `config_<driver>.py`, so that LeRobot finds the driver by the module's name.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import draccus

POSITIVE = ("max_age_ms", "tare_samples", "tare_duration_s", "tare_max_std", "max_drift")
CHOICES = {"reduce": ("last", "mean"), "on_error": ("stop", "skip_frame")}


@dataclass(kw_only=True)
class ForceSensorConfig(draccus.ChoiceRegistry, abc.ABC):
    """What all force sensors can be told.

    Attributes:
        max_age_ms: A sample that arrived longer ago than this is not given any more.
        reduce: What `read_latest` and `async_read` give: "last", the newest sample, or "mean", the mean of all that
            came since the read before, at most those of the last `max_age_ms`. A mean has less noise, and is on
            average half a frame old.
        calibration: YAML or JSON file with a matrix that makes forces of raw numbers; raw numbers if None.
        tare_samples: How many samples `tare` averages at least.
        tare_duration_s: Over how long a time it takes them at least.
        tare_max_std: A sensor at rest scatters by no more than this standard deviation, in its raw unit; `tare`
            refuses more.
        max_drift: Zero may move by this much in an episode, in its raw unit, before it is warned of.
        reconnect_s: How often a sensor that was lost is looked for; 0: never.
        on_error: What a robot does when the sensor fails: "stop", or "skip_frame" and wait for it.
    """

    max_age_ms: float = 500.0
    reduce: str = "last"
    calibration: str | None = None
    tare_samples: int = 20
    tare_duration_s: float = 0.2
    tare_max_std: float = 5.0
    max_drift: float = 20.0
    reconnect_s: float = 1.0
    on_error: str = "stop"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for key in POSITIVE:
            self.require_above(key, 0)
        if self.tare_samples < 2:
            raise ValueError(f"force sensor: tare_samples is {self.tare_samples}; expected at least 2.")
        if not 0 <= self.reconnect_s < math.inf:
            raise ValueError(
                f"force sensor: reconnect_s is {self.reconnect_s}; expected seconds, or 0 for never."
            )
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                text = f"force sensor: {key} is '{getattr(self, key)}'; expected {' or '.join(choices)}."
                raise ValueError(text)

    def require_above(self, key: str, low: float, what: str = "force sensor") -> None:
        """Refuse a field that is not a finite number above `low`."""
        value = getattr(self, key)
        if not low < value < math.inf:
            raise ValueError(f"{what}: {key} is {value}; expected a number above {low:g}.")

    @property
    def type(self) -> str:
        """The name it is registered under."""
        return self.get_choice_name(self.__class__)
