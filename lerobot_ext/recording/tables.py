"""The two kinds of Parquet files that grow with each episode, rewritten beside their place at little cost.

A data file gets one row group an episode, and what it held is copied as bytes; a file of `meta/episodes` is small and
is written again whole. When they take their place is the writer's business.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"

LOOSE_CHUNK = 900
"""Chunks from here on hold loose videos, one file an episode; LeRobot's own begin at 0 and hold a thousand files each."""


class _Behind:
    """The end of a file as something to write to: the first `skip` bytes are already there and are swallowed.

    pyarrow writes offsets as it counts the bytes that it wrote; counting from the end of the file's row groups makes
    them right for the row group that is appended there.
    """

    closed = False

    def __init__(self, file: Any, skip: int) -> None:
        self._file, self._skip = file, skip

    def write(self, data: bytes) -> int:
        if self._skip:
            self._skip -= len(data)
        else:
            self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """The file is its opener's to close."""


def footer_start(file: Any) -> int:
    """Where the footer of an open Parquet file begins.

    Raises:
        ValueError: It does not end as Parquet files do.
    """
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    start = size - 8 - int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or start < len(MAGIC):
        raise ValueError(f"{file.name} has no Parquet footer.")
    return start


def append_row_group(old: Path, table: pa.Table, new: Path) -> None:
    """Write `new`: the row groups of `old`, copied as they are, and `table` as one more.

    Raises:
        ValueError: The columns of `old` are not those of `table`, or it is not a whole Parquet file.
    """
    with pq.ParquetFile(old) as parquet:
        metadata = parquet.metadata
        if not parquet.schema_arrow.equals(table.schema):
            raise ValueError(f"{old} has other columns than the episode.")
    shutil.copyfile(old, new)
    with open(new, "r+b") as file:
        start = footer_start(file)
        file.truncate(start)
        file.seek(start)
        sink = pa.PythonFile(_Behind(file, start), mode="w")
        written: list[pq.FileMetaData] = []
        with pq.ParquetWriter(
            sink, table.schema, compression="snappy", use_dictionary=True, metadata_collector=written
        ) as writer:
            # Its magic number was swallowed; the rest of what is there is counted, not written.
            for position in range(len(MAGIC), start, 1 << 20):
                sink.write(bytes(min(1 << 20, start - position)))
            writer.write_table(table)
        start = footer_start(file)
        file.truncate(start)
        file.seek(start)
        metadata.append_row_groups(written[0])
        footer = pa.BufferOutputStream()
        metadata.write_metadata_file(footer)
        file.write(footer.getvalue().to_pybytes()[len(MAGIC) :])
    found = pq.read_metadata(new)
    if found.num_rows != metadata.num_rows:
        raise ValueError(f"{new} has {found.num_rows} rows, expected {metadata.num_rows}.")


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as one row group, compressed as LeRobot does."""
    with pq.ParquetWriter(path, table.schema, compression="snappy", use_dictionary=True) as writer:
        writer.write_table(table)


def keep_rows(path: Path, num_rows: int, new: Path) -> None:
    """Write `new`: the first `num_rows` rows of `path`, in its row groups."""
    with (
        pq.ParquetFile(path) as parquet,
        pq.ParquetWriter(new, parquet.schema_arrow, compression="snappy", use_dictionary=True) as writer,
    ):
        for group in range(parquet.num_row_groups):
            if num_rows <= 0:
                return
            table = parquet.read_row_group(group).slice(0, num_rows)
            writer.write_table(table)
            num_rows -= table.num_rows


def episode_row(row: Mapping[str, Any]) -> pa.Table:
    """One row of `meta/episodes` as LeRobot writes it: arrays become lists of lists, types are Arrow's own choice."""
    return pa.Table.from_pydict(
        {key: [value.tolist() if hasattr(value, "tolist") else value] for key, value in row.items()}
    )


def append_episode(table: pa.Table | None, row: pa.Table) -> pa.Table | None:
    """`table` with `row` at its end, in its columns' order and types; None if the columns differ."""
    if table is None:
        return row
    if set(table.schema.names) != set(row.schema.names):
        return None
    try:
        row = row.select(table.schema.names).cast(table.schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return pa.concat_tables([table, row]).combine_chunks()


def set_values(table: pa.Table, column: str, values: Mapping[int, Any]) -> pa.Table:
    """`table` with other values in `column` at the rows whose `episode_index` is a key of `values`."""
    episodes: Sequence[int] = table.column("episode_index").to_pylist()
    old = table.column(column)
    new = [values.get(index, value) for index, value in zip(episodes, old.to_pylist(), strict=True)]
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(new, field.type))
