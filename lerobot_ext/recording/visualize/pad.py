"""A tactile pad as a picture: arrows for what pulls along it, discs for what presses on it, at one fixed scale.

Geometry is computed here once for page, PNG and Rerun; what the numbers are is the business of `force`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize.chart import FAINT, INK, MARK, Canvas, SvgCanvas
from lerobot_ext.recording.visualize.force import Pad, SensorView

SIZE, LEGEND_HEIGHT, TITLE_HEIGHT = 210.0, 46.0, 20.0  # points
LEGEND_ARROW, LEGEND_DISC = 60.0, 9.0  # largest sizes of the two in a legend
FULL_DISC, FULL_ARROW, SMALLEST = 0.46, 0.95, 0.04  # shares of the distance between points
HEAD = 0.3  # of an arrow's length, at most HEAD_POINTS
HEAD_POINTS = 7.0
LEVELS = 21  # colours of a disc, odd: the middle one is for nothing
BLUE, MIDDLE, RED = np.array([33, 102, 172.0]), np.array([244, 244, 242.0]), np.array([178, 24, 43.0])
STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


def _colors() -> tuple[str, ...]:
    shares = np.linspace(-1, 1, LEVELS)[:, None]
    ends = np.where(shares < 0, BLUE, RED)
    mixed = np.rint(MIDDLE + np.abs(shares) ** 0.8 * (ends - MIDDLE)).astype(int)
    return tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in mixed)


COLORS = _colors()


@dataclass(frozen=True)
class PadScale:
    """What a full arrow and a full disc mean, in the sensor's unit."""

    arrow: float
    disc: float

    @classmethod
    def of(cls, vectors: NDArray) -> PadScale:
        """Round numbers that hold all of `vectors` (..., points, 3)."""
        flat = np.asarray(vectors, np.float64).reshape(-1, 3)
        flat = flat[np.isfinite(flat).all(axis=1)]
        if not len(flat):
            return cls(1.0, 1.0)
        return cls(round_up(float(np.hypot(flat[:, 0], flat[:, 1]).max())), round_up(float(np.abs(flat[:, 2]).max())))  # fmt: skip

    def text(self, unit: str) -> str:
        """For a legend."""
        return f"a full arrow is {self.arrow:g} {unit} along the pad, a full disc {self.disc:g} {unit} normal to it"


