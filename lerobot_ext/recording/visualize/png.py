"""An episode as one PNG, 1200 points wide: what the page shows, as a still, for wherever a page cannot go.

What there is to show is gathered in `pictures`. A first pass over the same blocks gives the height.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize.chart import ImageCanvas, draw_chart, ticks
from lerobot_ext.recording.visualize.control import TITLE, control_charts, sentences, summary_line
from lerobot_ext.recording.visualize.depth import PALETTE, UNKNOWN, DepthScale
from lerobot_ext.recording.visualize.pad import LEGEND_HEIGHT, SIZE, PadPicture, pad_title
from lerobot_ext.recording.visualize.pictures import NORMS, EpisodePictures, PadEpisode, Row
from lerobot_ext.recording.visualize.strip import draw_strip, strip_height

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE, WIDTH, MARGIN, GAP = 1.5, 1200, 16, 6  # pixels a point, then points
INNER = WIDTH - 2 * MARGIN
NORM_HEIGHT, CHANNELS_HEIGHT, JOINT_HEIGHT, CONTROL_HEIGHT = 170, 250, 150, 160
LETTERS = 190  # of a line of text
INCIDENTS = 20  # sentences below the telemetry's charts


@dataclass(frozen=True)
class Block:
    """A part of the picture: how high it is, and what draws it at a given y."""

    height: float
    draw: Callable[[Sheet, float], None]


class Sheet:
    """The PIL picture, with its points."""

    def __init__(self, image: Image):
        self.image = image
        self.canvas = ImageCanvas(image, SCALE)

    def at(self, x: float, y: float) -> ImageCanvas:
        """A canvas with its origin at (x, y)."""
        return ImageCanvas(self.image, SCALE, x, y)

    def paste(self, pixels: NDArray[np.uint8], x: float, y: float, w: float, h: float, smooth: bool) -> None:
        """RGB pixels stretched over (w, h) points at (x, y)."""
        from PIL import Image

        how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        size = (round(w * SCALE), round(h * SCALE))
        self.image.paste(
            Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how),
            (round(x * SCALE), round(y * SCALE)),
        )


def render_png(pictures: EpisodePictures, path: Path) -> None:
    """Key frames, pads at the peak of force, ages and drops, and curves of one episode as one PNG."""
    from PIL import Image

    blocks = _blocks(pictures)
    total = sum(block.height for block in blocks) + MARGIN
    image = Image.new("RGB", (round(WIDTH * SCALE), round(total * SCALE)), "white")
    sheet, y = Sheet(image), 0.0
    for block in blocks:
        block.draw(sheet, y)
        y += block.height
    image.save(path, optimize=True)


def _blocks(pictures: EpisodePictures) -> list[Block]:
    view = pictures.view
    blocks = [_head(pictures)]
    blocks += [_row(row, pictures.captions()) for row in pictures.rows]
    blocks += [_pad(pad, pictures) for pad in pictures.pads]
    blocks.append(_text([pictures.report_line()]))
    if pictures.report is not None:
        report = pictures.report
        blocks.append(
            Block(
                strip_height(report) + 8,
                lambda sheet, y: draw_strip(sheet.at(MARGIN, y + 6), report, view.times_s, view.fps, INNER),
            )
        )
    blocks += [_chart(panel.chart, NORM_HEIGHT if panel.kind == NORMS else CHANNELS_HEIGHT)
               for panel in pictures.force_panels() if pictures.options.force in ("both", panel.kind)]  # fmt: skip
    if pictures.sensors:
        blocks.append(_text(pictures.force_notes()))
    joints = pictures.joint_charts()
    if joints:
        blocks.append(_title("joints (blue: state; orange, dashed: action)"))
        blocks += [_side_by_side(joints[i : i + 3]) for i in range(0, len(joints), 3)]
    telemetry = pictures.telemetry
    if telemetry is not None:
        blocks.append(_text([f"{TITLE}: {summary_line(telemetry)}", *sentences(telemetry)[:INCIDENTS]]))
        blocks += [_chart(chart, CONTROL_HEIGHT) for chart in control_charts(telemetry, view.times_s)]
    return blocks


def _head(pictures: EpisodePictures) -> Block:
    def draw(sheet: Sheet, y: float) -> None:
        sheet.canvas.text(MARGIN, y + 30, pictures.title.replace(" ·", ","), 17)
        sheet.canvas.text(MARGIN, y + 50, f"task: {pictures.view.told}  ({pictures.facts()})", 12)

    return Block(62, draw)


def _row(row: Row, captions: list[str]) -> Block:
    """A camera's key frames beside each other, with the colour bar below if they are depth."""
    count = len(row.images)
    cell = (INNER - GAP * (count - 1)) / count
    tall = cell * row.images[0].shape[0] / row.images[0].shape[1]

    def draw(sheet: Sheet, y: float) -> None:
        sheet.canvas.text(MARGIN, y + 16, row.title, 13)
        y += 22
        for i, (image, caption) in enumerate(zip(row.images, captions, strict=True)):
            x = MARGIN + i * (cell + GAP)
            sheet.paste(image if row.scale is None else PALETTE[image], x, y, cell, tall, row.scale is None)
            sheet.canvas.text(x + cell / 2, y + tall + 13, caption.replace("·", "-"), 10.5, "middle")
        if row.scale is not None:
            _bar(sheet, row.scale, y + tall + 22)

    return Block(tall + 44 + (30 if row.scale is not None else 0), draw)


