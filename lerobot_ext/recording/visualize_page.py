"""An episode as one HTML page and as one PNG, both complete in themselves: pictures inside, nothing fetched.

What is worth showing is chosen in `visualize_episode`, curves are drawn in `visualize_chart`.
"""

from __future__ import annotations

import base64
import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize_chart import (
    PALETTE,
    Chart,
    ImageCanvas,
    Line,
    draw_chart,
    svg_chart,
    ticks,
)
from lerobot_ext.recording.visualize_control import (
    TITLE,
    control_charts,
    control_html,
    sentences,
    summary_line,
)
from lerobot_ext.recording.visualize_episode import Curves, EpisodeView
from lerobot_ext.recording.visualize_telemetry import Telemetry, load_if_there, path_of

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

PICTURE_WIDTH = 320  # pixels of a key frame in the page
CONTROL_HEIGHT = 160  # points of a telemetry chart in the PNG
PNG_INCIDENTS = 20  # sentences below them
JPEG_QUALITY = 82
COLORMAP = cv2.COLORMAP_VIRIDIS
UNKNOWN = (205, 210, 216)  # a light grey, in no place of the colour map

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 1.5rem auto; max-width: 1240px;
  padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p.facts { color: #52606d; margin: 0 0 .6rem; } p.note { color: #52606d; font-size: .85rem; margin: .2rem 0; }
.row { display: flex; gap: 6px; } figure { margin: 0; flex: 1 1 0; min-width: 0; }
figure img { width: 100%; display: block; border-radius: 3px; }
figcaption { font-size: .78rem; color: #52606d; text-align: center; }
svg { max-width: 100%; height: auto; } .joints { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px 10px; }
.bar { display: flex; align-items: center; gap: 8px; font-size: .8rem; color: #52606d; margin: .2rem 0; }
.bar img { height: 12px; width: 320px; border-radius: 2px; }
"""


@dataclass(frozen=True)
class DepthScale:
    """The depths in metres at the two ends of the colour bar."""

    near_m: float
    far_m: float

    @classmethod
    def of(cls, images: list[NDArray]) -> DepthScale:
        """From the 1st to the 99th percentile of what is known; 0 to 1 m if nothing is."""
        known = np.concatenate([image[np.isfinite(image)] for image in images])
        if not known.size:
            return cls(0.0, 1.0)
        near, far = (float(v) for v in np.percentile(known, [1, 99]))
        return cls(near, max(far, near + 0.01))

    def color(self, metres: NDArray) -> NDArray[np.uint8]:
        """(H, W) metres to (H, W, 3) RGB; near is bright, unknown is grey."""
        known = np.isfinite(metres)
        share = (self.far_m - np.where(known, metres, self.far_m)) / (self.far_m - self.near_m)
        gray = (share.clip(0, 1) * 255).astype(np.uint8)
        image = cv2.cvtColor(cv2.applyColorMap(gray, COLORMAP), cv2.COLOR_BGR2RGB)
        image[~known] = UNKNOWN
        return image

    def bar(self) -> NDArray[np.uint8]:
        """(1, 256, 3) RGB: from near to far."""
        return self.color(np.linspace(self.near_m, self.far_m, 256, dtype=np.float32)[None])


@dataclass(frozen=True)
class Row:
    """One camera's key frames, ready to look at: a title, RGB pictures, and the scale if they are depth."""

    title: str
    images: list[NDArray[np.uint8]]
    scale: DepthScale | None


class EpisodePictures:
    """What page and PNG share: key frames decoded once, and the charts.

    Args:
        dataset: The dataset that holds the episode.
        episode_index: Which one.
        telemetry: Of the episode; None takes the file in the dataset's folder, if there is one.
    """

    def __init__(self, dataset: LeRobotDataset, episode_index: int, telemetry: Telemetry | None = None):
        self.view = EpisodeView(dataset, episode_index)
        self.telemetry = telemetry or load_if_there(path_of(dataset.root, episode_index))
        self.keys = self.view.key_frames()
        self.rows = self._rows()
        self._marks = [float(self.view.times_s[p]) for p, _ in self.keys]

    def _rows(self) -> list[Row]:
        frames = [self.view.pictures(position) for position, _ in self.keys]
        rows = []
        for key in self.view.color_keys + self.view.depth_keys:
            name = key.removeprefix("observation.images.")
            images = [frame[key] for frame in frames]
            scale = None
            if key in self.view.depth_keys:
                scale = DepthScale.of(images)
                images = [scale.color(image) for image in images]
            rows.append(Row(name, [_shrink(image) for image in images], scale))
        return sorted(rows, key=lambda row: row.title)

    def captions(self) -> list[str]:
        """Under each key frame: its time and what it shows."""
        return [f"{t:.2f} s{' · ' + name if name else ''}" for t, (_, name) in zip(self._marks, self.keys, strict=True)]  # fmt: skip

    def facts(self) -> str:
        """One line about the episode."""
        view = self.view
        return f"{len(view)} frames at {view.fps} fps, {view.times_s[-1] + 1 / view.fps:.1f} s"

    def force_charts(self) -> list[Chart]:
        """The norm of each sensor's change, and all channels; empty without force."""
        force, norms = self.view.force, self.view.force_norms()
        if force is None or norms is None:
            return []
        return [
            self._chart("force: norm of the change since the episode's start", norms, zero=True),
            self._chart("force: channels as recorded", force, zero=True),
        ]

    def joint_charts(self) -> list[Chart]:
        """State and action of each joint, one chart a joint; the rest of a longer action apart."""
        state, action = self.view.state, self.view.action
        charts = []
        for kind, other in ((state, action), (action, state)):
            if kind is None:
                continue
            for i, name in enumerate(kind.names):
                pair = []
                for curves, color, dashed in ((state, PALETTE[0], False), (action, PALETTE[1], True)):
                    if curves is not None and name in curves.names:
                        values = curves.values[:, curves.names.index(name)]
                        pair.append(Line(name, values, color, dashed))
                if kind is state or other is None or name not in other.names:
                    charts.append(Chart(kind.names[i], self.view.times_s, pair, self._marks, legend=False))
        return charts

    def _chart(self, title: str, curves: Curves, zero: bool) -> Chart:
        lines = [
            Line(name, curves.values[:, i], PALETTE[i % len(PALETTE)], i >= len(PALETTE))
            for i, name in enumerate(curves.names)
        ]
        return Chart(title, self.view.times_s, lines, self._marks, zero=zero)


def episode_page(dataset: LeRobotDataset, episode_index: int) -> str:
    """A self-contained HTML page of one episode: key frames, depth with a metric colour bar, force, joints.

    Args:
        dataset: The dataset that holds it.
        episode_index: Which episode.

    Returns:
        The page's text; well below 2 MB.

    Raises:
        UserError: There is no such episode.
    """
    return render_page(EpisodePictures(dataset, episode_index))


def render_page(pictures: EpisodePictures) -> str:
    """See `episode_page`."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(_title(pictures))}</title>'
        f"<style>{STYLE}</style></head><body>{render_body(pictures)}</body></html>\n"
    )


def _title(pictures: EpisodePictures) -> str:
    return f"{pictures.view.dataset.repo_id} · episode {pictures.view.index}"


def render_body(pictures: EpisodePictures) -> str:
    """What stands on the page of one episode, for pages that show several; to be shown with STYLE."""
    view = pictures.view
    parts = [
        f"<h1>{escape(_title(pictures))}</h1>",
        f'<p class="facts">task: <b>{escape(view.task)}</b> · {escape(pictures.facts())}</p>',
    ]
    captions = [escape(caption) for caption in pictures.captions()]
    for row in pictures.rows:
        figures = "".join(
            f'<figure><img alt="{escape(row.title)} at {caption}" src="{_data_url(image)}">'
            f"<figcaption>{caption}</figcaption></figure>"
            for image, caption in zip(row.images, captions, strict=True)
        )
        parts.append(f'<h2>{escape(row.title)}</h2><div class="row">{figures}</div>')
        if row.scale is not None:
            parts.append(
                f'<div class="bar"><span>{row.scale.near_m:.2f} m</span><img alt="colour bar" '
                f'src="{_data_url(row.scale.bar(), ".png")}"><span>{row.scale.far_m:.2f} m</span>'
                "<span>grey: unknown</span></div>"
            )
    force = pictures.force_charts()
    if force:
        parts.append("<h2>force</h2>")
        parts += [svg_chart(chart, 1200, 200 if i == 0 else 290) for i, chart in enumerate(force)]
    joints = pictures.joint_charts()
    if joints:
        charts = "".join(svg_chart(chart, 390, 170) for chart in joints)
        parts.append(
            '<h2>joints</h2><p class="note">blue: state; orange, dashed: action. Thin vertical lines: the '
            f'pictures above.</p><div class="joints">{charts}</div>'
        )
    if pictures.telemetry is not None:
        parts.append(control_html(pictures.telemetry, view.times_s))
    return "".join(parts)


def render_png(pictures: EpisodePictures, path: Path) -> None:
    """Key frames and curves of one episode as one PNG, 1200 points wide."""
    from PIL import Image

    scale, width, margin, gap = 1.5, 1200, 16, 6
    charts = [(chart, width - 2 * margin, 190 if i == 0 else 280) for i, chart in enumerate(pictures.force_charts())]  # fmt: skip
    joints = [(chart, (width - 2 * margin) / 3, 150) for chart in pictures.joint_charts()]
    count = len(pictures.keys)
    cell = (width - 2 * margin - gap * (count - 1)) / count
    heights = [cell * row.images[0].shape[0] / row.images[0].shape[1] for row in pictures.rows]
    bars = sum(row.scale is not None for row in pictures.rows)
    total = 62 + sum(h + 44 for h in heights) + 24 * bars + sum(h for _, _, h in charts)
    total += 24 + 150 * -(-len(joints) // 3) if joints else 0
    telemetry = pictures.telemetry
    control, notes = [], []
    if telemetry is not None:
        control = control_charts(telemetry, pictures.view.times_s)
        notes = _wrapped(f"{TITLE}: {summary_line(telemetry)}") + _wrapped(
            *sentences(telemetry)[:PNG_INCIDENTS]
        )
        total += 12 + 17 * len(notes) + CONTROL_HEIGHT * len(control)
    image = Image.new("RGB", (round(width * scale), round((total + margin) * scale)), "white")
    canvas = ImageCanvas(image, scale)

    def paste(pixels: NDArray, x: float, y: float, w: float, h: float) -> None:
        size = (round(w * scale), round(h * scale))
        image.paste(
            Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC),
            (round(x * scale), round(y * scale)),
        )

    view, y = pictures.view, 30.0
    canvas.text(margin, y, f"{view.dataset.repo_id}, episode {view.index}", 17)
    canvas.text(margin, y + 20, f"task: {view.task}  ({pictures.facts()})", 12)
    y += 32
    for row, height in zip(pictures.rows, heights, strict=True):
        canvas.text(margin, y + 16, row.title, 13)
        y += 22
        for i, (pixels, caption) in enumerate(zip(row.images, pictures.captions(), strict=True)):
            x = margin + i * (cell + gap)
            paste(pixels, x, y, cell, height)
            canvas.text(x + cell / 2, y + height + 13, caption.replace("·", "-"), 10.5, "middle")
        y += height + 22
        if row.scale is not None:
            paste(row.scale.bar(), margin, y, 320, 9)
            for tick, label in ticks(row.scale.near_m, row.scale.far_m, 5):
                share = (tick - row.scale.near_m) / (row.scale.far_m - row.scale.near_m)
                canvas.text(margin + 320 * share, y + 20, f"{label} m", 9.5, "middle")
            canvas.text(margin + 350, y + 9, "grey: unknown", 9.5)
            y += 24
    for chart, w, h in charts:
        draw_chart(ImageCanvas(image, scale, margin, y), chart, w, h)
        y += h
    if joints:
        canvas.text(margin, y + 18, "joints (blue: state; orange, dashed: action)", 13)
        y += 24
        for i, (chart, w, h) in enumerate(joints):
            draw_chart(ImageCanvas(image, scale, margin + i % 3 * w, y + i // 3 * h), chart, w, h)
        y += joints[0][2] * -(-len(joints) // 3)
    y += 12
    for note in notes:
        canvas.text(margin, y + 8, note, 12)
        y += 17
    for chart in control:
        draw_chart(ImageCanvas(image, scale, margin, y), chart, width - 2 * margin, CONTROL_HEIGHT)
        y += CONTROL_HEIGHT
    image.save(path, optimize=True)


def _wrapped(*texts: str) -> list[str]:
    """Lines that fit the PNG; its font knows Latin letters only."""
    return [line for text in texts for line in textwrap.wrap(text.replace("…", "..."), 190)]


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if width <= PICTURE_WIDTH:
        return image
    size = (PICTURE_WIDTH, round(height * PICTURE_WIDTH / width))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _data_url(rgb: NDArray[np.uint8], form: str = ".jpg") -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if form == ".jpg" else []
    _, coded = cv2.imencode(form, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    kind = {".jpg": "jpeg", ".png": "png"}[form]
    return f"data:image/{kind};base64,{base64.b64encode(coded).decode('ascii')}"