class PadPicture:
    """Where a pad's points, arrows and discs are in a square.

    Args:
        pad: The pad.
        scale: Of all pictures of the episode.
        size: Of the square, in points.

    Attributes:
        centers: (points, 2) in points, y down.
        spacing: Points between neighbours, of the closest pair.
    """

    def __init__(self, pad: Pad, scale: PadScale, size: float = SIZE):
        self.pad, self.scale, self.size = pad, scale, size
        apart_mm = spacing_mm(pad.positions_mm)
        low, high = (
            pad.positions_mm.min(axis=0) - 1.1 * apart_mm,
            pad.positions_mm.max(axis=0) + 1.1 * apart_mm,
        )
        per_mm = size / float((high - low).max())
        self.spacing = apart_mm * per_mm
        self.centers = size / 2 + (pad.positions_mm - (low + high) / 2) * (per_mm, -per_mm)

    def geometry(self, vectors: NDArray) -> NDArray[np.float64]:
        """How far each arrow reaches and how each disc looks; what exceeds the scale ends there.

        Args:
            vectors: (..., points, 3) tangential x, y and normal.

        Returns:
            (..., points, 4): the arrow's dx and dy (y down) and the disc's radius in points, the index of its colour
            in COLORS.
        """
        vectors = np.nan_to_num(np.asarray(vectors, np.float64))
        tangent = vectors[..., :2] / self.scale.arrow
        length = np.linalg.norm(tangent, axis=-1, keepdims=True)
        tangent = tangent / np.maximum(length, 1)
        normal = np.clip(vectors[..., 2] / self.scale.disc, -1, 1)
        arrows = tangent * self.spacing * FULL_ARROW * (1, -1)
        radii = self.spacing * (SMALLEST + (FULL_DISC - SMALLEST) * np.abs(normal))
        levels = np.rint((normal + 1) / 2 * (LEVELS - 1))
        return np.concatenate([arrows, radii[..., None], levels[..., None]], axis=-1)

    def draw_ground(self, canvas: Canvas) -> None:
        """What does not move: the outline, and a cross for each point."""
        low, high = 0.5, self.size - 0.5
        canvas.line(np.array([(low, low), (high, low), (high, high), (low, high), (low, low)]), MARK)
        for x, y in self.centers:
            canvas.line(np.array([(x - 3, y), (x + 3, y)]), FAINT)
            canvas.line(np.array([(x, y - 3), (x, y + 3)]), FAINT)

    def draw_legend(self, canvas: Canvas, unit: str) -> None:
        """What an arrow's length and a disc's size and colour mean; LEGEND_HEIGHT high."""
        full = self.spacing * FULL_ARROW
        long = full if full <= LEGEND_ARROW else full / 2
        value = self.scale.arrow if full <= LEGEND_ARROW else self.scale.arrow / 2
        draw_arrow(canvas, 4, 12, long, 0)
        canvas.text(long + 12, 16, f"{value:g} {unit} along the pad", 10.5)
        for i, share in enumerate((-1.0, -0.5, 0.5, 1.0)):
            level = COLORS[round((share + 1) / 2 * (LEVELS - 1))]
            canvas.disc(12 + 21 * i, 34, LEGEND_DISC * abs(share), level, MARK)
        canvas.text(92, 38, f"-{self.scale.disc:g} to +{self.scale.disc:g} {unit} normal", 10.5)

    def draw(self, canvas: Canvas, vectors: NDArray) -> None:
        """One sample, (points, 3), on its ground."""
        self.draw_ground(canvas)
        moves = self.geometry(vectors)
        for (x, y), (_, _, radius, level) in zip(self.centers, moves, strict=True):
            canvas.disc(x, y, radius, COLORS[int(level)], MARK)
        for (x, y), (dx, dy, _, _) in zip(self.centers, moves, strict=True):
            draw_arrow(canvas, x, y, dx, dy)

    def svg(self, title: str, unit: str, vectors: NDArray, name: str) -> str:
        """One sample as SVG whose discs and arrows the page's script moves, in the order of the points."""
        ground, legend = SvgCanvas(0, 0), SvgCanvas(0, 0)
        self.draw_ground(ground)
        self.draw_legend(legend, unit)
        canvas = SvgCanvas(self.size, TITLE_HEIGHT + self.size + LEGEND_HEIGHT)
        canvas.text(2, 13, title, 12)
        moves = self.geometry(vectors)
        parts = [
            f'<circle class="disc" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{COLORS[int(level)]}" '
            f'stroke="{MARK}"/>'
            for (x, y), (_, _, radius, level) in zip(self.centers, moves, strict=True)
        ]
        parts += [
            f'<path class="arrow" d="{arrow_path(x, y, dx, dy)}" fill="none" stroke="{INK}" stroke-width="1.8"/>'
            for (x, y), (dx, dy, _, _) in zip(self.centers, moves, strict=True)
        ]
        below = TITLE_HEIGHT + self.size
        more = (
            f'<g transform="translate(0 {TITLE_HEIGHT:g})">{ground.elements()}{"".join(parts)}</g>'
            f'<g transform="translate(0 {below:g})">{legend.elements()}</g>'
        )
        return f'<div class="pad" data-pad="{escape(name)}">{canvas.svg(more=more)}</div>'


def pad_title(sensor: SensorView) -> str:
    """Of a sensor's picture."""
    assumed = ", layout assumed" if sensor.pad is not None and sensor.pad.assumed else ""
    return f"{sensor.name}: force on the pad{assumed}"


def spacing_mm(positions: NDArray) -> float:
    """Distance of the closest two points; 10 mm for a single one."""
    if len(positions) < 2:
        return 10.0
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    apart = apart[apart > 1e-6]
    return float(apart.min()) if apart.size else 10.0


def round_up(value: float) -> float:
    """The next round number; 1 for 0."""
    if not 0 < value < math.inf:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(value))
    step = next(step for step in STEPS if step * magnitude >= value * (1 - 1e-9))
    return float(f"{step * magnitude:.3g}")


def arrow_strokes(x: float, y: float, dx: float, dy: float) -> list[NDArray]:
    """Shaft and head of an arrow from (x, y) as polylines; nothing for one shorter than a point."""
    length = math.hypot(dx, dy)
    if length < 1:
        return []
    tip = np.array([x + dx, y + dy])
    back = min(HEAD * length, HEAD_POINTS) / length
    along, across = np.array([dx, dy]) * back, np.array([-dy, dx]) * back * 0.6
    return [np.array([(x, y), tip]), np.stack([tip - along + across, tip, tip - along - across])]


def draw_arrow(canvas: Canvas, x: float, y: float, dx: float, dy: float) -> None:
    """An arrow from (x, y)."""
    for stroke in arrow_strokes(x, y, dx, dy):
        canvas.line(stroke, INK, 1.8)


def arrow_path(x: float, y: float, dx: float, dy: float) -> str:
    """The same for SVG; the page's script does as much."""
    strokes = arrow_strokes(x, y, dx, dy)
    return " ".join("M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in stroke) for stroke in strokes)