def _bar(sheet: Sheet, scale: DepthScale, y: float) -> None:
    long = 320
    sheet.paste(scale.bar(), MARGIN, y, long, 10, True)
    for tick, label in ticks(scale.near_m, scale.far_m, 5):
        x = MARGIN + long * (tick - scale.near_m) / (scale.far_m - scale.near_m)
        sheet.canvas.line(np.array([[x, y + 10], [x, y + 13]]), "#9aa5b1")
        sheet.canvas.text(x, y + 23, f"{label} m", 9.5, "middle")
    sheet.paste(np.full((1, 1, 3), UNKNOWN, np.uint8), MARGIN + long + 28, y, 14, 10, False)
    text = f"unknown;  range {scale.near_m:.3f} to {scale.far_m:.3f} m: {scale.source}"
    sheet.canvas.text(MARGIN + long + 48, y + 9, text, 10)


def _pad(pad: PadEpisode, pictures: EpisodePictures) -> Block:
    """A pad at the key frames, below their pictures, with its legend."""
    keys = [position for position, _ in pictures.keys]
    cell = (INNER - GAP * (len(keys) - 1)) / len(keys)
    picture = PadPicture(pad.sensor.pad, pad.picture.scale, min(cell, SIZE))
    peak = pictures.view.times_s[pad.peak]

    def draw(sheet: Sheet, y: float) -> None:
        sheet.canvas.text(MARGIN, y + 16, f"{pad_title(pad.sensor)} (its peak: {peak:.2f} s)", 13)
        y += 22
        for i, (position, caption) in enumerate(zip(keys, pictures.captions(), strict=True)):
            x = MARGIN + i * (cell + GAP) + (cell - picture.size) / 2
            picture.draw(sheet.at(x, y), pad.vectors[position])
            sheet.canvas.text(
                x + picture.size / 2, y + picture.size + 13, caption.replace("·", "-"), 10.5, "middle"
            )
        y += picture.size + 20
        picture.draw_legend(sheet.at(MARGIN, y), pad.sensor.unit)
        for i, line in enumerate(
            ("the same scale in the whole episode; change since the episode's start;",
             "red: positive, blue: negative, along the board's z axis")
        ):  # fmt: skip
            sheet.canvas.text(MARGIN + 290, y + 16 + 20 * i, line, 10.5)

    return Block(22 + picture.size + 20 + LEGEND_HEIGHT + 6, draw)


def _chart(chart, tall: float) -> Block:
    return Block(tall, lambda sheet, y: draw_chart(sheet.at(MARGIN, y), chart, INNER, tall))


def _side_by_side(charts: list) -> Block:
    def draw(sheet: Sheet, y: float) -> None:
        for i, chart in enumerate(charts):
            draw_chart(sheet.at(MARGIN + i * INNER / 3, y), chart, INNER / 3, JOINT_HEIGHT)

    return Block(JOINT_HEIGHT, draw)


def _title(text: str) -> Block:
    return Block(24, lambda sheet, y: sheet.canvas.text(MARGIN, y + 18, text, 13))


def _text(texts: list[str]) -> Block:
    """Wrapped lines; PIL's font knows Latin letters only."""
    lines = [line for text in texts for line in textwrap.wrap(text.replace("…", "..."), LETTERS)]

    def draw(sheet: Sheet, y: float) -> None:
        for i, line in enumerate(lines):
            sheet.canvas.text(MARGIN, y + 20 + 17 * i, line, 12)

    return Block(17 * len(lines) + 12, draw)
