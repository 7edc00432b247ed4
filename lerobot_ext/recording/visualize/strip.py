"""Ages and drops of an episode as a strip under its time line: one row a device.

The recording leaves one file an episode (`meta/lerobot_ext/frames/`): how old each device's data was at each frame and
how much each count grew. Recordings of stock LeRobot have none; then there is no strip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.journal import LATE, read_frames
from lerobot_ext.recording.visualize.chart import LEFT, LEGEND, MARK, Canvas, Plot, SvgCanvas, ticks

AGE, NEW, PERIOD = "ages_ms.", "new.", "period_ms"
LOOP = "loop"  # the row of what no device is to blame for
ABSENT = "ages and drops: not recorded for this episode."
ROW, BAND, TOP, BOTTOM = (
    20.0,
    11.0,
    38.0,
    22.0,
)  # points: a row, the band in it, and what is above and below all
COLUMNS = 1000  # a longer episode shows the oldest age of each stretch
UNKNOWN_AGE = "#e4e7eb"
GREEN, YELLOW, RED = np.array([46, 160, 96.0]), np.array([244, 200, 66.0]), np.array([208, 48, 48.0])
LEVELS = 12
# What a count means to whoever looks; other counts are drawn in the last colour.
KINDS = {
    "dropped": "#c1121f",
    "repeated": "#e67700",
    "retries": "#7b2cbf",
    "skipped": "#111827",
    "late": "#b08900",
    "reconnects": "#0b7285",
    "reopened": "#0b7285",
}
OTHER = "#5f6a72"
# Counts of what went well: they grow with every frame.
QUIET = ("received",)


@dataclass(frozen=True)
class FrameReport:
    """What was recorded about each frame.

    Attributes:
        ages_ms: By device, (frames,) age at the joint read; NaN if unknown.
        new: By count (`<device>.<kind>`), (frames,) how much it grew since the frame before.
    """

    ages_ms: dict[str, NDArray[np.float32]]
    new: dict[str, NDArray[np.int64]]

    def devices(self) -> list[str]:
        """All devices that something is known of, those with ages first."""
        counted = [name.rpartition(".")[0] or name for name in self.new]
        there = dict.fromkeys([*self.ages_ms, *counted])
        return [device for device in there if device != LOOP or self.counts_of(device)]

    def counts_of(self, device: str) -> dict[str, NDArray[np.int64]]:
        """By kind, what a device's counts grew by; those that never grew are left out."""
        found = {}
        for name, grown in self.new.items():
            owner, _, kind = name.rpartition(".")
            if (owner or name) == device and kind not in QUIET and grown.any():
                found[kind] = grown
        return found

    def totals(self) -> dict[str, int]:
        """By kind, over all devices."""
        sums: dict[str, int] = {}
        for device in self.devices():
            for kind, grown in self.counts_of(device).items():
                sums[kind] = sums.get(kind, 0) + int(grown.sum())
        return sums

    def sentence(self) -> str:
        """One line."""
        ages = []
        for device, age in self.ages_ms.items():
            known = age[np.isfinite(age)]
            if known.size:
                ages.append(f"{device} {known.mean():.0f} (at most {known.max():.0f})")
        counted = ", ".join(f"{count} {kind}" for kind, count in self.totals().items())
        age = f"mean age in ms: {', '.join(ages)}; " if ages else ""
        return f"{age}{counted or 'nothing dropped, repeated or retried'}"


def load_frames(root: Path, episode_index: int, frames: int, fps: float) -> FrameReport | None:
    """The report of an episode of `frames` frames; None if there is none that can be read.

    Frames without a row have no age (NaN) and no counts. A frame that came more than LATE periods after the one before
    counts as `loop.late`.
    """
    from pyarrow import ArrowException

    try:
        table = read_frames(root, episode_index)
        if table is None:
            return None
        rows = table["frame_index"].to_numpy()
    except (OSError, KeyError, ArrowException):
        return None
    inside = (rows >= 0) & (rows < frames)
    ages, new = {}, {}
    for name in table.column_names:
        if name.startswith(AGE):
            values = np.full(frames, np.nan, np.float32)
            values[rows[inside]] = table[name].to_numpy().astype(np.float32)[inside]
            ages[name.removeprefix(AGE)] = values
        elif name.startswith(NEW):
            grown = np.zeros(frames, np.int64)
            known = np.nan_to_num(table[name].to_numpy().astype(np.float64))
            grown[rows[inside]] = known.astype(np.int64)[inside]
            new[name.removeprefix(NEW)] = grown
        elif name == PERIOD:
            late = np.zeros(frames, np.int64)
            late[rows[inside]] = (table[name].to_numpy() > LATE * 1000 / fps)[inside]
            new[f"{LOOP}.late"] = late
    return FrameReport(ages, new) if ages or new else None


