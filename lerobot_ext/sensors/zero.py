"""Whether samples are those of a sensor at rest, and how far its zero has moved: arithmetic, no device.

Touch shows in two ways: the samples scatter, or they move from one half of the time to the other by more than their
own noise explains. A load that neither moves nor trembles cannot be told from a zero that has drifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.sensors.spec import ForceSensorSpec

MOVED_SHARE = 0.5  # of the scatter allowed: a change so large between both halves of the time is no rest
SIGNIFICANT = 6.0  # standard errors that a change must have before it counts as one
TOUCHED = (
    "{sensor}: not tared: channel {channel} {did} by {found:.3g} {unit}, more than the {allowed:.3g} {unit} of a "
    "sensor at rest; let go of it and start again (if nothing touches it, raise {setting})"
)


class TareRefused(RuntimeError):  # noqa: N818 (a refusal, said as one)
    """The samples say that something touches the sensor; the old baseline stays."""


@dataclass(frozen=True)
class Unrest:
    """The channel that is least at rest.

    Attributes:
        channel: Its number.
        did: "scatters" or "moved".
        found, allowed: By how much, and how much a sensor at rest may, in the channel's unit.
    """

    channel: int
    did: str
    found: float
    allowed: float


@dataclass(frozen=True)
class Drift:
    """How far a sensor's zero has moved since it was tared.

    Attributes:
        offsets: (channels,) float32: mean of the newest tared samples, in the units of `spec`.
        channel: Name of the channel that moved most, compared with what is allowed.
        amount: How far that channel moved, without sign.
        allowed: How far it may.
        unit: Its unit.
    """

    offsets: NDArray[np.float32]
    channel: str
    amount: float
    allowed: float
    unit: str

    @property
    def exceeds(self) -> bool:
        """Whether it moved further than allowed."""
        return self.amount > self.allowed

    @classmethod
    def of(cls, offsets: NDArray[np.float32], allowed: NDArray[np.float64], spec: ForceSensorSpec) -> Drift:
        """The drift by `offsets` (channels,) of a sensor whose zero may move by `allowed` (channels,)."""
        worst = int(np.argmax(np.abs(offsets) / allowed))
        amount = float(np.abs(offsets[worst]))
        return cls(offsets, spec.channels[worst], amount, float(allowed[worst]), spec.units[worst])


def find_unrest(samples: NDArray[np.float32], limits: NDArray[np.float64]) -> Unrest | None:
    """What speaks against rest.

    Args:
        samples: (n, channels), in the order of time, n at least 2.
        limits: (channels,): the standard deviation that a channel at rest may have, infinite for one that does not
            matter.

    Returns:
        None if nothing does. The noise that a change is compared with is that between neighbouring samples (von
        Neumann's mean square successive difference), which a slow movement does not enlarge.
    """
    values = samples.astype(np.float64)
    deviation = values.std(axis=0)
    worst = int(np.argmax(deviation / limits))
    if deviation[worst] > limits[worst]:
        return Unrest(worst, "scatters", float(deviation[worst]), float(limits[worst]))
    half = len(values) // 2
    change = np.abs(values[-half:].mean(axis=0) - values[:half].mean(axis=0))
    noise = np.sqrt((np.diff(values, axis=0) ** 2).mean(axis=0) / 2)
    allowed = np.maximum(MOVED_SHARE * limits, SIGNIFICANT * noise * np.sqrt(2 / half))
    worst = int(np.argmax(change / allowed))
    if change[worst] > allowed[worst]:
        return Unrest(worst, "moved", float(change[worst]), float(allowed[worst]))
    return None
