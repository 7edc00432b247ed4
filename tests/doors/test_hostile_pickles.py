"""Pickles that nobody should send are refused: nothing is imported, called or created, and little memory is taken."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct
import time
import tracemalloc
import zipimport
from collections import OrderedDict

import numpy as np
import pytest
from pickled import DTYPE, PROTOCOLS, call, nothing_happens, part, read, refused

from simplify_work.server.doors.pickles import PickleRefused

# --- what is refused: names and calls ---


class Reduced:
    """Pickled as a call of anything."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_of_anything_are_refused_and_nothing_is_created(protocol, tmp_path):
    marker = tmp_path / "created"
    for reduced in (
        (os.system, (f"touch {marker}",)),
        (open, (str(marker), "w")),
        (eval, (f"open({str(marker)!r}, 'w')",)),
        (exec, (f"open({str(marker)!r}, 'w')",)),
        (getattr, ("x", "format")),
        (__import__, ("antigravity",)),
        (zipimport.zipimporter, (str(marker),)),
        (np.fromfile, (str(marker),)),
        (np.load, (str(marker),)),
        (np.zeros, (10**11,)),
        (bytearray, (10**11,)),
        (OrderedDict, ()),
        (time.sleep, (60,)),
    ):
        for hostile in (
            Reduced(*reduced),
            [Reduced(*reduced)],
            {"qpos": Reduced(*reduced)},
            (1, (Reduced(*reduced),)),
        ):
            assert "not among what is read" in refused(pickle.dumps(hostile, protocol))
    assert not marker.exists()


def test_a_state_for_what_is_not_ours_is_refused():
    class Stateful:
        pass

    Stateful.__qualname__ = "Stateful"
    globals()["Stateful"] = Stateful
    made = Stateful()
    made.x = 1
    for protocol in PROTOCOLS:
        refused(pickle.dumps(made, protocol))
    for target in (b"]", b"}", b"N", b"K\x01", b")", b"cnumpy\nndarray\n", b"c_codecs\nencode\n"):
        refused(b"\x80\x04" + target + b"}\x8c\x0c__setstate__Nsb.")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04cbuiltins\neval\n.",
        b"\x80\x04c__builtin__\neval\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0b__builtins__\x93.",
        b"\x80\x04c__main__\n__loader__\n.",
        b"\x80\x04cno.such.module\nx\n.",
        b"\x80\x04K\x01K\x02\x93.",
        b"\x80\x04]]\x93.",
        b"\x80\x04\x82\x01.",
        b"\x80\x04\x83\x01\x00.",
        b"\x80\x04\x84\x01\x00\x00\x00.",
        b"(S'touch x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch x'\no.",
        b"(iposix\nsystem\n.",
        b"(cnumpy\nndarray\no.",
        b"Pid\n.",
        b"\x80\x02NQ.",
        b"\x80\x05\x97.",
        b"\x80\x05C\x01x\x98.",
        b"\x80\x05\x97\x98.",
        b"\x80\x04\x8f.",
        b"\x80\x04(K\x01\x91.",
        b"\x80\x06N.",
        b"\x80\xffN.",
    ],
    ids=repr,
)  # fmt: skip
def test_opcodes_that_reach_beyond_the_stream_are_refused(data):
    refused(data)


def test_the_extension_registry_is_not_looked_at():
    copyreg.add_extension("posix", "system", 240)
    try:
        for data in (b"\x80\x02\x82\xf0.", pickle.dumps(os.system, 2)):
            assert "EXT1" in refused(data)
    finally:
        copyreg.remove_extension("posix", "system", 240)


def test_what_names_stand_for_is_no_data_and_calls_nothing_by_itself():
    for data in (
        b"\x80\x04cnumpy\nndarray\n.",
        b"\x80\x04cnumpy\nndarray\n)R.",
        b"\x80\x04cnumpy\nndarray\n)\x81.",
        b"\x80\x04c_codecs\nencode\n)\x81.",
        b"\x80\x04c_codecs\nencode\n)}\x92.",
        b"\x80\x04c_codecs\nencode\nNR.",
        b"\x80\x04c_codecs\nencode\n]R.",
        b"\x80\x04K\x01)R.",
        b"\x80\x04K\x01)\x81.",
        b"\x80\x04" + part(DTYPE("f4")) + b".",
        b"\x80\x04" + part(DTYPE("f4")) + b"\x85.",
        call("_codecs", "encode", "x", "rot13"),
        call("_codecs", "encode", b"x", "latin1"),
        call("_codecs", "encode", "\u20ac", "latin1"),
        call("builtins", "bytes", 10**11),
    ):
        refused(data)


# --- what is refused: sizes ---


def test_truncated_anywhere_is_refused():
    sample = {
        "qpos": np.arange(3.0),
        "images": {"a": np.zeros((2, 2, 3), np.uint8)},
        "n": [1, -5, 2**70, 0.5, None, (True,)],
    }
    for protocol in PROTOCOLS:
        data = pickle.dumps(sample, protocol)
        with nothing_happens():
            for length in range(len(data)):
                with pytest.raises(PickleRefused):
                    read(data[:length])
        refused(data + b".")
        refused(data + data)


