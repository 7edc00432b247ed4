"""A Parquet file whose writer was killed has pages but no footer: the footer is made again from the pages.

The schema must be known; nothing here knows of datasets. The layout is that of parquet-format's README and
parquet.thrift; files are expected as pyarrow writes them: one column chunk after the other, each a dictionary page (if
the type can have one) and data pages, snappy, without encryption.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lerobot_ext.recording import thrift
from lerobot_ext.recording.thrift import I32, I64, LIST, STRUCT, Fields, Items, ThriftError

MAGIC = b"PAR1"
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
RLE = 3
SNAPPY = 1
SNAPPY_RATIO = 32  # a snappy element of 3 bytes stands for 64 at most
MAX_HEADER = 1 << 20  # a page header holds two values of the column as statistics at most


class FooterError(ValueError):
    """The file is not a Parquet file of that schema, as far as can be seen without a footer."""


@dataclass(frozen=True)
class Column:
    """A leaf of the schema.

    Attributes:
        path: Names from the root.
        kind: Physical type's number in parquet.thrift.
        repeated: How many of its ancestors repeat, the largest repetition level.
    """

    path: tuple[str, ...]
    kind: int
    repeated: int


@dataclass(frozen=True)
class Page:
    """A whole page of the file.

    Attributes:
        start: Where its header begins.
        end: Where the next one begins.
        dictionary: Whether it is a dictionary page.
        header: The header's fields.
        unpacked: Bytes of header and uncompressed payload.
    """

    start: int
    end: int
    dictionary: bool
    header: Fields
    unpacked: int


@dataclass(frozen=True)
class Chunk:
    """A column of one row group: its pages, and how many values they hold."""

    pages: list[Page]
    values: int


@dataclass(frozen=True)
class Rebuilt:
    """What came of a file.

    Attributes:
        rows: Rows of every row group that is complete.
        end: Bytes from the file's beginning that belong to them.
        lost: Bytes behind them, of a row group that is not complete.
    """

    rows: tuple[int, ...]
    end: int
    lost: int


def has_footer(path: Path) -> bool:
    """Whether pyarrow finds a footer in the file."""
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True


def rebuild(path: Path, schema: pa.Schema, out: Path) -> Rebuilt:
    """Write a copy of a file without a footer that has one, and holds every complete row group.

    Args:
        path: The file; it is only read.
        schema: Of the table that was being written, with the schema's metadata.
        out: Where the copy goes; it exists afterwards only if a row group was complete.

    Returns:
        What was found. Every row group was read back once.

    Raises:
        FooterError: It does not begin as a Parquet file.
        OSError: Reading or writing failed.
    """
    footer = reference_footer(schema)
    columns = leaf_columns(footer)
    with _bytes_of(path) as data:
        if bytes(data[:4]) != MAGIC:
            raise FooterError(
                f"'{path}' begins with {bytes(data[:4])!r}, expected {MAGIC!r}: it is not a Parquet file."
            )
        groups = row_groups(data, columns)
        while groups:
            end = groups[-1][1][-1].pages[-1].end
            with out.open("wb") as file:
                file.write(data[:end])
                file.write(_footer(footer, columns, groups))
            readable = _readable(out, [rows for rows, _ in groups])
            if readable == len(groups):
                return Rebuilt(tuple(rows for rows, _ in groups), end, len(data) - end)
            groups = groups[:readable]
        out.unlink(missing_ok=True)
        return Rebuilt((), len(MAGIC), len(data) - len(MAGIC))


def reference_footer(schema: pa.Schema) -> Fields:
    """The footer that pyarrow writes for an empty table of `schema`, with LeRobot's options."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="snappy", use_dictionary=True) as writer:
        writer.write_table(schema.empty_table())
    data = buffer.getvalue()
    (size,) = struct.unpack("<I", data[-8:-4])
    return thrift.read_struct(data[-8 - size : -8])[0]


def leaf_columns(footer: Fields) -> list[Column]:
    """The columns of a footer's schema, in the order in which they stand in the file."""
    elements = iter(footer[2][1].values)
    columns: list[Column] = []

    def walk(path: tuple[str, ...], repeated: int, count: int) -> None:
        for _ in range(count):
            element = next(elements)
            here = (*path, element[4][1].decode())
            deeper = repeated + (_field(element, 3, 0) == 2)
            children = _field(element, 5, 0)
            if children:
                walk(here, deeper, children)
            else:
                columns.append(Column(here, element[1][1], deeper))

    walk((), 0, _field(next(elements), 5, 0))
    return columns


