"""Pickles of arrays that must not become arrays are refused."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from pickled import DTYPE, PROTOCOLS, Raw, array_state, call, part, read, refused, same


def test_the_writer_of_hostile_arrays_can_write_good_ones():
    same(read(array_state((2,), DTYPE("f4"), bytes(8))), np.zeros(2, np.float32))
    same(
        read(array_state((2, 2), DTYPE("u1", None), b"abcd", True)),
        np.frombuffer(b"acbd", np.uint8).reshape(2, 2),
    )


# --- what is refused: arrays ---


class Hostile:
    """Dtypes and shapes that must not become arrays."""

    dtypes = (
        DTYPE("O8"), DTYPE("O"), DTYPE("V8"), DTYPE("S8"), DTYPE("U2"), DTYPE("M8[ns]"), DTYPE("m8"), DTYPE("c16"), DTYPE("f16"),
        DTYPE("f4,f4"), DTYPE("(2,)f4"), DTYPE("4f2"), DTYPE("f4", None, ()), DTYPE("f8\n"), DTYPE("\uff46\uff18"),
        DTYPE([("a", "f8")]), DTYPE(None), DTYPE(8), DTYPE({"names": ["a"], "formats": ["O"]}),
        DTYPE("f8", (3, "<", None, ("a",), {"a": (Raw(b"N"), 0)}, 8, 1, 0)),
        DTYPE("f8", (3, "<", None, None, None, 8, 1, 0)),
        DTYPE("f8", (3, "<", None, None, None, -1, -1, 63)),
        DTYPE("f8", (3, "<", (Raw(b"N"), (2,)), None, None, -1, -1, 0)),
        DTYPE("f8", (4, "<", None, None, None, -1, -1, 0, {"meta": 1})),
        DTYPE("f8", (3, "x", None, None, None, -1, -1, 0)),
        DTYPE("f8", (3, None, None, None, None, -1, -1, 0)),
        DTYPE("f8", (3,)), DTYPE("f8", "state"), DTYPE("f8", [3]), DTYPE("f8", args=("x", [])),
    )  # fmt: skip
    shapes = (
        (10**12,), (2**31,), (2**63,), (2**64 + 1,), (2**32, 2**32), (2**31 - 1, 2**31 - 1, 4), (-1,), (-1, -1), (1, -8),
        (True,), (1.0,), ("1",), (None,), ((1,),), [1], 1, None, "1", (1,) * 9, (1,) * 70, (3,), (0,), (2,),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", Hostile.dtypes, ids=lambda dtype: f"{dtype.code!r:.30}-{dtype.state!r:.40}")
def test_only_plain_numbers_become_arrays(dtype):
    if dtype.code == "f4" and dtype.state is None:
        same(read(array_state((2,), dtype, bytes(8))), np.zeros(2, np.float32))
        return
    for data in (
        array_state((1,), dtype, bytes(8)),
        call("numpy.core.multiarray", "scalar", dtype, bytes(8)),
        call("numpy._core.numeric", "_frombuffer", bytes(8), dtype, (1,), "C"),
    ):
        refused(data)


@pytest.mark.parametrize("shape", Hostile.shapes, ids=repr)
def test_a_shape_must_be_that_of_the_bytes(shape):
    tracemalloc.start()
    try:
        for data in (
            array_state(shape, DTYPE("f8"), bytes(8)),
            array_state(shape, DTYPE("f8"), bytes(8), True),
            call("numpy._core.numeric", "_frombuffer", bytes(8), DTYPE("f8"), shape, "C"),
            call("numpy._core.numeric", "_frombuffer", bytearray(8), DTYPE("f8"), shape, "F"),
        ):
            refused(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_arrays_put_together_wrongly_are_refused():
    good = bytes(8)
    frombuffer = ("numpy._core.numeric", "_frombuffer")
    for data in (
        array_state((1,), "f8", good),
        array_state((1,), None, good),
        array_state((1,), DTYPE("f8"), bytes(7)),
        array_state((1,), DTYPE("f8"), "\u20ac" * 8),
        array_state((1,), DTYPE("f8"), None),
        array_state((1,), DTYPE("f8"), [b"x"]),
        array_state((1,), DTYPE("f8"), good, fortran=[]),
        array_state((1,), DTYPE("f8"), good)[:-1] + part((1, (1,), DTYPE("f8"), False, good)) + b"b.",
        call(*frombuffer, good, DTYPE("f8"), (1,), "A"),
        call(*frombuffer, good, DTYPE("f8"), (1,), None),
        call(*frombuffer, good, DTYPE("f8"), (1,), ["C"]),
        call(*frombuffer, good, DTYPE("f8"), (1,), "K", (1,)),
        call(*frombuffer, good, DTYPE("f8"), (1,), "K", (-1,)),
        call(*frombuffer, good, DTYPE("f8"), (1,), "K", (True,)),
        call(*frombuffer, good, DTYPE("f8"), (1,), "K", [0]),
        call(*frombuffer, "x" * 8, DTYPE("f8"), (1,), "C"),
        call(*frombuffer, good, DTYPE("f8")),
        call(*frombuffer),
        call("numpy.core.multiarray", "scalar", DTYPE("f8"), bytes(16)),
        call("numpy.core.multiarray", "scalar", DTYPE("f8")),
    ):
        refused(data)
    for protocol in PROTOCOLS:
        for array in (np.array([{}, None], object), np.array([(1, 2.0)], "i4,f8"), np.array(["a"]), np.array([1j]),
                      np.ma.masked_array([1.0], [True])):  # fmt: skip
            refused(pickle.dumps(array, protocol))
