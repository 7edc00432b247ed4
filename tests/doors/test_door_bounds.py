"""What foreign messages may be at most, and what just goes: each bound from both of its sides."""

import pickle
import struct

import msgspec
import numpy as np
import pytest
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot_client import features, raw
from standin import STATE

from simplify_work.server.doors import lerobot_messages
from simplify_work.server.doors.lerobot_messages import (
    MAX_FEATURES,
    pickled_actions,
    read_instructions,
    read_observation,
)
from simplify_work.server.doors.msgpack_numpy import MAX_DEPTH, MAX_ITEMS, MAX_NDIM, pack, unpack
from simplify_work.wire.errors import FeatureMismatch, WireFormatError
from simplify_work.wire.messages import MAX_TEXT

# --- MessagePack ---

EDGES = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1]
EDGES += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63), 1.5, -0.0, 1e300]


@pytest.mark.parametrize(
    "value",
    [
        EDGES,
        ["x" * size for size in (0, 1, 31, 32, 255, 256, 65535, 65536)],
        *([None] * size for size in (0, 15, 16, 9000)),
        *({f"{key}": key for key in range(size)} for size in (0, 15, 16, 4000)),
        [True, False, None],
    ],
    ids=lambda value: f"{type(value).__name__} of {len(value)}",
)
def test_every_size_of_every_type(value):
    assert unpack(msgspec.msgpack.encode(value)) == value


def test_large_bytes_lists_and_maps_have_heads_that_our_own_writer_does_not_need():
    for size in (255, 256, 65536):
        assert bytes(unpack(msgspec.msgpack.encode(b"x" * size))) == b"x" * size
    assert unpack(b"\xca" + struct.pack(">f", 0.5)) == 0.5
    assert unpack(b"\xdd" + struct.pack(">I", 2) + b"\x01\x02") == [1, 2]
    assert unpack(b"\xdf" + struct.pack(">I", 1) + b"\xa1a\x02") == {"a": 2}


def test_depth_and_parts_and_dimensions_have_a_bound():
    deep = b"\x91" * MAX_DEPTH + b"\xc0"
    assert unpack(deep) is not None
    many = msgspec.msgpack.encode([None] * (MAX_ITEMS - 1))
    assert len(unpack(many)) == MAX_ITEMS - 1, "and the list itself"
    wide = pack(np.zeros((1,) * MAX_NDIM))
    assert unpack(wide).ndim == MAX_NDIM
    for refused in (
        b"\x91" + deep,
        msgspec.msgpack.encode([None] * MAX_ITEMS),
        pack(np.zeros((1,) * (MAX_NDIM + 1))),
    ):
        with pytest.raises(WireFormatError):
            unpack(refused)


def test_arrays_of_any_order_of_bytes_come_in_the_machines():
    for kind in (">f4", "<f4", ">i2", "|u1", "|b1", ">f8"):
        array = np.arange(6).reshape(2, 3).astype(kind)
        found = unpack(pack(array))
        assert found.dtype == array.dtype.newbyteorder("=") and found.dtype.isnative
        np.testing.assert_array_equal(found, array)
    assert not unpack(pack(np.zeros(3))).flags.writeable, "it lies in the message"


# --- LeRobot's pickles ---


def instructions(**changes):
    config = RemotePolicyConfig("act", "a", features(), 5)
    for name, value in changes.items():
        setattr(config, name, value)
    return read_instructions(pickle.dumps(config))


def observed(task="press", **changes):
    observation = TimedObservation(1.0, 2, {**raw(), "task": task}, True)
    for name, value in changes.items():
        setattr(observation, name, value)
    return read_observation(pickle.dumps(observation))


def vector(**changes):
    return {STATE: {"dtype": "float32", "shape": (1,), "names": ["a"]} | changes}


def test_what_just_goes():
    given = {f"observation.{number}": vector()[STATE] for number in range(MAX_FEATURES)}
    assert len(instructions(lerobot_features=given).features) == MAX_FEATURES
    assert instructions(lerobot_features={"o" * 256: vector()[STATE]}).features
    assert instructions(lerobot_features=vector(shape=[1, 2, 3])).features[STATE]["shape"] == (1, 2, 3)
    assert instructions(actions_per_chunk=1).actions_per_chunk == 1
    assert observed(task="x" * MAX_TEXT).task == "x" * MAX_TEXT
    assert observed(must_go=False).must_go is False


@pytest.mark.parametrize(
    "changes",
    [
        {"lerobot_features": {"o" * 257: vector()[STATE]}},
        {"lerobot_features": {"": vector()[STATE]}},
        {"lerobot_features": vector(shape=())},
        {"lerobot_features": vector(shape=(1, 2, 3, 4))},
        {"lerobot_features": vector(shape=(True,))},
        {"lerobot_features": vector(shape=(2**31,))},
        {"lerobot_features": vector(names=[1])},
        {"lerobot_features": vector(names=None)},
        {"lerobot_features": {STATE: [1]}},
        {"actions_per_chunk": -1},
        {"device": 1},
    ],
    ids=str,
)
def test_instructions_that_cannot_be(changes):
    with pytest.raises(WireFormatError):
        instructions(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "x" * (MAX_TEXT + 1)},
        {"task": 3},
        {"timestep": True},
        {"timestep": 1.0},
        {"timestamp": 1},
        {"must_go": 1},
        {"observation": [1]},
    ],
    ids=lambda changes: f"{next(iter(changes))} {str(next(iter(changes.values()))):.10}",
)
def test_observations_that_cannot_be(changes):
    with pytest.raises(WireFormatError):
        observed(**changes)


def test_a_stream_of_instructions_or_of_an_observation_is_short(monkeypatch):
    config = pickle.dumps(RemotePolicyConfig("act", "a", features(), 5))
    monkeypatch.setattr(lerobot_messages, "MAX_INSTRUCTIONS", len(config))
    read_instructions(config)
    monkeypatch.setattr(lerobot_messages, "MAX_INSTRUCTIONS", len(config) - 1)
    with pytest.raises(WireFormatError, match="are read at most"):
        read_instructions(config)
    observation = pickle.dumps(TimedObservation(1.0, 2, raw(), True))
    monkeypatch.setattr(lerobot_messages, "MAX_OBSERVATION", len(observation) - 1)
    with pytest.raises(WireFormatError, match="are read at most"):
        read_observation(observation)


def test_a_class_in_the_place_of_another_is_refused():
    config = pickle.dumps(RemotePolicyConfig("act", "a", features(), 5))
    for read, data in (
        (read_observation, config),
        (read_instructions, pickle.dumps(TimedObservation(1.0, 2, raw(), True))),
        (read_instructions, pickle.dumps({"policy_type": "act"})),
        (read_observation, pickle.dumps(3)),
    ):
        with pytest.raises(WireFormatError):
            read(data)


def test_an_action_is_a_tensor_of_its_own():
    few, many = (pickled_actions(np.zeros((size, 6), np.float32), observed(), 0.1) for size in (10, 100))
    assert len(many) < 12 * len(few), "each brought the whole chunk along"


def test_a_number_of_numpys_is_a_number_and_an_array_is_none():
    given = instructions()
    served = type("Served", (), {"inputs": ()})
    given.frame(raw() | {"joint0.pos": np.float32(1), "joint1.pos": 2}, served)
    for wrong in (np.zeros(1), "1", None):
        with pytest.raises(FeatureMismatch, match="'joint0.pos' is .*, expected a number"):
            given.frame(raw() | {"joint0.pos": wrong}, served)