def row_groups(data: memoryview, columns: Sequence[Column]) -> list[tuple[int, list[Chunk]]]:
    """Every row group from the file's beginning that is complete: its rows and its columns' chunks."""
    pages = _pages(data)
    groups: list[tuple[int, list[Chunk]]] = []
    at = 0
    while group := _next_group(data, pages, at, columns):
        groups.append(group)
        at += sum(len(chunk.pages) for chunk in group[1])
    return groups


def _next_group(
    data: memoryview, pages: list[Page], at: int, columns: Sequence[Column]
) -> tuple[int, list[Chunk]] | None:
    """The row group whose first page is `pages[at]`, None if it is not complete."""
    first = at + (at < len(pages) and pages[at].dictionary)
    rows, ends = 0, []
    for page in pages[first:]:
        if page.dictionary:
            break
        counted = _rows(data, page, columns[0])
        if counted is None:
            break
        rows += counted
        ends.append(rows)
    # The next column of a type without dictionary may have been counted, too: the longest that fits is right,
    # since the first column's pages have to leave as many rows to each of the others.
    for rows in reversed(ends):
        chunks = _chunks(data, pages, at, columns, rows)
        if chunks is not None:
            return rows, chunks
    return None


def _chunks(
    data: memoryview, pages: list[Page], at: int, columns: Sequence[Column], rows: int
) -> list[Chunk] | None:
    """One chunk of exactly `rows` rows a column, None if the pages from `at` on do not fit."""
    chunks = []
    for column in columns:
        taken, left, values = [], rows, 0
        while left > 0 or not taken or taken[-1].dictionary:
            if at >= len(pages) or (pages[at].dictionary and taken):
                return None
            page = pages[at]
            at += 1
            taken.append(page)
            if page.dictionary:
                continue
            counted = _rows(data, page, column)
            if counted is None or counted > left:
                return None
            left -= counted
            values += _data_header(page)[1][1]
        chunks.append(Chunk(taken, values))
    return chunks


def _pages(data: memoryview) -> list[Page]:
    """Every whole page from the file's beginning, up to the first bytes that are none."""
    pages = []
    at = len(MAGIC)
    while at < len(data):
        try:
            header, payload = thrift.read_struct(data[at : at + MAX_HEADER])
        except ThriftError:
            break
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        body = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(kind)
        if body is None or not 0 <= packed <= len(data) - at - payload or unpacked < 0:
            # pyarrow before 19 repeated a column's metadata behind its pages; it is no part of any page.
            if _number(header, 1) >= 0 and _is_column_metadata(header):
                at += payload
                continue
            break
        described = _field(header, body, {})
        encoding = _number(described, 4 if kind == DATA_PAGE_V2 else 2)
        if unpacked > SNAPPY_RATIO * packed + 64 or _number(described, 1) < 0 or encoding < 0:
            break
        end = at + payload + packed
        pages.append(Page(at, end, kind == DICTIONARY_PAGE, header, payload + unpacked))
        at = end
    return pages


def _is_column_metadata(fields: Fields) -> bool:
    wanted = {1: I32, 2: LIST, 3: LIST, 4: I32, 5: I64, 6: I64, 7: I64}
    return all(number in fields and fields[number][0] == kind for number, kind in wanted.items())


def _data_header(page: Page) -> Fields:
    return page.header[5][1] if 5 in page.header else page.header[8][1]


def _rows(data: memoryview, page: Page, column: Column) -> int | None:
    """Rows that begin in a data page, None if it cannot be read."""
    header = _data_header(page)
    if 8 in page.header:
        rows = _number(header, 3)
        return rows if rows >= 0 else None
    if not column.repeated:
        return header[1][1]
    if _number(header, 4) != RLE:
        return None
    packed = page.header[3][1]
    try:
        payload = pa.decompress(
            pa.py_buffer(data[page.end - packed : page.end]),
            decompressed_size=page.header[2][1],
            codec="snappy",
            asbytes=True,
        )
    except (pa.ArrowException, OSError):
        return None
    if len(payload) < 4:
        return None
    (size,) = struct.unpack_from("<I", payload)
    return _count_zeros(payload[4 : 4 + size], column.repeated.bit_length(), header[1][1])


