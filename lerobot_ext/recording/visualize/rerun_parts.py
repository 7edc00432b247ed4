"""Depth and pads for Rerun, the same in a recording of an episode and in the live view.

Each part names its entity, says what does not change once, and logs one frame at a time; when and how often is the
caller's matter. rerun is imported when a part is used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize.depth import UNKNOWN, DepthScale
from lerobot_ext.recording.visualize.force import Pad
from lerobot_ext.recording.visualize.pad import (
    COLORS,
    FULL_ARROW,
    FULL_DISC,
    LEVELS,
    SMALLEST,
    PadScale,
    spacing_mm,
)

if TYPE_CHECKING:
    from rerun import RecordingStream

MILLIMETRES, METRES = 1000.0, 1.0  # values of a depth image that are one metre
UNKNOWN_CLASS = 1
RGB = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS], np.uint8)
GREY, INK = (154, 165, 177), (31, 41, 51)
GROUND, DISCS, ARROWS = 30.0, 31.0, 32.0  # what is drawn over what


class DepthPicture:
    """A camera's depth: metric, in Viridis from near to far, with unknown pixels in grey on top.

    Args:
        entity: Its path.
        scale: Its colours' ends.
        static: Whether a frame takes the place of the one before, as LeRobot's live view does it.
    """

    def __init__(self, entity: str, scale: DepthScale, static: bool = False):
        self.entity, self.scale, self._static = entity, scale, static

    def view(self) -> Any:
        """The picture with its colour bar below."""
        import rerun.blueprint as rrb

        name = f"{self.entity.rpartition('/')[2]} ({self.scale.near_m:.2f} to {self.scale.far_m:.2f} m)"
        return rrb.Vertical(
            rrb.Spatial2DView(origin=self.entity, name=name),
            rrb.Spatial2DView(origin=self._bar, name="metres"),
            row_shares=[6, 1],
        )

    @property
    def _bar(self) -> str:
        return f"{self.entity}_scale"

    def start(self, recording: RecordingStream) -> None:
        """Log what does not change: the colour bar, and what grey means."""
        import rerun as rr

        bar = bar_picture(self.scale)
        recording.log(self._bar, rr.Image(bar), static=True)
        unknown = rr.AnnotationInfo(id=UNKNOWN_CLASS, label="unknown depth", color=UNKNOWN)
        transparent = rr.AnnotationInfo(id=0, color=(0, 0, 0, 0))
        recording.log(f"{self.entity}/unknown", rr.AnnotationContext([transparent, unknown]), static=True)

    def log(self, recording: RecordingStream, depth: NDArray) -> None:
        """Log one frame.

        Args:
            recording: Where to.
            depth: (H, W) or (H, W, 1); uint16 millimetres with 0 for unknown, or float metres with NaN or 0.
        """
        import rerun as rr

        depth = depth.reshape(depth.shape[:2])
        if depth.dtype == np.uint16:
            unknown = depth == 0
        else:
            unknown = ~(depth > 0)
            depth = (np.where(unknown, 0, depth) * MILLIMETRES).clip(0, 65535).round().astype(np.uint16)
        near, far = self.scale.near_m * MILLIMETRES, self.scale.far_m * MILLIMETRES
        picture = rr.DepthImage(
            depth,
            meter=MILLIMETRES,
            colormap=rr.components.Colormap.Viridis,
            depth_range=(near, far),
        )
        recording.log(self.entity, picture, static=self._static)
        # Also when all pixels are known: the frame before may have had unknown ones.
        overlay = rr.SegmentationImage(unknown.view(np.uint8), opacity=1.0)
        recording.log(f"{self.entity}/unknown", overlay, static=self._static)


class PadDrawing:
    """A tactile pad as arrows and discs, in millimetres with y down (as Rerun's 2D views have it).

    Args:
        entity: Its path.
        pad: Where its points are.
        scale: What a full arrow and a full disc mean.
        unit: Of the scale.
    """

    def __init__(self, entity: str, pad: Pad, scale: PadScale, unit: str):
        self.entity, self.pad, self.scale, self.unit = entity, pad, scale, unit
        self._apart = spacing_mm(pad.positions_mm)
        self._centers = (pad.positions_mm * (1, -1)).astype(np.float32)

    def view(self, name: str) -> Any:
        """The pad with a border around it, under a name."""
        import rerun.blueprint as rrb

        low, high = self._centers.min(axis=0) - self._apart, self._centers.max(axis=0) + self._apart
        bounds = rrb.VisualBounds2D(
            x_range=[float(low[0]), float(high[0])],
            y_range=[float(low[1]), float(high[1]) + 1.4 * self._apart],
        )
        return rrb.Spatial2DView(
            origin=self.entity, name=name, visual_bounds=bounds, background=[255, 255, 255]
        )

    def start(self, recording: RecordingStream) -> None:
        """Log what does not change: the points and the legend."""
        import rerun as rr

        recording.log(
            f"{self.entity}/points",
            rr.Points2D(self._centers, radii=0.25, colors=GREY, draw_order=GROUND),
            static=True,
        )
        self.log_legend(recording)

    def log_legend(self, recording: RecordingStream) -> None:
        """Log the legend, below the pad; again when the scale has changed."""
        import rerun as rr

        x, y = self._centers.min(axis=0)[0], self._centers.max(axis=0)[1] + 1.4 * self._apart
        full = FULL_ARROW * self._apart
        recording.log(
            f"{self.entity}/legend/arrow",
            rr.Arrows2D(
                vectors=[[full, 0]],
                origins=[[x, y]],
                colors=INK,
                radii=0.2,
                labels=[f"{self.scale.arrow:g} {self.unit} along"],
                show_labels=True,
            ),
            static=True,
        )
        discs = np.array([[x + 1.7 * self._apart, y], [x + 2.8 * self._apart, y]])
        recording.log(
            f"{self.entity}/legend/discs",
            rr.Points2D(discs, radii=FULL_DISC * self._apart, colors=[RGB[0], RGB[-1]]),
            static=True,
        )
        # A label is written over its point, so each has a small one of its own below the disc.
        recording.log(
            f"{self.entity}/legend/labels",
            rr.Points2D(
                discs + (0, 0.5 * self._apart),
                radii=0.05,
                colors=INK,
                labels=[f"-{self.scale.disc:g}", f"+{self.scale.disc:g} {self.unit} normal"],
                show_labels=True,
            ),
            static=True,
        )

    def log(self, recording: RecordingStream, vectors: NDArray) -> None:
        """Log one sample: (points, 3) tangential x, y and normal."""
        import rerun as rr

        arrows, radii, colors = self.shapes(vectors)
        recording.log(
            f"{self.entity}/discs", rr.Points2D(self._centers, radii=radii, colors=colors, draw_order=DISCS)
        )
        recording.log(
            f"{self.entity}/arrows",
            rr.Arrows2D(vectors=arrows, origins=self._centers, colors=INK, radii=0.2, draw_order=ARROWS),
        )

    def shapes(self, vectors: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Arrows (points, 2) and radii (points,) in mm, colours (points, 3), of one sample."""
        vectors = np.nan_to_num(np.asarray(vectors, np.float32))
        tangent = vectors[:, :2] / self.scale.arrow
        tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1)
        normal = np.clip(vectors[:, 2] / self.scale.disc, -1, 1)
        arrows = tangent * (FULL_ARROW * self._apart) * (1, -1)
        radii = self._apart * (SMALLEST + (FULL_DISC - SMALLEST) * np.abs(normal))
        return arrows, radii, RGB[np.rint((normal + 1) / 2 * (LEVELS - 1)).astype(int)]

    def grow(self, vectors: NDArray) -> bool:
        """Widen the scale if `vectors` exceed it; whether it changed."""
        seen = PadScale.of(vectors)
        if seen.arrow <= self.scale.arrow and seen.disc <= self.scale.disc:
            return False
        self.scale = replace(
            self.scale, arrow=max(self.scale.arrow, seen.arrow), disc=max(self.scale.disc, seen.disc)
        )
        return True


def bar_picture(scale: DepthScale) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: the colour bar with its distances, for a viewer that has none of its own."""
    from PIL import Image

    from lerobot_ext.recording.visualize.chart import ImageCanvas, ticks

    width, long, left = 400, 340, 30
    image = Image.new("RGB", (width, 48), "white")
    bar = Image.fromarray(scale.bar()).resize((long, 16))
    image.paste(bar, (left, 4))
    canvas = ImageCanvas(image, 1.0)
    for tick, label in ticks(scale.near_m, scale.far_m, 4):
        x = left + long * (tick - scale.near_m) / (scale.far_m - scale.near_m)
        canvas.line(np.array([[x, 20], [x, 24]]), "#1f2933")
        canvas.text(x, 40, f"{label} m", 13, "middle")
    return np.asarray(image)