def strip_height(report: FrameReport) -> float:
    """Points that `draw_strip` needs."""
    return TOP + ROW * len(report.devices()) + BOTTOM


def draw_strip(canvas: Canvas, report: FrameReport, times_s: NDArray, fps: float, width: float) -> Plot:
    """Draw the strip, as wide as the charts and with their time axis; says where it is."""
    left, right = LEFT, width - LEGEND
    period_ms = 1000 / fps
    start, end = float(times_s[0]), max(float(times_s[-1]), float(times_s[0]) + 1e-3)
    devices = report.devices()
    bottom = TOP + ROW * len(devices)

    def x(t: float) -> float:
        return left + (t - start) / (end - start) * (right - left)

    canvas.text(left, 13, "age of each device's data at the joint read, and what was lost", 12)
    _legend(canvas, report, left, 29, period_ms)
    half = (end - start) / max(len(times_s) - 1, 1) / 2
    for row, device in enumerate(devices):
        middle = TOP + ROW * row + ROW / 2
        canvas.text(right + 10, middle + 3.5, _label(report, device), 9.5)
        age = report.ages_ms.get(device)
        if age is None:
            canvas.line(np.array([[left, middle], [right, middle]]), UNKNOWN_AGE)
        else:
            for first, last, color in _runs(age, period_ms):
                x0, x1 = x(times_s[first] - half), x(times_s[last] + half)
                ends = np.array([[max(x0, left), middle], [min(x1, right), middle]])
                canvas.line(ends, color, BAND)
        for kind, grown in report.counts_of(device).items():
            places = dict.fromkeys(round(x(float(times_s[frame])), 1) for frame in np.flatnonzero(grown))
            reach = ROW / 2 - 0.5
            for at in places:
                canvas.line(np.array([[at, middle - reach], [at, middle + reach]]), KINDS.get(kind, OTHER), 2)
    canvas.line(np.array([[left, bottom + 2], [right, bottom + 2]]), MARK)
    for tick, label in ticks(start, end, max(2, int((right - left) / 70))):
        canvas.line(np.array([[x(tick), bottom + 2], [x(tick), bottom + 6]]), MARK)
        canvas.text(x(tick), bottom + 17, f"{label} s", 10, "middle")
    return Plot(left, right, TOP, bottom, start, end)


def svg_strip(report: FrameReport, times_s: NDArray, fps: float, width: float) -> str:
    """The strip as one SVG element."""
    canvas = SvgCanvas(width, strip_height(report))
    return canvas.svg(draw_strip(canvas, report, times_s, fps, width))


def age_color(age_ms: float, period_ms: float) -> str:
    """Green for an age of nothing (or less: captured after the joint read), red for a frame's length or more."""
    if not np.isfinite(age_ms):
        return UNKNOWN_AGE
    share = round(min(max(age_ms / period_ms, 0.0), 1.0) * LEVELS) / LEVELS
    low, high = (GREEN, YELLOW) if share < 0.5 else (YELLOW, RED)
    r, g, b = np.rint(low + (2 * share - (share >= 0.5)) * (high - low)).astype(int)
    return f"#{r:02x}{g:02x}{b:02x}"


def _runs(age_ms: NDArray, period_ms: float) -> list[tuple[int, int, str]]:
    """Stretches of one colour: first frame, last frame, colour."""
    parts = np.array_split(np.arange(len(age_ms)), min(len(age_ms), COLUMNS))
    runs: list[tuple[int, int, str]] = []
    for part in parts:
        known = age_ms[part][np.isfinite(age_ms[part])]
        color = age_color(float(known.max()) if known.size else np.nan, period_ms)
        first, last = int(part[0]), int(part[-1])
        if runs and runs[-1][2] == color:
            runs[-1] = (runs[-1][0], last, color)
        else:
            runs.append((first, last, color))
    return runs


def _label(report: FrameReport, device: str) -> str:
    counted = ", ".join(f"{int(grown.sum())} {kind}" for kind, grown in report.counts_of(device).items())
    return f"{device}: {counted}" if counted else device


def _legend(canvas: Canvas, report: FrameReport, x: float, y: float, period_ms: float) -> None:
    canvas.text(x, y, "0 ms", 9.5)
    x += 26
    for i in range(LEVELS + 1):
        at = x + 6 * i
        color = age_color(period_ms * i / LEVELS, period_ms)
        canvas.line(np.array([[at, y - 3.5], [at + 6, y - 3.5]]), color, 7)
    x += 6 * (LEVELS + 1) + 4
    text = f"{period_ms:.0f} ms (a frame) or more; grey: unknown"
    canvas.text(x, y, text, 9.5)
    x += 5.2 * len(text) + 16
    for kind in report.totals():
        canvas.line(np.array([[x, y - 9], [x, y + 2]]), KINDS.get(kind, OTHER), 2)
        canvas.text(x + 5, y, kind, 9.5)
        x += 5.2 * len(kind) + 24
