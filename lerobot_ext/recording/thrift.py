"""Thrift's compact protocol, generic: any struct is read into numbered fields and can be written back.

Enough for Parquet's page headers and footers; nothing here knows what the fields mean. The encoding is that of
Thrift's specification (doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

BOOL_TRUE, BOOL_FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAX_DEPTH = 32


class ThriftError(ValueError):
    """The bytes are not a struct in the compact protocol, or end before it does."""


@dataclass(frozen=True)
class Items:
    """A list or set.

    Attributes:
        kind: Type of every item, one of the constants of this module.
        values: The items.
    """

    kind: int
    values: list[Any]


# A struct: field number -> (type, value). Values are bool, int, float, bytes, Items, dict (a struct).
Fields = dict[int, tuple[int, Any]]


def read_struct(data: bytes | memoryview, start: int = 0) -> tuple[Fields, int]:
    """Read one struct.

    Args:
        data: The bytes.
        start: Where the struct begins.

    Returns:
        Its fields and the position after it.

    Raises:
        ThriftError: There is no whole struct.
    """
    reader = _Reader(data, start)
    return reader.struct(0), reader.at


def write_struct(fields: Fields) -> bytes:
    """The bytes of a struct; fields are written in the order of their numbers."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self.data = data
        self.at = at

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise ThriftError(f"the struct ends after {len(self.data)} bytes, in its middle")
        value = self.data[self.at]
        self.at += 1
        return value

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ThriftError(f"{count} bytes are announced, {len(self.data) - self.at} are there")
        value = bytes(self.data[self.at : self.at + count])
        self.at += count
        return value

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ThriftError("a number is longer than 64 bits")

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int) -> Fields:
        if depth > MAX_DEPTH:
            raise ThriftError(f"structs are nested more than {MAX_DEPTH} deep")
        fields: Fields = {}
        number = 0
        while head := self.byte():
            kind = head & 0x0F
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            if kind in (BOOL_TRUE, BOOL_FALSE):
                fields[number] = (kind, kind == BOOL_TRUE)
            else:
                fields[number] = (kind, self.value(kind, depth))
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind == BYTE:
            return self.byte()
        if kind in (I16, I32, I64):
            return self.zigzag()
        if kind == DOUBLE:
            return struct.unpack("<d", self.bytes(8))[0]
        if kind == BINARY:
            return self.bytes(self.varint())
        if kind in (LIST, SET):
            return self.items(depth)
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise ThriftError(f"type {kind} is not one that Parquet uses")

    def items(self, depth: int) -> Items:
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.varint()
        kind = head & 0x0F
        if count > len(self.data) - self.at:  # every item takes a byte at least
            raise ThriftError(f"{count} items are announced, {len(self.data) - self.at} bytes are there")
        if kind in (BOOL_TRUE, BOOL_FALSE):
            return Items(kind, [self.byte() == BOOL_TRUE for _ in range(count)])
        return Items(kind, [self.value(kind, depth + 1) for _ in range(count)])


def _write_varint(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_zigzag(out: bytearray, value: int) -> None:
    _write_varint(out, (value << 1) ^ (value >> 63))


def _write_struct(out: bytearray, fields: Fields) -> None:
    last = 0
    for number, (kind, value) in sorted(fields.items()):
        if kind in (BOOL_TRUE, BOOL_FALSE):
            kind = BOOL_TRUE if value else BOOL_FALSE
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out.append(kind)
            _write_zigzag(out, number)
        last = number
        if kind not in (BOOL_TRUE, BOOL_FALSE):
            _write_value(out, kind, value)
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind == BYTE:
        out.append(value)
    elif kind in (I16, I32, I64):
        _write_zigzag(out, value)
    elif kind == DOUBLE:
        out += struct.pack("<d", value)
    elif kind == BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind in (LIST, SET):
        count = len(value.values)
        out.append(min(count, 15) << 4 | value.kind)
        if count >= 15:
            _write_varint(out, count)
        for item in value.values:
            if value.kind in (BOOL_TRUE, BOOL_FALSE):
                out.append(BOOL_TRUE if item else BOOL_FALSE)
            else:
                _write_value(out, value.kind, item)
    else:
        _write_struct(out, value)
