"""What one sample of a force sensor looks like: names, units, rate and range. No device and no reading here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOT_FINITE = "{channels} of a sample are not finite: {values}."
WRONG_SHAPE = "a sample has shape {found}, expected {expected}."
WRONG_LENGTH = "a spec of {channels} channels has {found} {what}, expected {channels} or none."


@dataclass(frozen=True)
class ForceSensorSpec:
    """What one sample of a sensor looks like.

    Attributes:
        channels: One name for each number of a sample.
        unit: The unit, for display; where channels differ, all of them ("N, Nm").
        rate_hz: Samples a second, nominal.
        limit: Largest magnitude that a sample can have.
        units: The unit of each channel; `unit` for all of them if left out.
        limits: The largest magnitude of each channel; `limit` for all of them if left out.
    """

    channels: tuple[str, ...]
    unit: str
    rate_hz: float
    limit: float
    units: tuple[str, ...] = ()
    limits: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Fill in what is the same for all channels.

        Raises:
            ValueError: There are units or limits, but not one for each channel.
        """
        for what, same in (("units", self.unit), ("limits", self.limit)):
            given = tuple(getattr(self, what)) or (same,) * len(self.channels)
            if len(given) != len(self.channels):
                text = WRONG_LENGTH.format(channels=len(self.channels), found=len(given), what=what)
                raise ValueError(text)
            object.__setattr__(self, what, given)

    @property
    def shape(self) -> tuple[int]:
        """Shape of a sample: (number of channels,)."""
        return (len(self.channels),)

    def validate(self, sample: ArrayLike) -> NDArray[np.float32]:
        """`sample` as float32 of `shape`.

        Raises:
            ValueError: Its shape differs, or a number is not finite.
        """
        array = np.asarray(sample, dtype=np.float32)
        if array.shape != self.shape:
            raise ValueError(WRONG_SHAPE.format(found=array.shape, expected=self.shape))
        finite = np.isfinite(array)
        if not finite.all():
            channels = [name for name, good in zip(self.channels, finite, strict=True) if not good]
            raise ValueError(NOT_FINITE.format(channels=", ".join(channels), values=array[~finite].tolist()))
        return array

    def example(self, seed: int = 0) -> NDArray[np.float32]:
        """A sample that `validate` accepts, for examples and tests."""
        numbers = np.random.default_rng(seed).uniform(-1, 1, self.shape) * np.minimum(self.limits, 1e3)
        return self.validate(numbers)


def display_unit(units: tuple[str, ...]) -> str:
    """One text for the units of all channels: each unit once, in the order of the channels."""
    return ", ".join(dict.fromkeys(units))