HUGE = {
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**62),
    "BINUNICODE8 all": b"\x8d" + b"\xff" * 8,
    "BINUNICODE": b"X" + b"\xff" * 4,
    "BINBYTES": b"B" + b"\xff" * 4,
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**40),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**40),
    "FRAME": b"\x95" + struct.pack("<Q", 2**40),
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "LONG4 negative": b"\x8b" + struct.pack("<i", -1),
    "BINSTRING negative": b"T" + struct.pack("<i", -1),
    "LONG_BINPUT": b"Nr" + b"\xff" * 4 + b"j" + b"\xfe" + b"\xff" * 3,
    "PUT": b"Np99999999999999999999\n",
    "PUT negative": b"Np-1\n",
    "INT": b"I" + b"9" * 5000 + b"\n",
    "LONG": b"L" + b"9" * 100 + b"L\n",
    "GLOBAL": b"c" + b"a" * 5000 + b"\nb\n",
}


@pytest.mark.parametrize("head", HUGE.values(), ids=HUGE)
def test_a_declared_size_is_not_believed(head):
    data = b"\x80\x04" + head + b"x" * 100 + b"."
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def bombs():
    """(what, pickle): small streams that are large, or endless, for whoever builds or walks through them."""
    layers = b"".join(b"(" + b"h%c" % level * 10 + b"l\x94" for level in range(30))
    yield "memo", b"\x80\x04\x8c\x03lol\x94" + layers + b"."
    yield "dup", b"\x80\x04]" + b"2\x86" * 60 + b"."
    yield "dup marks", b"\x80\x04N" + b"(2" * 10_000 + b"."
    yield "nested lists", b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"."
    yield "nested tuples", b"\x80\x04N" + b"\x85" * 15_000 + b"."
    yield "nested tuple as a key", b"\x80\x04}N" + b"\x85" * 15_000 + b"Ns."
    yield "list in itself", b"\x80\x04]\x94h\x00a."
    yield "dict in itself", b"\x80\x04}\x94\x8c\x01ah\x00s."
    yield "tuple in itself", b"\x80\x04]\x94h\x00\x85a."
    yield "many", b"\x80\x04(" + b"]" * 10**6 + b"l."
    yield "marks", b"\x80\x04" + b"(" * 10**6
    yield (
        "colliding keys",
        b"\x80\x04}(" + b"".join(part(number * (2**61 - 1)) + b"N" for number in range(5000)) + b"u.",
    )
    text = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20 + b"\x94"
    encode = b"c_codecs\nencode\n\x94\x8c\x06latin1\x94"
    yield "encoded again and again", b"\x80\x04(" + text + encode + b"h\x01h\x00h\x02\x86R" * 3000 + b"l."
    data = b"B" + struct.pack("<I", 2**20) + bytes(2**20) + b"\x94"
    dtype = part(DTYPE("f4", (3, ">", None, None, None, -1, -1, 0))) + b"\x94"
    make = b"cnumpy.core.numeric\n_frombuffer\n\x94"
    swapped = b"h\x02(h\x00h\x01J\x00\x00\x04\x00\x85\x8c\x01CtR"
    yield "swapped again and again", b"\x80\x04(" + data + dtype + make + swapped * 1500 + b"l."
    yield "shared", b"\x80\x04(" + data + b"h\x00" * 19_000 + b"l."


@pytest.mark.parametrize(("what", "data"), list(bombs()), ids=[what for what, _ in bombs()])
def test_bombs_are_refused_in_little_memory_and_time(what, data):
    tracemalloc.start()
    try:
        began = time.process_time()
        refused(data)
        took = time.process_time() - began
        assert tracemalloc.get_traced_memory()[1] < 12 * len(data) + 12 * 2**20
    finally:
        tracemalloc.stop()
    assert took < 10


def test_what_is_counted_or_compared_again_and_again_is_short():
    """Of each the time would grow with the square of the stream: empty arrays weigh nothing, equal keys are compared."""
    arrays = b"cnumpy.core.multiarray\n_reconstruct\n\x94)\x94h\x00h\x01R\x94(" + b"h\x02" * 9000 + b"t\x94"
    assert "of 9000 parts" in refused(b"\x80\x04" + arrays + b"0(" + b"h\x00h\x03R" * 3000 + b"l.")
    states = b"cnumpy\ndtype\n\x8c\x02f4\x85R\x94h\x03b"
    assert "of 9000 parts" in refused(b"\x80\x04" + arrays + b"0(" + states * 1500 + b"l.")
    key = b"X" + struct.pack("<I", 2**20) + b"k" * 2**20
    two = b"\x80\x04}" + key + b"\x94Ns" + key + b"\x94Ns"
    assert f"a key of {2**20} letters" in refused(two + b"(" + b"h\x00Nh\x01N" * 4900 + b"u.")
    assert len(read(pickle.dumps({"k" * 1000: 0}))) == 1


def test_more_than_is_admitted_is_refused():
    assert "at most" in refused(pickle.dumps(b"x" * 2000), max_bytes=1000)
    deep = []
    for _ in range(10):
        deep = [deep]
    assert read(pickle.dumps(deep)) == deep
    refused(pickle.dumps(deep), max_depth=10)
    refused(pickle.dumps([1] * 200), max_items=200)
