"""A dataset's frames decoded once and resized, in memory, ready to be indexed; and its columns.

Colour is kept as uint8, depth as 15-bit steps of its far end (0 is "no measurement"): both within half a step of
what decoding each time gives. Frames in files are in `disk_cache`; what decides on sizes, and where frames come from,
is in `reader`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lerobot_ext.errors import UserError
from lerobot_ext.modality.images import as_uint8

DEPTH_STEPS = 32766
GB = 1e9
_SHARED_MEMORY = Path("/dev/shm")


class FrameSink(Protocol):
    """Where the frames of a stream are put while they are decoded."""

    def put(self, start: int, frames: Tensor) -> None:
        """Keep (n, C, H, W) from row `start` on: colour uint8 or in [0, 1], depth in metres."""


class FrameStore:
    """The frames of one stream.

    Attributes:
        far_m: For depth, the distance of the highest step; None for colour.
    """

    def __init__(self, data: Tensor, far_m: float | None) -> None:
        """Frames that are kept in `data`, (n, C, H, W), as `encode` makes them."""
        self.far_m = far_m
        self._data = data

    @classmethod
    def in_memory(
        cls, frames: int, shape: tuple[int, int, int], far_m: float | None, shared: bool
    ) -> FrameStore:
        """Reserve memory for `frames` images of `shape` (C, H, W), in shared memory if worker processes read it."""
        data = torch.zeros((frames, *shape), dtype=stored_dtype(far_m))
        return cls(data.share_memory_() if shared else data, far_m)

    def put(self, start: int, frames: Tensor) -> None:
        """Keep (n, C, H, W): colour uint8 or in [0, 1], depth in metres with 0 for "no measurement"."""
        self._data[start : start + len(frames)] = encode(frames, self.far_m)

    def get(self, rows: int | Tensor) -> Tensor:
        """Colour as uint8, depth as float32 metres; (C, H, W) for a number, (n, C, H, W) for a tensor of n."""
        # Whole frames are copied: faster than indexing, and nobody who changes an item changes the cache.
        wanted = torch.tensor([rows]) if isinstance(rows, int) else rows
        frames = self._data.index_select(0, wanted)
        if self.far_m is not None:
            frames = frames.to(torch.float32) * (self.far_m / DEPTH_STEPS)
        return frames[0] if isinstance(rows, int) else frames


def stored_dtype(far_m: float | None) -> torch.dtype:
    """Of colour (None) and of depth; int16 and not uint16: torch indexes it."""
    return torch.uint8 if far_m is None else torch.int16


def encode(frames: Tensor, far_m: float | None) -> Tensor:
    """Frames as they are kept."""
    if far_m is None:
        return as_uint8(frames)
    steps = (frames.clamp(max=far_m) * (DEPTH_STEPS / far_m)).round()
    # A measurement so near that it would round to 0 stays a measurement.
    return torch.where(frames > 0, steps.clamp(min=1), 0).to(torch.int16)


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
                f"{free / GB:.2f} free; set modality.cache: disk, or num_workers: 0, or enlarge it (docker run "
                "--shm-size)."
            )


class Columns:
    """The columns of a table that are no images, as LeRobot's reader would give them row by row."""

    def __init__(self, table: Any, skip: set[str]) -> None:
        """Read every column of `table` (a `datasets.Dataset`) except those in `skip`."""
        self.tensors: dict[str, Tensor] = {}
        self.objects: dict[str, list[Any]] = {}
        kept = [key for key in table.column_names if key not in skip]
        arrow = table.select_columns(kept).with_format("arrow")[:]
        for key in kept:
            array = _numbers(arrow.column(key))
            if array is None:
                self.objects[key] = arrow.column(key).to_pylist()
            else:
                self.tensors[key] = torch.from_numpy(array)

    def row(self, index: int) -> dict[str, Any]:
        """One row."""
        row: dict[str, Any] = {key: column[index].clone() for key, column in self.tensors.items()}
        row.update((key, column[index]) for key, column in self.objects.items())
        return row


def _numbers(column: Any) -> np.ndarray | None:
    """A column of numbers, or of vectors of one length, (rows, ...) in the dtypes that LeRobot gives; else None."""
    from pyarrow import types

    kind, shape = column.type, [len(column)]
    flat = column.combine_chunks()
    while types.is_fixed_size_list(kind) or types.is_list(kind):
        if flat.null_count:
            return None
        lengths = set(flat.value_lengths().unique().to_pylist()) if types.is_list(kind) else {kind.list_size}
        if len(lengths) != 1:
            return None
        flat, length = flat.flatten(), lengths.pop()
        kind, shape = kind.value_type, [*shape, length]
    if flat.null_count or not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        return None
    array = flat.to_numpy(zero_copy_only=False).reshape(shape)
    # LeRobot makes tensors of Python numbers, whatever the column's own width.
    wide = {"f": np.float32, "i": np.int64, "u": np.int64}.get(array.dtype.kind, np.bool_)
    return np.array(array, dtype=wide)


def chunks(start: int, stop: int, size: int) -> Iterator[range]:
    """`start` to `stop` in pieces of at most `size`."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def fill(
    sinks: Mapping[str, FrameSink],
    episodes: Mapping[int, range],
    decode: Callable[[Mapping[str, FrameSink], int, range], None],
    chunk: int,
    where: str,
) -> None:
    """Decode every frame once, episode by episode, in order, with a progress bar.

    Args:
        sinks: Where the frames go, by key.
        episodes: Rows of each episode.
        decode: Puts the frames of some rows of one episode into the sinks.
        chunk: Most frames to decode in one call.
        where: For the progress bar.
    """
    from tqdm import tqdm

    with tqdm(total=sum(map(len, episodes.values())), desc=f"Decoding into {where}", unit="frame") as bar:
        for episode, rows in episodes.items():
            for piece in chunks(rows.start, rows.stop, chunk):
                decode(sinks, episode, piece)
                bar.update(len(piece))
