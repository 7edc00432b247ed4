"""Curves as SVG text or onto a PIL picture, by hand: a page needs no plotting library, neither here nor there.

`draw_chart` knows axes and curves and draws with the strokes that both canvases have (`line`, `text`, `disc`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

INK, FAINT, MARK, SHADE = "#1f2933", "#dde3ea", "#9aa5b1", "#f6c6c0"
LEFT, LEGEND = 46.0, 130.0  # points beside the curves: for the numbers, and for the curves' names
DOT, BAR = 4.4, 7.0  # points: size of a dot, largest width of a bar
# Okabe and Ito's palette (readable for the colour-blind), then shades for sensors with many channels.
THIN = 3000  # points of a curve; a longer one is drawn by the extremes of its stretches
PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#11734b",
    "#b3123d", "#3969ac", "#80ba5a", "#a5761d", "#4b4b8f", "#cf1c90", "#5f6a72",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One curve, or dots, or bars.

    Attributes:
        name: In the legend.
        values: (n,); NaN is not drawn.
        color: As `#rrggbb`.
        dashed: For a curve.
        times_s: (n,) seconds of the values; None if they are the chart's.
        dots: A dot for each value instead of a curve.
        base: (n,), where bars that end at `values` begin; None if there are no bars.
    """

    name: str
    values: NDArray
    color: str
    dashed: bool = False
    times_s: NDArray | None = None
    dots: bool = False
    base: NDArray | None = None


@dataclass(frozen=True)
class Event:
    """A moment that every chart shows: a vertical line in `color`, with a short `label` at its top."""

    time_s: float
    color: str
    label: str


@dataclass(frozen=True)
class Chart:
    """Curves over one time axis, or over another one whose `unit` is said.

    Attributes:
        title: Above the chart.
        times_s: (frames,) seconds; the time axis goes from the first to the last.
        lines: The curves.
        marks_s: Times that get a thin vertical line.
        legend: Whether the curves' names stand at the right.
        zero: Whether the value 0 is always in sight.
        shades: Times from and to, which get a coloured ground.
        events: Moments with a label.
        unit: Stands after the numbers of the time axis.
    """

    title: str
    times_s: NDArray
    lines: Sequence[Line]
    marks_s: Sequence[float] = field(default=())
    legend: bool = True
    zero: bool = False
    shades: Sequence[tuple[float, float]] = field(default=())
    events: Sequence[Event] = field(default=())
    unit: str = " s"


class Canvas(Protocol):
    """Where a chart is drawn; coordinates in points, y downwards."""

    def line(self, points: NDArray, color: str, width: float = 1.0, dashed: bool = False) -> None:
        """A polyline through (n, 2) points."""

    def text(self, x: float, y: float, text: str, size: float = 11, anchor: str = "start") -> None:
        """Text on the baseline y, beginning, centred or ending at x (`start`, `middle`, `end`)."""

    def disc(self, x: float, y: float, radius: float, color: str, outline: str) -> None:
        """A filled circle around (x, y) with a thin outline."""


@dataclass(frozen=True)
class Plot:
    """Where a chart's curves are: the time `start` is at x = `left`, `end` at `right`; y from `top` to `bottom`."""

    left: float
    right: float
    top: float
    bottom: float
    start: float
    end: float

    def axis(self) -> str:
        """For the page's script, which puts a cursor there."""
        values = (self.left, self.right, self.top, self.bottom, self.start, self.end)
        return " ".join(f"{value:.6g}" for value in values)


class SvgCanvas:
    """Collects SVG elements."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self._parts: list[str] = []

    def line(self, points: NDArray, color: str, width: float = 1.0, dashed: bool = False) -> None:
        """See Canvas."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dash}/>'
        )

    def text(self, x: float, y: float, text: str, size: float = 11, anchor: str = "start") -> None:
        """See Canvas."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">'
            f"{escape(text)}</text>"
        )

    def disc(self, x: float, y: float, radius: float, color: str, outline: str) -> None:
        """See Canvas."""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}" stroke="{outline}"/>'
        )

    def elements(self) -> str:
        """What was drawn so far, to stand in another element."""
        return "".join(self._parts)

    def svg(self, plot: Plot | None = None, more: str = "") -> str:
        """The finished element; with `plot` the page's script knows its time axis, `more` stands on top."""
        axis = f' data-axis="{plot.axis()}"' if plot is not None else ""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"{axis} '
            f'font-family="system-ui, sans-serif" role="img">{self.elements()}{more}</svg>'
        )


class ImageCanvas:
    """Draws on a PIL picture at `scale` pixels a point, with (left, top) as its origin."""

    def __init__(self, image: Image, scale: float = 2.0, left: float = 0, top: float = 0):
        from PIL import ImageDraw

        self._draw = ImageDraw.Draw(image)
        self._scale, self._origin = scale, np.array([left, top])

    def line(self, points: NDArray, color: str, width: float = 1.0, dashed: bool = False) -> None:
        """See Canvas."""
        pixels = (np.asarray(points) + self._origin) * self._scale
        thick = max(1, round(width * self._scale))
        for piece in _dashes(pixels, self._scale) if dashed else [pixels]:
            self._draw.line([tuple(p) for p in piece], fill=color, width=thick, joint="curve")

    def text(self, x: float, y: float, text: str, size: float = 11, anchor: str = "start") -> None:
        """See Canvas."""
        from PIL import ImageFont

        place = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        at = (np.array([x, y]) + self._origin) * self._scale
        font = ImageFont.load_default(size * self._scale)
        text = text.replace("µ", "u")  # PIL's font has no Greek letters
        self._draw.text(tuple(at), text, fill=INK, font=font, anchor=place)

    def disc(self, x: float, y: float, radius: float, color: str, outline: str) -> None:
        """See Canvas."""
        at, reach = (np.array([x, y]) + self._origin) * self._scale, radius * self._scale
        self._draw.ellipse([*(at - reach), *(at + reach)], fill=color, outline=outline)


