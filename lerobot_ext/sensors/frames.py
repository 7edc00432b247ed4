"""What a frame in a stream of bytes is, and what cuts frames out of it; the protocols are in `*_frames`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """One frame: where it began in the stream, and its numbers.

    Attributes:
        start: Bytes of the stream before its first one.
        values: float32, of the shape that the protocol has.
    """

    start: int
    values: NDArray[np.float32]


class FrameFinder(Protocol):
    """Cuts frames out of bytes."""

    size: int

    @property
    def counts(self) -> dict[str, int]:
        """`dropped`: frames that were there and were not good; `resynced`: how often the boundary was lost."""

    def feed(self, data: bytes) -> Sequence[Frame]:
        """Take the next bytes; return the frames that are complete and believed by now."""
