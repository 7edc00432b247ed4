"""What a wrist sensor of force and torque measures when the pad at the tip is pressed: the world's force, a lever, noise.

The sensor is not zeroed: it shows an offset, as real ones do after they are mounted.
"""

from __future__ import annotations

import numpy as np

LEVER_M = 0.06  # from the sensor's origin to the pad, along the sensor's z
NOISE = np.array([0.08, 0.08, 0.1, 0.002, 0.002, 0.002])  # standard deviations, N and Nm
NOISE_AT_ONCE = 500


class WrenchSource:
    """Fx, Fy, Fz in N and Mx, My, Mz in Nm: z is the pad's normal, pressing is positive; x and y are tangential."""

    def __init__(self, seed: int = 0) -> None:
        rng = self._rng = np.random.default_rng([seed, 300])
        self.offset = np.concatenate([rng.normal(0, 4, 3), rng.normal(0, 0.2, 3)])
        self._noise: list[np.ndarray] = []

    def measure(self, force: np.ndarray) -> np.ndarray:
        """The wrench, float64 (6,), under `force` (N: normal, then two tangential; shape (3,))."""
        if not self._noise:
            self._noise = list(self._rng.normal(0, NOISE, (NOISE_AT_ONCE, 6)))
        normal, x, y = force
        wrench = self._noise.pop()
        wrench += self.offset
        wrench += (x, y, normal, -LEVER_M * y, LEVER_M * x, 0.0)
        return wrench
