"""The codec: everything survives the round trip, and nothing but a valid message is read."""

from __future__ import annotations

import tracemalloc
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simplify_work.wire import codec
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import VersionMismatch, WireFormatError
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import (
    MAX_ARRAYS,
    MAX_NDIM,
    PROTOCOL_VERSION,
    Bye,
    Chunk,
    Durations,
    Error,
    Hello,
    Infer,
    Reset,
    Welcome,
)

names = st.text(min_size=1, max_size=20)
any_array = st.sampled_from(sorted(codec.WIRE_DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
arrays_by_name = st.dictionaries(names, any_array, max_size=5)
infers = st.builds(
    Infer,
    request=st.integers(0, 2**63 - 1),
    task=st.text(max_size=50),
    robot_type=st.text(max_size=20),
    seed=st.none() | st.integers(0, 2**63 - 1),
)


def as_bytes(frames) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@given(infers, arrays_by_name)
def test_any_dict_of_arrays_survives(message, arrays):
    read, found = unpack(as_bytes(pack(message, arrays)))
    assert msgspec.structs.replace(read, arrays=()) == message
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "message",
    [
        Hello(
            request=1,
            client="robot",
            features=(FeatureSpec("observation.state", "vector", (6,), ("float32",)),),
        ),
        Hello(request=1, client="robot"),
        Welcome(
            request=1,
            server="s",
            policy_type="act",
            inputs=(),
            action_dim=6,
            action_names=("a",),
            chunk_size=20,
            n_action_steps=5,
        ),
        Chunk(request=2, durations=Durations(0.1, 0.2, 0.3, 0.4)),
        Reset(request=3),
        Bye(reason="done"),
        Error(request=None, error="wire_format", text="no"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_survives(message):
    assert unpack(as_bytes(pack(message))) == (message, {})


def test_strided_and_big_endian_arrays_survive():
    arrays = {"strided": np.arange(24).reshape(4, 6)[::2, ::3], "big": np.arange(4, dtype=">f8")}
    _, found = unpack(pack(Infer(request=1), arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(infers, arrays_by_name, st.data())
def test_any_changed_byte_is_refused(message, arrays, data):
    frames = as_bytes(pack(message, arrays))
    index = data.draw(st.sampled_from([i for i, frame in enumerate(frames) if frame]))
    position = data.draw(st.integers(0, len(frames[index]) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(frames[index])
    changed[position] ^= flip
    frames[index] = bytes(changed)
    with pytest.raises(WireFormatError):
        unpack(frames)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(infers, arrays_by_name, st.data())
def test_any_truncation_is_refused(message, arrays, data):
    frames = as_bytes(pack(message, arrays))
    kept = data.draw(st.integers(0, sum(map(len, frames)) - 1))
    cut = []
    for frame in frames:
        cut.append(frame[:kept])
        kept -= len(cut[-1])
    with pytest.raises(WireFormatError):
        unpack(cut)
    if len(frames) > 1:
        with pytest.raises(WireFormatError):
            unpack(frames[:-1])


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_garbage_is_refused(frames):
    with pytest.raises(WireFormatError):
        unpack(frames)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_garbage_behind_a_valid_prefix_is_refused(body):
    with pytest.raises(WireFormatError):
        unpack([header(body)])


def header(body: bytes, version: int = PROTOCOL_VERSION) -> bytes:
    return codec._PREFIX.pack(codec.MAGIC, version, zlib.crc32(body)) + body


def claim(dtype="float32", shape=(2,), count=1, name="x") -> bytes:
    """The header of an Infer that claims arrays."""
    infos = [[name if count == 1 else f"{name}{i}", dtype, list(shape), 0] for i in range(count)]
    return header(msgspec.msgpack.encode({"type": "infer", "request": 1, "arrays": infos}))


@pytest.mark.parametrize(
    ("claimed", "body"),
    [
        (claim(shape=(2**31 - 1, 2**31 - 1)), b"\0" * 8),
        (claim(shape=(2**40,)), b"\0" * 8),
        (claim(shape=(-1,)), b"\0" * 8),
        (claim(shape=(0, 2**31 - 1, 2**31 - 1, 2**31 - 1)), b""),
        (claim(shape=(1,) * (MAX_NDIM + 1)), b"\0" * 4),
        (claim(dtype="object", shape=(1,)), b"\0" * 8),
        (claim(dtype="O", shape=(1,)), b"\0" * 8),
        (claim(dtype="<U4", shape=(1,)), b"\0" * 16),
        (claim(dtype="float32,float32", shape=(1,)), b"\0" * 8),
        (claim(dtype="longdouble", shape=(1,)), b"\0" * 16),
    ],
)
def test_hostile_claims_are_refused_before_anything_is_allocated(claimed, body):
    tracemalloc.start()
    with pytest.raises(WireFormatError):
        unpack([claimed, body])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_counts_are_bounded():
    with pytest.raises(WireFormatError, match="frames"):
        unpack([claim(), *[b"\0" * 8] * (MAX_ARRAYS + 1)])
    with pytest.raises(WireFormatError, match="header"):
        unpack([header(b"\0" * codec.MAX_HEADER_BYTES)])
    with pytest.raises(WireFormatError, match="same name"):
        info = ["x", "uint8", [0], 0]
        unpack(
            [
                header(msgspec.msgpack.encode({"type": "infer", "request": 1, "arrays": [info, info]})),
                b"",
                b"",
            ]
        )
    with pytest.raises(WireFormatError, match="too large"):
        pack(Infer(request=1), {str(i): np.zeros(1) for i in range(MAX_ARRAYS + 1)})


def test_unknown_fields_and_types_are_refused():
    for body in (
        {"type": "infer", "request": 1, "extra": 1},
        {"type": "exec", "request": 1},
        {"request": 1},
        3,
    ):
        with pytest.raises(WireFormatError):
            unpack([header(msgspec.msgpack.encode(body))])


def test_deep_nesting_is_refused():
    with pytest.raises(WireFormatError):
        unpack([header(b"\x91" * 60_000 + b"\xc0")])


@pytest.mark.parametrize("dtype", [object, "U3", "datetime64[s]", "complex64", [("a", "f4")]])
def test_what_is_not_a_number_is_not_sent(dtype):
    with pytest.raises(WireFormatError, match="array 'x' has dtype"):
        pack(Infer(request=1), {"x": np.zeros(2, dtype)})


def test_another_version_is_named_with_ours():
    frame = header(b"whatever that version says", version=PROTOCOL_VERSION + 1)
    with pytest.raises(
        VersionMismatch, match=f"version {PROTOCOL_VERSION + 1} .* version {PROTOCOL_VERSION}"
    ):
        unpack([frame])


def test_nothing_is_copied_on_either_side():
    array = np.zeros((480, 640, 3), np.uint8)
    frames = pack(Infer(request=1), {"image": array})
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), array)
    _, found = unpack(frames)
    assert np.shares_memory(found["image"], array)
