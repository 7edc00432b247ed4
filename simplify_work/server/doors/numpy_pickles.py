"""What pickles of numpy arrays and scalars consist of, under numpy 1 and 2 and every protocol, as a reader's table.

Only whole arrays of numbers and booleans: no objects, no records, no strides of the stream's own, no subclasses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from simplify_work.server.doors.pickle_kinds import Kind, Known, PickleRefused
from simplify_work.wire.messages import MAX_NDIM

_CODE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
_ORDERS = ("<", ">", "=", "|")
# What follows the byte order in a dtype's state: subdtype, names, fields, item size, alignment, flags.
_NO_MORE = (None, None, None, -1, -1, 0)


class _Type:
    """A dtype that may still get its byte order; stands for it wherever the pickle refers to it."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


class _Dtype(Kind):
    """`numpy.dtype(code, align, copy)`, then its byte order as state."""

    def call(self, *args: Any) -> _Type:
        code = args[0] if args else None
        if (
            type(code) is not str
            or not _CODE.fullmatch(code)
            or not all(type(each) in (bool, int) for each in args[1:])
        ):
            raise PickleRefused("a pickle has an array of something other than plain numbers or booleans.")
        return _Type(np.dtype(code))

    def build(self, made: _Type, state: Any) -> None:
        if type(state) is not tuple or len(state) != 8 or state[1] not in _ORDERS or state[2:] != _NO_MORE:
            raise PickleRefused("a pickle has a dtype with more than a byte order.")
        if made.dtype.itemsize > 1:
            made.dtype = made.dtype.newbyteorder(state[1])

    def parts(self, made: _Type) -> Iterable[Any]:
        raise PickleRefused("a pickle holds a dtype, which is no data.")


class _Array(Kind):
    """`_reconstruct(ndarray, (0,), b"b")`, then (version, shape, dtype, is_fortran, bytes) as state."""

    def call(self, *args: Any) -> np.ndarray:
        # The second and third are the blank's shape and dtype, which the state replaces.
        return np.empty(0, np.int8)

    def build(self, made: np.ndarray, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or type(state[3]) not in (bool, int):
            raise PickleRefused("a pickle has an array whose state is not one.")
        _, shape, dtype, fortran, raw = state
        # Python 2 has bytes as text of which each letter is one.
        raw = raw.encode("latin-1") if type(raw) is str else raw
        found = _array(raw, shape, dtype, "F" if fortran else "C")
        # The blank is what the pickle refers to, so it becomes the array; the arguments are checked by now.
        made.__setstate__((1, found.shape, found.dtype, bool(fortran), raw))


def _array(raw: Any, shape: Any, dtype: Any, order: Any) -> np.ndarray:
    """An array over bytes.

    Raises:
        PickleRefused: Unless the bytes are exactly those that shape and dtype call for.
    """
    if type(dtype) is not _Type or type(raw) not in (bytes, bytearray) or order not in ("C", "F"):
        raise PickleRefused("a pickle has an array without a plain dtype, or without bytes.")
    if type(shape) is not tuple or len(shape) > MAX_NDIM:
        raise PickleRefused(f"a pickle has an array whose shape is no tuple of at most {MAX_NDIM} numbers.")
    if not all(type(length) is int and 0 <= length < 2**31 for length in shape):
        raise PickleRefused("a pickle has an array with a length that cannot be.")
    wanted = math.prod(shape) * dtype.dtype.itemsize
    if len(raw) != wanted:
        raise PickleRefused(f"a pickle has an array of {wanted} bytes with {len(raw)} bytes of data.")
    return np.ndarray(shape, dtype.dtype, raw, order=order)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """`_frombuffer`, protocol 5; with order "K" the axes of a C-ordered array are in another order."""
    if order != "K":
        return _native(_array(raw, shape, dtype, order))
    found = _native(_array(raw, shape, dtype, "C"))
    if axes is None:
        return found
    if (
        type(axes) is not tuple
        or {type(axis) for axis in axes} - {int}
        or sorted(axes) != list(range(found.ndim))
    ):
        raise PickleRefused("a pickle has an array with axes that it does not have.")
    return found.transpose(axes)


def _native(array: np.ndarray) -> np.ndarray:
    """The same in this machine's byte order."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _scalar(dtype: Any, raw: Any) -> np.generic:
    """`scalar`: one number."""
    raw = raw.encode("latin-1") if type(raw) is str else raw
    return _native(_array(raw, (1,), dtype, "C"))[0]


def _encoded(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`: how bytes are pickled by protocols before 3."""
    if type(text) is not str or encoding != "latin1":
        raise PickleRefused("a pickle encodes something other than bytes as latin1.")
    return text.encode("latin-1")


def _no_bytes(*args: Any) -> bytes:
    """`bytes()`: how no bytes at all are pickled by protocols before 3."""
    if args:
        raise PickleRefused("a pickle makes bytes of something.")
    return b""


class _Named(Kind):
    """A class that is named as an argument only."""


NUMPY: Known = {
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Named(),
    ("numpy", "dtype"): _Dtype(),
    **{
        (f"numpy.{core}.{module}", name): kind
        for core in ("core", "_core")
        for module, name, kind in (
            ("multiarray", "_reconstruct", _Array()),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""Plain numpy arrays and scalars, and the bytes that they are pickled with."""
