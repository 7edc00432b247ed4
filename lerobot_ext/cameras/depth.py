"""Raw depth counts to metric depth. Knows numbers and units, and nothing of devices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_COUNTS = np.arange(65536, dtype=np.float64)


class MetricDepth:
    """Turns z16 counts of one depth unit into millimetres (uint16) or metres (float32).

    Zero means "no depth here" for a RealSense and stays zero. In millimetres a depth beyond uint16 (65.535 m,
    possible only with a unit above 1 mm) becomes zero too: an invalid pixel is honest, a wrapped one is not. So does
    what lies outside of the range that the user gave.

    A table with one entry for each of the 65536 counts makes the conversion exact and one pass over the image;
    where a count already is a millimetre and every count is wanted, there is no table at all.

    Args:
        unit_m: Metres per count, as the device says (`get_depth_scale`), a float32.
        dtype: `uint16` for millimetres or `float32` for metres.
        min_m: Nearest depth that counts, in metres.
        max_m: Farthest.
    """

    def __init__(self, unit_m: float, dtype: str, min_m: float = 0.0, max_m: float = math.inf):
        # The device holds 0.0001 as the nearest float32; its shortest decimal is the number that was meant.
        self.unit_m = float(str(np.float32(unit_m)))
        if not 0 < self.unit_m < 1:
            raise ValueError(f"depth unit is {unit_m} m a count; expected a number between 0 and 1.")
        self.dtype = np.dtype(dtype)
        self._table: NDArray | None = None
        metres = np.round(_COUNTS * self.unit_m, 9)
        outside = (metres < min_m) | (metres > max_m)
        if self.dtype == np.float32:
            self._table = (_COUNTS * self.unit_m).astype(np.float32)
        elif self.unit_m != 0.001 or outside[1:].any():
            # Rounding to nanometres first keeps halves (0.5 mm) exact, so that ties go to even as IEEE says.
            millimetres = np.rint(np.round(_COUNTS * self.unit_m * 1000, 6))
            self._table = np.where(millimetres > 65535, 0, millimetres).astype(np.uint16)
        if self._table is not None:
            self._table[outside] = 0

    def __call__(self, counts: NDArray[np.uint16]) -> NDArray[np.uint16] | NDArray[np.float32]:
        """Metric depth of an image, always a new array.

        Args:
            counts: (H, W) uint16, raw counts.

        Returns:
            (H, W, 1), millimetres as uint16 or metres as float32.
        """
        metric = counts.copy() if self._table is None else self._table[counts]
        return metric[..., np.newaxis]
