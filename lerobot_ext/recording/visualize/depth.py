"""Depth in colours with a metric bar: one scale for page, picture and Rerun, and back from a colour to metres.

The colours are Viridis from near (dark) to far (bright), as Rerun maps them; unknown pixels are grey, which Viridis
has nowhere. Where the pictures stand is the business of `page` and `png`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_ext.errors import UserError

UNKNOWN = (205, 210, 216)  # a light grey, in no place of the colour map
PERCENTILES = (1, 99)
LEVELS = 255  # colours of known depth; the 256th is unknown
UNKNOWN_LEVEL = LEVELS
SAMPLED = 200_000  # pixels that percentiles are taken of: more change nothing that can be seen


def _palette() -> NDArray[np.uint8]:
    """(LEVELS + 1, 3) RGB, no colour twice, so that a colour says its depth."""
    shades = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    colors: dict[tuple[int, ...], None] = {}
    for color in cv2.applyColorMap(shades, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].tolist():
        # OpenCV's Viridis has a few colours twice; one more of blue is not seen.
        while tuple(color) in colors:
            color[2] += 1
        colors[tuple(color)] = None
    return np.array([*colors, UNKNOWN], np.uint8)


PALETTE = _palette()


@dataclass(frozen=True)
class DepthScale:
    """The depths at the two ends of the colour bar.

    Attributes:
        near_m: In metres; nearer pixels have the same colour.
        far_m: Likewise.
        source: Where the two come from, for the reader.
    """

    near_m: float
    far_m: float
    source: str = ""

    @classmethod
    def of(cls, images: Sequence[NDArray]) -> DepthScale:
        """From the 1st to the 99th percentile of what is known in `images` (metres); 0 to 1 m if nothing is."""
        parts = [image[np.isfinite(image)] for image in images]
        known = np.concatenate([*parts, np.empty(0, np.float32)])
        if not known.size:
            return cls(0.0, 1.0, "no pixel is known")
        known = known[:: max(1, known.size // SAMPLED)]
        near, far = (float(v) for v in np.percentile(known, PERCENTILES))
        return cls(near, max(far, near + 0.01), "1st to 99th percentile of the pictures")

    @classmethod
    def recorded(cls, info: Mapping[str, Any] | None) -> DepthScale | None:
        """The range that the encoder was given, from a depth feature's `info`; None if it does not say."""
        try:
            near, far = float(info["video.depth_min"]), float(info["video.depth_max"])
        except (TypeError, KeyError, ValueError):
            return None
        return (
            cls(near, far, "the encoder's range") if math.isfinite(near) and near < far < math.inf else None
        )

    def index(self, metres: NDArray) -> NDArray[np.uint8]:
        """(H, W) metres to (H, W) rows of PALETTE."""
        known = np.isfinite(metres)
        share = (np.where(known, metres, self.near_m) - self.near_m) / (self.far_m - self.near_m)
        levels = np.rint(share.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)
        levels[~known] = UNKNOWN_LEVEL
        return levels

    def metres(self, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the rows of PALETTE mean, to half a step; NaN for unknown."""
        depth = self.near_m + levels.astype(np.float32) / (LEVELS - 1) * (self.far_m - self.near_m)
        return np.where(levels == UNKNOWN_LEVEL, np.float32(np.nan), depth)

    def color(self, metres: NDArray) -> NDArray[np.uint8]:
        """(H, W) metres to (H, W, 3) RGB; near is dark, unknown is grey."""
        return PALETTE[self.index(metres)]

    def index_bar(self) -> NDArray[np.uint8]:
        """(1, LEVELS) rows of PALETTE: from near to far."""
        return np.arange(LEVELS, dtype=np.uint8)[None]

    def bar(self) -> NDArray[np.uint8]:
        """(1, LEVELS, 3) RGB: from near to far."""
        return PALETTE[self.index_bar()]

    @property
    def step_m(self) -> float:
        """By how much two neighbouring colours differ."""
        return (self.far_m - self.near_m) / (LEVELS - 1)


def choose_scale(
    images: Sequence[NDArray], info: Mapping[str, Any] | None, wish: str | tuple[float, float] = "auto"
) -> DepthScale:
    """The scale that was asked for.

    Args:
        images: (H, W) metres with NaN where unknown.
        info: The depth feature's `info`.
        wish: `auto` (percentiles), `recorded` (the encoder's range, else percentiles) or near and far in metres.
    """
    if isinstance(wish, tuple):
        return DepthScale(*wish, "as asked for")
    recorded = DepthScale.recorded(info)
    if wish == "recorded" and recorded is not None:
        return recorded
    scale = DepthScale.of(images)
    if recorded is None:
        return scale
    text = f"{scale.source}; the encoder's range is {recorded.near_m:.2f} to {recorded.far_m:.2f} m"
    return DepthScale(scale.near_m, scale.far_m, text)


def parse_range(text: str) -> str | tuple[float, float]:
    """`auto`, `recorded` or `NEAR,FAR` in metres, for `choose_scale`.

    Raises:
        UserError: It is none of them.
    """
    if text in ("auto", "recorded"):
        return text
    try:
        near, far = (float(part) for part in text.split(","))
    except ValueError:
        near = far = math.nan
    if not 0 <= near < far < math.inf:
        raise UserError(
            f"--depth_range is '{text}'; expected auto, recorded, or two distances in metres, as in "
            "--depth_range=0.2,0.9."
        )
    return near, far


def shrink(levels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Every n-th pixel: depths on both sides of an edge have no meaningful mean."""
    if levels.shape[1] <= width:
        return levels
    rows = levels.shape[0] * width // levels.shape[1]
    return cv2.resize(levels, (width, rows), interpolation=cv2.INTER_NEAREST_EXACT)


def to_png(levels: NDArray[np.uint8]) -> bytes:
    """A PNG with PALETTE inside: each pixel's colour says its depth exactly, to one step of the scale."""
    from PIL import Image

    image = Image.fromarray(levels)
    image.putpalette(PALETTE.tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=7)
    return out.getvalue()
