"""The pinhole camera behind an image, and how two of them lie to each other. No device and no picture here.

What a dataset's metadata says of a camera becomes these objects again years later, without librealsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE = "none"
BROWN = "brown_conrady"
INVERSE_BROWN = "inverse_brown_conrady"
MODELS = (NONE, BROWN, INVERSE_BROWN)
_BROWN_FAMILY = (NONE, BROWN, INVERSE_BROWN, "modified_brown_conrady")
ITERATIONS = 10  # as many as librealsense takes


@dataclass(frozen=True)
class Intrinsics:
    """The pinhole camera behind an image, in pixels; `model` and `coeffs` are librealsense's distortion."""

    width: int
    height: int
    fx: float
    fy: float
    ppx: float
    ppy: float
    model: str
    coeffs: tuple[float, ...]

    @classmethod
    def of(cls, profile: Any) -> Intrinsics:
        """Those of a librealsense stream profile."""
        i = profile.as_video_stream_profile().get_intrinsics()
        return cls(i.width, i.height, i.fx, i.fy, i.ppx, i.ppy, i.model.name, tuple(i.coeffs))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Intrinsics:
        """Those that were recorded with a picture.

        Args:
            metadata: `dataset.meta.features["observation.images.side_depth"]["info"]`, its `camera`, or that one's
                `intrinsics`: what `RealSenseRGBDCamera.metadata()` says of a stream.

        Raises:
            ValueError: There are none in it, or one of the numbers is missing.
        """
        found: Any = metadata
        for key in ("info", "camera", "intrinsics"):
            found = found[key] if isinstance(found, Mapping) and key in found else found
        try:
            numbers = {name: float(found[name]) for name in ("fx", "fy", "ppx", "ppy")}
            return cls(
                width=int(found["width"]),
                height=int(found["height"]),
                model=str(found["model"]),
                coeffs=tuple(float(value) for value in found["coeffs"]),
                **numbers,
            )
        except (KeyError, TypeError, ValueError) as error:
            there = ", ".join(map(str, found)) if isinstance(found, Mapping) else repr(found)
            raise ValueError(
                f"no camera intrinsics in this metadata ({error!r}); there is: {there or 'nothing'}. Pictures that "
                "LeRobot's own drivers recorded have none."
            ) from error

    def to_metadata(self) -> dict[str, Any]:
        """As a dict of what JSON has; `from_metadata` reads it."""
        return asdict(self) | {"coeffs": list(self.coeffs)}

    def rays(self) -> NDArray[np.float32]:
        """Where each pixel looks: (height, width, 2) float32, x and y in metres at one metre of depth.

        The formula is librealsense's `rs2_deproject_pixel_to_point` (`src/rs.cpp`; `include/librealsense2/rsutil.h`
        in older versions): the pinhole, and ten fixed-point iterations that undo the distortion.

        Raises:
            ValueError: The distortion model is not one of `MODELS`.
        """
        columns = (np.arange(self.width, dtype=np.float64) - self.ppx) / self.fx
        rows = (np.arange(self.height, dtype=np.float64) - self.ppy) / self.fy
        x, y = np.broadcast_arrays(columns[np.newaxis, :], rows[:, np.newaxis])
        model = NONE if self.model in _BROWN_FAMILY and not any(self.coeffs) else self.model
        if model not in MODELS:
            raise ValueError(
                f"distortion model '{self.model}' cannot be undone; expected one of {', '.join(MODELS)}."
            )
        if model != NONE:
            x, y = _undistorted(x, y, self.coeffs, inverse=model == INVERSE_BROWN)
        return np.stack((x, y), axis=-1).astype(np.float32)


def _undistorted(
    x0: NDArray, y0: NDArray, coeffs: tuple[float, ...], *, inverse: bool
) -> tuple[NDArray, NDArray]:
    k1, k2, p1, p2, k3 = coeffs
    x, y = x0, y0
    for _ in range(ITERATIONS):
        r2 = x * x + y * y
        factor = 1 / (1 + ((k3 * r2 + k2) * r2 + k1) * r2)
        # The inverse model's tangential part takes the point after the radial one.
        xt, yt = (x / factor, y / factor) if inverse else (x, y)
        x, y = (
            (x0 - 2 * p1 * xt * yt - p2 * (r2 + 2 * xt * xt)) * factor,
            (y0 - 2 * p2 * xt * yt - p1 * (r2 + 2 * yt * yt)) * factor,
        )
    return x, y


@dataclass(frozen=True)
class Extrinsics:
    """From one camera's coordinates to another's: `rotation @ point + translation_m`.

    Attributes:
        rotation: 9 numbers, column by column as in librealsense.
        translation_m: Metres.
    """

    rotation: tuple[float, ...]
    translation_m: tuple[float, ...]

    @classmethod
    def between(cls, source: Any, target: Any) -> Extrinsics:
        """From librealsense's stream profile `source` to `target`."""
        found = source.get_extrinsics_to(target)
        return cls(tuple(found.rotation), tuple(found.translation))

    def to_metadata(self) -> dict[str, Any]:
        """As a dict of what JSON has."""
        return {"rotation": list(self.rotation), "translation_m": list(self.translation_m)}