def _count_zeros(levels: bytes, width: int, count: int) -> int | None:
    """How many of the first `count` levels are 0, in the RLE/bit-packed hybrid (Encodings.md, RLE = 3)."""
    at = zeros = seen = 0
    while seen < count:
        head = shift = 0
        while True:
            if at >= len(levels) or shift > 35:
                return None
            head |= (levels[at] & 0x7F) << shift
            shift += 7
            at += 1
            if levels[at - 1] < 0x80:
                break
        if head & 1:
            size = (head >> 1) * width
            bits = np.unpackbits(np.frombuffer(levels[at : at + size], np.uint8), bitorder="little")
            values = bits[: len(bits) // width * width].reshape(-1, width).any(axis=1)[: count - seen]
            if not len(values):
                return None
            zeros += int(len(values) - values.sum())
            seen += len(values)
            at += size
        else:
            run = min(head >> 1, count - seen)
            size = (width + 7) // 8
            if not run or at + size > len(levels):
                return None
            zeros += run * (not any(levels[at : at + size]))
            seen += run
            at += size
    return zeros


def _footer(reference: Fields, columns: Sequence[Column], groups: Sequence[tuple[int, list[Chunk]]]) -> bytes:
    """The bytes behind the last page: metadata, their length, the magic number."""
    metadata = dict(reference)
    metadata[3] = (I64, sum(rows for rows, _ in groups))
    metadata[4] = (LIST, Items(STRUCT, [_row_group(columns, rows, chunks) for rows, chunks in groups]))
    data = thrift.write_struct(metadata)
    return data + struct.pack("<I", len(data)) + MAGIC


def _row_group(columns: Sequence[Column], rows: int, chunks: Sequence[Chunk]) -> Fields:
    described = [_column_chunk(column, chunk) for column, chunk in zip(columns, chunks, strict=True)]
    sizes = [(fields[3][1][6][1], fields[3][1][7][1]) for fields in described]
    return {
        1: (LIST, Items(STRUCT, described)),
        2: (I64, sum(unpacked for unpacked, _ in sizes)),
        3: (I64, rows),
        5: (I64, chunks[0].pages[0].start),
        6: (I64, sum(packed for _, packed in sizes)),
    }


def _column_chunk(column: Column, chunk: Chunk) -> Fields:
    encodings = {RLE}
    for page in chunk.pages:
        if page.dictionary:
            encodings.add(page.header[7][1][2][1])
        else:
            encodings.add(_data_header(page)[2 if 5 in page.header else 4][1])
    metadata: Fields = {
        1: (I32, column.kind),
        2: (LIST, Items(I32, sorted(encodings))),
        3: (LIST, Items(thrift.BINARY, [name.encode() for name in column.path])),
        4: (I32, SNAPPY),
        5: (I64, chunk.values),
        6: (I64, sum(page.unpacked for page in chunk.pages)),
        7: (I64, sum(page.end - page.start for page in chunk.pages)),
        9: (I64, next(page.start for page in chunk.pages if not page.dictionary)),
    }
    if chunk.pages[0].dictionary:
        metadata[11] = (I64, chunk.pages[0].start)
    return {2: (I64, 0), 3: (STRUCT, metadata)}


def _readable(path: Path, rows: Sequence[int]) -> int:
    """How many row groups from the first on pyarrow reads, each with as many rows as were counted."""
    try:
        with pq.ParquetFile(path) as file:
            for group, count in enumerate(rows):
                try:
                    if file.read_row_group(group).num_rows != count:
                        return group
                except (pa.ArrowException, OSError):
                    return group
    except (pa.ArrowException, OSError):
        return 0
    return len(rows)


@contextmanager
def _bytes_of(path: Path):
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            yield view


def _field(fields: Fields, number: int, default: Any) -> Any:
    return fields[number][1] if number in fields else default


def _number(fields: Any, number: int) -> int:
    """A field's whole number, -1 if there is none."""
    value = _field(fields, number, -1) if isinstance(fields, dict) else -1
    return value if isinstance(value, int) else -1
