"""A magnetic skin as its board streams it: AnySkin's frames, made from the force on the pad.

Five magnetometers under an elastomer with magnetic particles; pressing moves the particles and with them the field.
The numbers are an invention of AnySkin's order of magnitude; the frame is AnySkin's own. It does not know who reads.
"""

from __future__ import annotations

import math
import struct

import numpy as np

MAGNETOMETERS = 5
FRAME = struct.Struct(f"<{4 * MAGNETOMETERS}f")  # temperature, Bx, By, Bz of each; then END
END = b"\r\n"
RATE_HZ = 100

NOISE_UT = 1.5  # standard deviation of each field value, microtesla
TEMPERATURE_NOISE_C = 0.02
NOISE = (TEMPERATURE_NOISE_C, NOISE_UT, NOISE_UT, NOISE_UT)
DRIFT_UT_PER_C = 2.0  # standard deviation of the temperature coefficients
WARM_UP_C, WARM_UP_S = 4.0, 600.0
LAG_S = 0.012  # the elastomer's
# AnySkin's board (`sensors.anyskin` has the source): centre, left, right, up, down; and for each magnetometer the
# matrix from its own (x, y) to the board's, because the chips are soldered turned
POSITIONS = np.array([(0, 0), (-1, 0), (1, 0), (0, 1), (0, -1)], float)
AXES = np.array(
    [((0, 1), (1, 0)), ((0, 1), (1, 0)), ((-1, 0), (0, 1)), ((0, -1), (-1, 0)), ((1, 0), (0, -1))], float
)


class Skin:
    """The field at five magnetometers, with offset, drift, noise and lag."""

    def __init__(self, seed: int = 0) -> None:
        rng = self._rng = np.random.default_rng(seed)
        self._offset = rng.normal(0, 350, (MAGNETOMETERS, 3)) + (0, 0, 900)
        self._drift = rng.normal(0, DRIFT_UT_PER_C, (MAGNETOMETERS, 3))
        self._warmth = 27 + rng.normal(0, 0.4, MAGNETOMETERS)
        gain = rng.uniform(0.8, 1.2, (MAGNETOMETERS, 1, 1))
        # microtesla per newton, axis by (normal, tangential x, tangential y): pressing spreads the field outwards
        # and weakens it, most at the centre; shearing shifts it
        response = np.zeros((MAGNETOMETERS, 3, 3))
        for index, (x, y) in enumerate(POSITIONS):
            centre = 1.0 if index == 0 else 0.55
            response[index] = [
                (14 * x, 30 * centre, 4 * y),
                (14 * y, 4 * x, 30 * centre),
                (-48 * centre, 9 * x, 9 * y),
            ]
        response[:, :2] = np.swapaxes(AXES, 1, 2) @ response[:, :2]
        self._response = response * gain
        self._force = np.zeros(3)
        self._time = 0.0
        self._noise: list[np.ndarray] = []  # of the frames to come: a hundred at once cost as much as one

    def wait(self, dt: float, force: np.ndarray) -> None:
        """Advance as `step` does when nobody wants to know."""
        self._time += dt
        self._force += (force - self._force) * (1 - math.exp(-dt / LAG_S))

    def step(self, dt: float, force: np.ndarray) -> np.ndarray:
        """Advance by `dt` seconds under `force` (N: normal, then two tangential; shape (3,)).

        Returns:
            float32 (5, 4): temperature in degrees Celsius and Bx, By, Bz in microtesla of each magnetometer.
        """
        self.wait(dt, force)
        warming = WARM_UP_C * (1 - math.exp(-self._time / WARM_UP_S))
        squeezed = self._force / (1 + math.hypot(*self._force) / 25)  # an elastomer stiffens
        if not self._noise:
            self._noise = list(self._rng.normal(0, NOISE, (RATE_HZ, MAGNETOMETERS, 4)))
        values = self._noise.pop()
        values[:, 0] += self._warmth + warming
        values[:, 1:] += self._offset + self._drift * warming + self._response @ squeezed
        return values.astype(np.float32)


def frame(values: np.ndarray) -> bytes:
    """The 82 bytes of one frame: 20 little-endian float32 and CR LF."""
    return FRAME.pack(*values.ravel()) + END