def draw_chart(canvas: Canvas, chart: Chart, width: float, height: float) -> Plot:
    """Draw `chart` into the top left `width` x `height` points of `canvas`; says where its curves are."""
    left, right = LEFT, width - (LEGEND if chart.legend else 10.0)
    top, bottom = 24.0, height - 22.0
    values = np.concatenate(
        [part for line in chart.lines for part in (line.values, line.base) if part is not None]
        or [np.empty(0)]
    )
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if chart.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    start, end = float(chart.times_s[0]), max(float(chart.times_s[-1]), float(chart.times_s[0]) + 1e-3)

    def x(t: NDArray | float) -> NDArray | float:
        return left + (t - start) / (end - start) * (right - left)

    def y(v: NDArray | float) -> NDArray | float:
        return bottom - (v - low) / (high - low) * (bottom - top)

    for since, until in chart.shades:
        x0, x1 = x(max(since, start)), x(min(until, end))
        middle = (x0 + x1) / 2
        canvas.line(np.array([[middle, top], [middle, bottom]]), SHADE, max(x1 - x0, 1.0))
    canvas.text(left, 15, chart.title, 12)
    for tick, label in ticks(low, high, max(2, int((bottom - top) / 22))):
        canvas.line(np.array([[left, y(tick)], [right, y(tick)]]), FAINT)
        canvas.text(left - 5, y(tick) + 4, label, 10, "end")
    for tick, label in ticks(start, end, max(2, int((right - left) / 70))):
        canvas.line(np.array([[x(tick), bottom], [x(tick), bottom + 4]]), MARK)
        canvas.text(x(tick), bottom + 15, f"{label}{chart.unit}", 10, "middle")
    canvas.line(np.array([[left, bottom], [right, bottom]]), MARK)
    for mark in chart.marks_s:
        canvas.line(np.array([[x(mark), top], [x(mark), bottom]]), MARK, 0.8, dashed=True)
    for event in chart.events:
        canvas.line(np.array([[x(event.time_s), top], [x(event.time_s), bottom]]), event.color, 1.2)
        canvas.text(x(event.time_s), top - 1, event.label, 9.5, "middle")
    for line in chart.lines:
        times = chart.times_s if line.times_s is None else line.times_s
        points = np.stack([x(times), y(line.values)], axis=1)
        known = np.isfinite(points).all(axis=1)
        if line.base is not None:
            feet = np.stack([points[:, 0], y(line.base)], axis=1)
            for pair in np.stack([feet, points], axis=1)[known & np.isfinite(feet).all(axis=1)]:
                canvas.line(pair, line.color, _bar_width(points[known, 0]))
        elif line.dots:
            for at in points[known]:
                canvas.line(at + np.array([[-DOT / 2, 0], [DOT / 2, 0]]), line.color, DOT)
        else:
            canvas.line(_thinned(points[known]), line.color, 1.4, line.dashed)
    if chart.legend:
        step = min(15.0, (bottom - top + 14) / max(len(chart.lines), 1))
        for i, line in enumerate(chart.lines):
            at = top + 6 + i * step
            canvas.line(np.array([[right + 10, at], [right + 28, at]]), line.color, 2, line.dashed)
            canvas.text(right + 33, at + 3.5, line.name, min(10.5, step * 0.85))
    return Plot(left, right, top, bottom, start, end)


def svg_chart(chart: Chart, width: float, height: float) -> str:
    """`chart` as one SVG element."""
    canvas = SvgCanvas(width, height)
    return canvas.svg(draw_chart(canvas, chart, width, height))


def ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Round numbers within [low, high], about `count` of them, with their labels."""
    rough = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    digits = next(d for d in range(12) if math.isclose(round(step, d), step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def _thinned(points: NDArray) -> NDArray:
    """The curve's lowest and highest point of each stretch, in their order; short curves stay as they are."""
    if len(points) <= THIN:
        return points
    kept = {0, len(points) - 1}
    for part in np.array_split(np.arange(len(points)), THIN // 2):
        kept |= {int(part[points[part, 1].argmin()]), int(part[points[part, 1].argmax()])}
    return points[sorted(kept)]


def _bar_width(x: NDArray) -> float:
    """So wide that neighbours do not touch, within reason."""
    gaps = np.diff(np.sort(x))
    gaps = gaps[gaps > 0]
    return float(np.clip(0.7 * np.median(gaps), 1.0, BAR)) if gaps.size else BAR


def _dashes(points: NDArray, scale: float) -> list[NDArray]:
    """Pieces of a polyline, 5 points drawn and 3 left out; PIL has no dashes of its own."""
    lengths = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    pieces = []
    for start in np.arange(0, lengths[-1], 8 * scale):
        stop = min(start + 5 * scale, lengths[-1])
        inside = lengths[(lengths > start) & (lengths < stop)]
        along = np.r_[start, inside, stop]
        pieces.append(np.stack([np.interp(along, lengths, points[:, axis]) for axis in (0, 1)], axis=1))
    return pieces
