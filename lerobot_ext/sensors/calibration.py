"""From raw numbers to forces by a matrix that the user measured: the file, its checks, and the arithmetic.

Which sensor the file belongs to and when zero is taken are not known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lerobot_ext.sensors.spec import ForceSensorSpec, display_unit

MAX_BYTES = 1 << 20
KEYS = ("matrix", "channels", "unit", "units", "offset", "limit")
FORM = "expected a YAML or JSON file with `matrix` (a row a channel), `channels` (their names) and `unit`"


@dataclass(frozen=True)
class Calibration:
    """calibrated = matrix @ (raw - zero), where zero is the baseline of the last tare, or `offset` before the first.

    Attributes:
        path: Where it was read.
        matrix: (m, n) float64, for m channels out of n raw ones.
        channels: m names.
        units: m units.
        offset: (n,) float64, in raw units: what the sensor shows without load; zeros if the file has none.
        limit: Largest magnitude of a calibrated sample; None: as the raw limit and the matrix have it.
    """

    path: str
    matrix: NDArray[np.float64]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    offset: NDArray[np.float64]
    limit: float | None = None

    def apply(self, difference: NDArray[np.float32]) -> NDArray[np.float32]:
        """Forces of raw differences from zero: (..., n) to (..., m) float32."""
        return (difference.astype(np.float64) @ self.matrix.T).astype(np.float32)

    def spread(self, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest magnitudes (m,) that raw differences up to `limits` (n,) can become."""
        return np.abs(self.matrix) @ limits

    def spec(self, raw: ForceSensorSpec) -> ForceSensorSpec:
        """What a calibrated sample looks like."""
        limits = self.spread(2 * np.asarray(raw.limits, np.float64))
        if self.limit is not None:
            limits = np.full(len(self.channels), self.limit)
        return ForceSensorSpec(
            self.channels,
            display_unit(self.units),
            raw.rate_hz,
            float(limits.max()),
            self.units,
            tuple(limits.tolist()),
        )

    @classmethod
    def load(cls, path: str | Path, raw: ForceSensorSpec) -> Calibration:
        """Read a calibration for samples of `raw`.

        Raises:
            ValueError: The file is not there, not readable, or does not fit; what was found and what was expected.
        """
        given = _read(Path(path))

        def bad(what: str) -> ValueError:
            return ValueError(f"calibration {path}: {what}.")

        if unknown := [key for key in given if key not in KEYS]:
            raise bad(f"has the unknown key '{unknown[0]}'; there are: {', '.join(KEYS)}")
        matrix = _numbers(given.get("matrix"))
        expected = len(raw.channels)
        if matrix is None or matrix.ndim != 2 or 0 in matrix.shape:
            raise bad(f"`matrix` is not rows of numbers of the same length; {FORM}")
        if matrix.shape[1] != expected:
            raise bad(
                f"`matrix` has shape {matrix.shape}, expected (any, {expected}): a column for each of "
                f"{raw.channels[0]} … {raw.channels[-1]}"
            )
        channels = _names(given.get("channels"))
        if channels is None or len(channels) != len(matrix) or len(set(channels)) != len(channels):
            raise bad(
                f"`channels` is {given.get('channels')!r}, expected {len(matrix)} different names, one a row"
            )
        if (given.get("unit") is None) == (given.get("units") is None):
            raise bad("expected either `unit` (one for all channels) or `units` (one for each)")
        units = _names(given["units"]) if given.get("unit") is None else (str(given["unit"]),) * len(channels)
        if units is None or len(units) != len(channels) or not all(units):
            raise bad(f"`units` is {given.get('units')!r}, expected {len(channels)} texts, one a channel")
        offset = np.zeros(expected) if given.get("offset") is None else _numbers(given["offset"])
        if offset is None or offset.shape != (expected,):
            found = "not numbers" if offset is None else f"of shape {offset.shape}"
            raise bad(f"`offset` is {found}, expected {expected} numbers in {raw.unit}")
        limit = given.get("limit")
        if limit is not None and not (_is_number(limit) and limit > 0):
            raise bad(f"`limit` is {limit!r}, expected a number above 0")
        return cls(str(path), matrix, channels, units, offset, None if limit is None else float(limit))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(
                f"calibration {path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES}."
            )
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"calibration {path}: there is no such file.") from None
    except OSError as error:
        raise ValueError(f"calibration {path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"calibration {path}: {' '.join(str(error).split())}; {FORM}.") from error
    if not isinstance(given, dict):
        raise ValueError(f"calibration {path}: {type(given).__name__} found, {FORM}.")
    return given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any) -> NDArray[np.float64] | None:
    """An array of finite numbers, None if it is none."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            return None
        array = array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if np.isfinite(array).all() else None


def _names(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        return None
    return tuple(value)
