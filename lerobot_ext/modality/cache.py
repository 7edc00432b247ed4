"""A dataset kept in memory: every selected frame decoded once, resized, ready to be indexed.

Colour is kept as uint8, depth as 15-bit steps of its far end (0 is "no measurement"): both within half a step of
what decoding each time gives. What decides on the size and where it comes from is in `reader`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lerobot_ext.errors import UserError
from lerobot_ext.modality.images import as_uint8

DEPTH_STEPS = 32766
_SHARED_MEMORY = Path("/dev/shm")
GB = 1e9


def bytes_per_frame(channels: int, height: int, width: int) -> int:
    """Bytes of one frame in the cache: 3 channels of 1 byte, or 1 of 2 bytes."""
    return height * width * (3 if channels == 3 else 2)


def check_size(needed: int, allowed_gb: float, shared: bool) -> None:
    """Refuse a cache that is larger than allowed or than the shared memory that worker processes need.

    Raises:
        UserError: Says how much is needed, how much there is and what to do.
    """
    if needed > allowed_gb * GB:
        raise UserError(
            f"the cache needs {needed / GB:.2f} GB, modality.cache_max_gb allows {allowed_gb:g}; raise it, make "
            "images smaller with modality.resize, or set modality.cache: none."
        )
    if shared and _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if needed > free:
            raise UserError(
                f"the cache needs {needed / GB:.2f} GB of shared memory for worker processes, {_SHARED_MEMORY} has "
                f"{free / GB:.2f} free; set num_workers: 0, or enlarge it (docker run --shm-size)."
            )


class FrameStore:
    """The frames of one stream.

    Attributes:
        far_m: For depth, the distance of the highest step; None for colour.
    """

    def __init__(self, frames: int, shape: tuple[int, int, int], far_m: float | None, shared: bool) -> None:
        """Reserve memory for `frames` images of `shape` (C, H, W), in shared memory if worker processes read it."""
        self.far_m = far_m
        # int16 and not uint16: torch indexes it.
        self._data = torch.zeros((frames, *shape), dtype=torch.uint8 if far_m is None else torch.int16)
        if shared:
            self._data.share_memory_()

    def put(self, start: int, frames: Tensor) -> None:
        """Keep (n, C, H, W): colour uint8 or in [0, 1], depth in metres with 0 for "no measurement"."""
        self._data[start : start + len(frames)] = self._encode(frames)

    def get(self, rows: int | Tensor) -> Tensor:
        """Colour as uint8, depth as float32 metres; (C, H, W) for a number, (n, C, H, W) for a tensor of n."""
        frames = self._data[rows]
        return frames if self.far_m is None else frames.to(torch.float32) * (self.far_m / DEPTH_STEPS)

    def _encode(self, frames: Tensor) -> Tensor:
        if self.far_m is None:
            return as_uint8(frames)
        steps = (frames.clamp(max=self.far_m) * (DEPTH_STEPS / self.far_m)).round()
        # A measurement so near that it would round to 0 stays a measurement.
        return torch.where(frames > 0, steps.clamp(min=1), 0).to(torch.int16)


class Columns:
    """The columns of a table that are no images, as LeRobot's reader would give them row by row."""

    def __init__(self, table: Any, skip: set[str]) -> None:
        """Read every column of `table` (a `datasets.Dataset`) except those in `skip`."""
        self.tensors: dict[str, Tensor] = {}
        self.objects: dict[str, list[Any]] = {}
        kept = [key for key in table.column_names if key not in skip]
        arrow = table.select_columns(kept).with_format("arrow")[:]
        for key in kept:
            values = arrow.column(key).to_pylist()
            array = None if not values or isinstance(values[0], (str, dict)) else np.asarray(values)
            if array is None or array.dtype == object:
                self.objects[key] = values
            else:
                self.tensors[key] = _as_torch(array)

    def row(self, index: int) -> dict[str, Any]:
        """One row."""
        row: dict[str, Any] = {key: column[index] for key, column in self.tensors.items()}
        row.update((key, column[index]) for key, column in self.objects.items())
        return row


def _as_torch(array: np.ndarray) -> Tensor:
    # LeRobot makes tensors of Python numbers, whatever the column's own width.
    return torch.as_tensor(array.astype(np.float32) if array.dtype == np.float64 else array)


def chunks(start: int, stop: int, size: int) -> Iterator[range]:
    """`start` to `stop` in pieces of at most `size`."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def fill(
    stores: Mapping[str, FrameStore],
    episodes: Mapping[int, range],
    decode: Callable[[int, range], Mapping[str, Tensor]],
    chunk: int,
) -> None:
    """Decode every frame once, episode by episode, in order, with a progress bar.

    Args:
        stores: Where the frames go, by key.
        episodes: Rows of each episode.
        decode: Gives (n, C, H, W) for every key, for rows of one episode.
        chunk: Most frames to decode in one call.
    """
    from tqdm import tqdm

    with tqdm(total=sum(map(len, episodes.values())), desc="Decoding into memory", unit="frame") as bar:
        for episode, rows in episodes.items():
            for piece in chunks(rows.start, rows.stop, chunk):
                for key, frames in decode(episode, piece).items():
                    stores[key].put(piece.start, frames)
                bar.update(len(piece))
