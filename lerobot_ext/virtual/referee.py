"""Who judges the task press: how long the right force was held, how large it was, whether the arm went home."""

from __future__ import annotations

import numpy as np

from lerobot_ext.virtual.link import Episode
from lerobot_ext.virtual.world import HOME

FORCE_N = (1.0, 3.0)
HOLD_S = 1.0
LIMIT_N = 6.0
HOME_RAD = 0.30  # how far each body joint may be from its home angle
CLEAR_M = 0.03  # how far above the button the pad must be at the end


class Referee:
    """Watches one press at a time; `watch` it, then ask for the `verdict`."""

    def __init__(self) -> None:
        self.start(0.0)

    def start(self, block_height: float) -> None:
        """A new press on a button `block_height` metres high."""
        self.block_height = block_height
        self.peak_force = 0.0
        self.hold = 0.0
        self.duration = 0.0
        self._holding = 0.0

    def watch(self, dt: float, force: float) -> None:
        """Let `dt` seconds pass in which the largest normal contact force was `force` newton."""
        self.duration += dt
        self.peak_force = max(self.peak_force, force)
        self._holding = self._holding + dt if FORCE_N[0] <= force <= FORCE_N[1] else 0.0
        self.hold = max(self.hold, self._holding)

    @property
    def pressed(self) -> bool:
        """Whether the button has been held long enough; it shows this with its lamp."""
        return self.hold >= HOLD_S

    def verdict(self, index: int, joints: np.ndarray, tip_height: float) -> Episode:
        """Judge the press that ends now, with the arm's `joints` (rad, shape (6,)) and its pad `tip_height` m up."""
        failure = self._failure(joints, tip_height)
        return Episode(
            index=index,
            success=failure is None,
            reason=failure
            or f"held the force for {self.hold:.2f} s, peak {self.peak_force:.1f} N, and went home.",
            peak_force_n=round(self.peak_force, 4),
            hold_s=round(self.hold, 4),
            block_height_m=self.block_height,
            duration_s=round(self.duration, 4),
        )

    def _failure(self, joints: np.ndarray, tip_height: float) -> str | None:
        """What was missing, or None."""
        away = float(np.abs(joints - HOME)[:4].max())
        clear = tip_height - self.block_height
        if self.peak_force > LIMIT_N:
            return f"pressed too hard: {self.peak_force:.1f} N, at most {LIMIT_N:.0f} N are allowed."
        if not self.pressed:
            return (
                f"held {FORCE_N[0]:.0f} to {FORCE_N[1]:.0f} N for {self.hold:.2f} s of the {HOLD_S:.0f} s asked for "
                f"(peak {self.peak_force:.1f} N)."
            )
        if clear < CLEAR_M or away > HOME_RAD:
            return (
                f"pressed, but was not back home at the end: pad {clear * 1000:.0f} mm above the button "
                f"({CLEAR_M * 1000:.0f} needed), a joint {away:.2f} rad from home ({HOME_RAD:.2f} allowed)."
            )
        return None
