"""MessagePack with numpy arrays, as openpi's client and server write them, read with every size checked first.

An array is the map `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}`, a numpy scalar
`{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}` (openpi, packages/openpi-client, msgpack_numpy.py). The
format itself: https://github.com/msgpack/msgpack/blob/master/spec.md. Nothing here knows of sockets or policies.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import numpy as np

from simplify_work.wire.errors import WireFormatError

MAX_DEPTH = 16
MAX_ITEMS = 10_000
MAX_NDIM = 8
MAX_KEY = 256  # whoever joins the keys of nested maps has the outer ones once for each of the inner ones

_NDARRAY, _NPGENERIC = b"__ndarray__", b"__npgeneric__"
_DTYPES = {
    np.dtype(kind).newbyteorder(order).str: np.dtype(kind).newbyteorder(order)
    for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for order in "<>"
}
# Head byte -> how the number after it is laid out; big-endian, as everything in MessagePack.
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def pack(value: Any) -> bytes:
    """Bytes of a value made of dicts, lists, text, numbers, bytes and numpy arrays."""
    return msgspec.msgpack.encode(value, enc_hook=_as_map)


def unpack(data: bytes) -> Any:
    """The value in `data`; its arrays are read-only views of `data`, in the machine's byte order.

    Raises:
        WireFormatError: If the bytes are not one whole value, nested deeper than MAX_DEPTH, of more than MAX_ITEMS
            parts or with a key longer than MAX_KEY, of a type that observations do not have, or an array's size is
            not that of its dtype and shape.
    """
    reader = _Reader(data)
    value = reader.value(0)
    if reader.left:
        raise WireFormatError(f"{reader.left} bytes are left over after the MessagePack value.")
    return value


def _as_map(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        return {_NDARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


class _Reader:
    """Walks over the bytes; nothing is allocated that the bytes at hand do not fill."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._items = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def value(self, depth: int) -> Any:
        """The next value and all that is in it."""
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise WireFormatError(
                f"the MessagePack value is nested deeper than {MAX_DEPTH} levels or has more than {MAX_ITEMS} parts; "
                "send numbers as numpy arrays, not as lists."
            )
        head = self._take(1)[0]
        if head <= 0x7F:
            return head
        if head >= 0xE0:
            return head - 256
        if head <= 0x8F:
            return self._map(head & 0x0F, depth)
        if head <= 0x9F:
            return self._list(head & 0x0F, depth)
        if head <= 0xBF:
            return self._text(head & 0x1F)
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _NUMBERS:
            return self._number(_NUMBERS[head])
        if head in _BYTES:
            return self._take(self._number(_BYTES[head]))
        if head in _TEXTS:
            return self._text(self._number(_TEXTS[head]))
        if head in _LISTS:
            return self._list(self._number(_LISTS[head]), depth)
        if head in _MAPS:
            return self._map(self._number(_MAPS[head]), depth)
        raise WireFormatError(f"MessagePack type 0x{head:02x} is not part of an observation.")

    def _take(self, size: int) -> memoryview:
        if size > self.left:
            raise WireFormatError(
                f"the MessagePack value ends early: {size} bytes expected, {self.left} left."
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _text(self, size: int) -> str:
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise WireFormatError(f"a text of the MessagePack value is not UTF-8 ({error}).") from None

    def _list(self, size: int, depth: int) -> list[Any]:
        self._check_count(size)
        return [self.value(depth + 1) for _ in range(size)]

    def _map(self, size: int, depth: int) -> Any:
        self._check_count(2 * size)
        found: dict[str | bytes, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            key = bytes(key) if isinstance(key, memoryview) else key
            if not isinstance(key, str | bytes) or key in found:
                raise WireFormatError(
                    f"a MessagePack map has the key {key!r:.80} twice, or it is not a name."
                )
            if len(key) > MAX_KEY:
                raise WireFormatError(
                    f"a MessagePack map has a key of {len(key)} characters, expected {MAX_KEY} at most."
                )
            found[key] = self.value(depth + 1)
        if found.get(_NDARRAY) is True:
            return _array(found)
        if found.get(_NPGENERIC) is True:
            return _scalar(found)
        return found

    def _check_count(self, parts: int) -> None:
        if parts > self.left:  # each takes a byte at least
            raise WireFormatError(
                f"the MessagePack value ends early: {parts} parts declared, {self.left} bytes left."
            )


def _array(found: dict[str | bytes, Any]) -> np.ndarray:
    data, dtype, shape = found.get(b"data"), _dtype(found), found.get(b"shape")
    # `type is int`: True is an int, too.
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not whole or len(shape) > MAX_NDIM:
        raise WireFormatError(
            f"a numpy array has the shape {shape!r:.80}, expected up to {MAX_NDIM} whole numbers."
        )
    size = math.prod(shape) * dtype.itemsize
    if not isinstance(data, memoryview) or len(data) != size:
        has = f"{len(data)} bytes" if isinstance(data, memoryview) else type(data).__name__
        raise WireFormatError(
            f"a numpy array of {dtype} {tuple(shape)} comes with {has}, expected {size} bytes."
        )
    try:
        array = np.ndarray(tuple(shape), dtype, data)
    except ValueError as error:  # no bytes, but sizes that numpy cannot count
        raise WireFormatError(f"a numpy array of shape {tuple(shape)} cannot be ({error}).") from None
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _scalar(found: dict[str | bytes, Any]) -> Any:
    """The plain value: what was a numpy number becomes Python's, numpy's text a text."""
    value, dtype = found.get(b"data"), found.get(b"dtype")
    if isinstance(value, str) and isinstance(dtype, str) and dtype[1:2] == "U":
        return value
    _dtype(found)
    if not isinstance(value, bool | int | float):
        raise WireFormatError(f"a numpy scalar holds {type(value).__name__}, expected a number.")
    return value


def _dtype(found: dict[str | bytes, Any]) -> np.dtype:
    name = found.get(b"dtype")
    if not isinstance(name, str) or name not in _DTYPES:
        raise WireFormatError(
            f"a numpy array has dtype {name!r:.80}, expected one of {', '.join(sorted(_DTYPES))}."
        )
    return _DTYPES[name]
