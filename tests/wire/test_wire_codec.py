"""The codec: everything survives the round trip, and nothing but a valid message is read."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from contextlib import contextmanager

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
    Rtc,
    Welcome,
)
from simplify_work.wire.pictures import PictureEncoder

# A refused message may cost this much, whatever it claims.
MEMORY_LIMIT = 1_000_000

names = st.text(min_size=1, max_size=20)
dtypes = st.sampled_from(
    [dtype.newbyteorder(order) for dtype in codec.WIRE_DTYPES.values() for order in "<>"]
)
plain_arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@st.composite
def strided_arrays(draw):
    """Views that are not contiguous: every second, backwards, transposed, broadcast."""
    array = draw(plain_arrays)
    steps = draw(st.lists(st.sampled_from([1, 2, -1]), min_size=array.ndim, max_size=array.ndim))
    array = array[tuple(slice(None, None, step) for step in steps)]
    if draw(st.booleans()):
        array = array.T
    if array.ndim < 4 and draw(st.booleans()):
        array = np.broadcast_to(array, (2, *array.shape))
    return array


scalars = (
    st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.booleans()
    | st.sampled_from([np.float16(1.5), np.uint8(7), np.float32("nan"), np.int64(-1), np.bool_(True)])
)
arrays_by_name = st.dictionaries(names, plain_arrays | strided_arrays() | scalars, max_size=4)
infers = st.builds(
    Infer,
    request=st.integers(0, 2**63 - 1),
    task=st.text(max_size=20),
    seed=st.none() | st.integers(0, 2**63 - 1),
    rtc=st.none() | st.builds(Rtc, inference_delay=st.integers(0, 9), execution_horizon=st.integers(0, 99)),
)


def as_bytes(frames) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@contextmanager
def bounded_memory(limit=MEMORY_LIMIT):
    """What is done inside must not allocate more than `limit` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def refused(frames) -> None:
    """Unpacking must fail, in the one way that callers know, and cheaply."""
    with bounded_memory(), pytest.raises(WireFormatError):
        unpack(frames)


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(infers, arrays_by_name, st.booleans())
def test_any_dict_of_arrays_and_scalars_survives(message, arrays, checked):
    read, found = unpack(as_bytes(pack(message, arrays, checked=checked)))
    assert msgspec.structs.replace(read, arrays=()) == message
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        array = np.asarray(array)
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


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


def test_large_arrays_may_go_without_a_checksum_and_small_ones_never_do():
    arrays = {"image": np.zeros((240, 320, 3), np.uint8), "state": np.zeros(6, np.float32)}
    frames = pack(Infer(request=1), arrays, checked=False)
    infos = {info.name: info.checksum for info in unpack(frames)[0].arrays}
    assert infos == {"image": None, "state": 0}
    for index, frame in enumerate(frames[1:], 1):
        with pytest.raises(WireFormatError):
            unpack([*frames[:index], bytes(frame)[:-1], *frames[index + 1 :]])


DAMAGES = ("change", "cut", "extend", "drop", "double", "insert")


def damaged(frames: list[bytes], kind: str, where: int, at: int, extra: int) -> list[bytes]:
    """A message that something happened to on its way; `where`, `at` and `extra` are any numbers."""
    frames = list(frames)
    if kind in ("change", "cut"):
        where = [i for i, frame in enumerate(frames) if frame][where % sum(map(bool, frames))]
    where %= len(frames)
    frame = frames[where]
    at %= max(1, len(frame))
    if kind == "change":
        frames[where] = frame[:at] + bytes([frame[at] ^ (1 + extra % 255)]) + frame[at + 1 :]
    elif kind == "cut":
        frames[where] = frame[:at]
    elif kind == "extend":
        frames[where] = frame[:at] + bytes([extra % 256]) * (1 + extra % 9) + frame[at:]
    elif kind == "drop":
        del frames[where]
    elif kind == "double":
        frames.insert(where, frame)
    else:
        frames.insert(where, bytes([extra % 256]) * (extra % 9))
    return frames


damages = st.tuples(
    st.sampled_from(DAMAGES), st.integers(0, 63), st.integers(0, 2**20), st.integers(0, 2**16)
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(infers, arrays_by_name, damages)
def test_whatever_happens_to_a_message_it_is_refused(message, arrays, damage):
    refused(damaged(as_bytes(pack(message, arrays)), *damage))


def sample_messages() -> list[list[bytes]]:
    """Messages of every kind, with arrays of every dtype, and pictures in every encoding."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:32]
    observation = {
        "observation.images.side": np.stack([x * 7, y * 9, x + y], -1).astype(np.uint8),
        "observation.images.side_depth": (500 + 3 * y + x)[..., None].astype(np.uint16),
        "observation.images.wrist_depth": (0.5 + 0.001 * (x + y))[..., None].astype(np.float32),
        "observation.state": rng.random(6, np.float32),
        "observation.force": rng.random(15, np.float32),
    }
    every = {name: (rng.random((2, 3)) * 2).astype(dtype) for name, dtype in codec.WIRE_DTYPES.items()}
    infer = Infer(request=5, task="press the button", robot_type="so101_follower_ext", seed=3)
    encoders = (None, PictureEncoder("jpeg"), PictureEncoder("lossless"))
    chunk = Chunk(request=5, durations=Durations(0.1, 0.2, 0.3, 0.4))
    messages = [pack(infer, observation, encoder) for encoder in encoders]
    messages += [pack(infer, every), pack(infer, {"empty": np.zeros((0, 3)), "scalar": np.float64(1)})]
    messages += [pack(chunk, {"actions": rng.random((50, 6), np.float32)}), pack(Reset(request=1))]
    return [as_bytes(message) for message in messages]


SAMPLES = sample_messages()


sample = st.integers(0, len(SAMPLES) - 1)


@settings(max_examples=6500, deadline=None)
@given(sample, damages)
def test_whatever_happens_to_a_real_message_it_is_refused(index, damage):
    refused(damaged(SAMPLES[index], *damage))


@settings(max_examples=1500, deadline=None)
@given(sample, st.lists(damages, min_size=1, max_size=3), st.booleans())
def test_an_adversary_who_mends_the_checksums_gets_no_further(index, damage, unchecked):
    """The header says what it likes: it is read as a message or refused, and costs no more than what was sent."""
    frames = SAMPLES[index]
    body = frames[0][codec._PREFIX.size :]
    for kind, _, at, extra in damage:
        (body, *_) = [*damaged([body or b"x"], kind, 0, at, extra), b""]
    if unchecked:
        with contextlib.suppress(msgspec.MsgspecError, TypeError, ValueError, LookupError):
            tree = msgspec.msgpack.decode(body)
            for info in tree["arrays"]:
                info[3] = None
            body = msgspec.msgpack.encode(tree)
    with bounded_memory(), contextlib.suppress(WireFormatError):
        message, arrays = unpack([header(body), *frames[1:]])
        assert set(arrays) == {info.name for info in message.arrays}


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
    refused([claimed, body])


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
