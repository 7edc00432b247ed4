"""The reader of foreign pickles: reads what numpy and plain data are pickled as, and refuses what is damaged."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pickled import DTYPE, PROTOCOLS, call, nothing_happens, read, same

from simplify_work.server.doors import pickles
from simplify_work.server.doors.pickles import Kind, PickleRefused

# --- what is read ---

numbers = st.one_of(
    npst.integer_dtypes(endianness="?", sizes=(8, 16, 32, 64)),
    npst.unsigned_integer_dtypes(endianness="?", sizes=(8, 16, 32, 64)),
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    npst.boolean_dtypes(),
)
arrays = npst.arrays(numbers, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)).flatmap(
    lambda array: st.sampled_from(
        [array, np.asfortranarray(array), array.T, array[..., ::-1] if array.ndim else array]
    )
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**127), 2**127 - 1), st.floats(), st.text(), st.binary(),
)  # fmt: skip
plain = st.recursive(
    st.one_of(scalars, arrays, arrays.filter(lambda array: array.size).map(lambda array: array.flat[0])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=8), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_data_and_arrays_come_as_they_were(data, protocol):
    same(read(pickle.dumps(data, protocol)), data)


@settings(max_examples=60, deadline=None)
@given(plain, st.sampled_from(PROTOCOLS))
def test_a_memory_view_will_do_and_so_does_the_python_pickler(data, protocol):
    stream = io.BytesIO()
    pickle._Pickler(stream, protocol).dump(data)
    same(read(memoryview(stream.getvalue())), data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_1_names_are_known(protocol):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = pickle.dumps({"qpos": array, "gain": np.float64(2.5)}, protocol)
    data = data.replace(b"numpy._core.", b"numpy.core.")
    for length in (
        b"\x16",
        b"\x13",
    ):  # of numpy._core.multiarray and numpy._core.numeric, one more than it is now
        data = data.replace(
            b"\x8c" + length + b"numpy.core", b"\x8c" + bytes([length[0] - 1]) + b"numpy.core"
        )
    if protocol >= 4:  # one frame, longer than what is left by now
        data = data[:2] + data[11:]
    same(read(data), {"qpos": array, "gain": np.float64(2.5)})


def test_an_array_of_python_2_is_read():
    """`pickle.dumps({'qpos': np.array([1, 2], 'f4')}, 2)` of Python 2.7 with numpy 1.16, its bytes being strings."""
    data = (
        b"\x80\x02}q\x00U\x04qposq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04"
        b"U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\r"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x0ftq\x10bs."
    )
    same(read(data), {"qpos": np.array([1, 2], np.float32)})


def test_a_transposed_array_of_newer_numpy_is_read():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    data = call("numpy._core.numeric", "_frombuffer", array.tobytes(), DTYPE("i2"), (2, 3), "K", (1, 0))
    same(read(data), array.T)


def test_what_is_shared_stays_shared():
    image = np.zeros((4, 4, 3), np.uint8)
    found = read(pickle.dumps({"left": image, "right": image}))
    assert found["left"] is found["right"]


class Rows(Kind):
    """A class of ours under a foreign name."""

    def new(self, *args, **kwargs):
        return OrderedDict(args=args, kwargs=kwargs)

    def build(self, made, state):
        made["state"] = state

    def parts(self, made):
        return made.values()


def test_a_kind_makes_and_builds_what_is_named():
    known = {("their.module", "Rows"): Rows()}
    data = (
        b"\x80\x04"
        + b"c"
        + b"their.module\nRows\n"
        + b"K\x07\x85"
        + b"}\x8c\x01ak\x08s"
        + b"\x92"
        + b"}\x8c\x01bK\x09sb."
    )
    data = data.replace(b"\x8c\x01ak", b"\x8c\x01aK")
    found = pickles.read(data, known)
    assert found == {"args": (7,), "kwargs": {"a": 8}, "state": {"b": 9}}
    twice = data[:-1] + b"}b."
    with pytest.raises(PickleRefused, match="any more"):
        pickles.read(twice, known)


# --- whatever it is ---

samples = [
    pickle.dumps(data, protocol)
    for protocol in PROTOCOLS
    for data in (
        "RESET",
        {
            "qpos": np.arange(3.0),
            "images": {"a": np.zeros((2, 2, 3), np.uint8), "b": np.asfortranarray(np.eye(2))},
        },
        [np.float32(1), np.array(True), b"", b"x", (1, -1, 2**80), {"k": [None, 0.5, "\u20ac"]}],
    )
]
opcodes = st.sampled_from([ord(opcode.code) for opcode in pickletools.opcodes])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(samples), st.data())
def test_a_damaged_pickle_is_read_or_refused_and_nothing_else(sample, draw):
    data = bytearray(sample)
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, len(data)))
        match draw.draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = bytes([draw.draw(st.integers(0, 255))])
            case 1:
                data[at:at] = bytes([draw.draw(opcodes)])
            case 2:
                del data[at : at + draw.draw(st.integers(1, 8))]
            case 3:
                other = draw.draw(st.integers(0, len(data)))
                data[at:at] = data[other : other + draw.draw(st.integers(1, 40))]
            case 4:
                data[at:at] = draw.draw(st.binary(max_size=9))
    with nothing_happens():
        try:
            read(bytes(data))
        except PickleRefused as error:
            assert len(str(error)) < 500


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(opcodes, st.integers(0, 255)), max_size=60))
def test_random_opcodes_are_read_or_refused_and_nothing_else(codes):
    with nothing_happens():
        try:
            read(bytes(codes) + b".")
        except PickleRefused as error:
            assert len(str(error)) < 500
