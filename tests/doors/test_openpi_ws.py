"""A client written for openpi's server gets its chunks from ours."""

import re
import threading
import urllib.error
import urllib.request

import checkpoints
import numpy as np
import pytest
from openpi_client import WebsocketClientPolicy, pack, unpack
from standin import CHUNK, DIM, SIDE, STATE, StandIn, actions_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.testing import free_port
from simplify_work.server.doors.msgpack_numpy import MAX_DEPTH, MAX_ITEMS
from simplify_work.server.doors.msgpack_numpy import pack as our_pack
from simplify_work.server.doors.msgpack_numpy import unpack as our_unpack
from simplify_work.server.doors.openpi_observation import translate
from simplify_work.server.doors.openpi_ws import OpenPiWsDoor
from simplify_work.server.protocol import Served
from simplify_work.server.worker import Worker
from simplify_work.wire.errors import FeatureMismatch, WireFormatError
from simplify_work.wire.features import FeatureSpec

H, W = 12, 16
FRAME = {
    STATE: np.arange(DIM, dtype=np.float32),
    SIDE: np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8),
}


@pytest.fixture
def stand_in():
    return StandIn(H, W)


@pytest.fixture
def door(stand_in):
    with Worker(stand_in, "runs/one/pretrained_model") as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0, max_message=2**20)
        door.start()
        yield door
        door.stop()


@pytest.fixture
def client(door):
    with WebsocketClientPolicy(door.endpoint) as client:
        yield client


def test_metadata_say_what_the_policy_is(client):
    metadata = client.get_server_metadata()
    assert metadata["policy_type"] == "stand-in" and metadata["checkpoint"] == "runs/one/pretrained_model"
    assert metadata["action_dim"] == DIM and metadata["chunk_size"] == CHUNK
    assert metadata["inputs"][STATE]["shape"] == [DIM]
    assert "state" in metadata["inputs"][STATE]["keys"] and "image" in metadata["inputs"][SIDE]["keys"]


def test_an_observation_becomes_actions_with_timing(client, stand_in):
    for first in (True, False):
        answer = client.infer({**FRAME, "prompt": "press"})
        np.testing.assert_array_equal(answer["actions"], actions_for(FRAME))
        assert answer["actions"].dtype == np.float32
        assert answer["server_timing"]["infer_ms"] >= 0 and answer["policy_timing"]["infer_ms"] >= 0
        assert ("prev_total_ms" in answer["server_timing"]) is not first
    assert stand_in.seen[-1].task == "press"


CHW = np.moveaxis(FRAME[SIDE], -1, 0)


@pytest.mark.parametrize(
    "observation",
    [
        {"observation/state": FRAME[STATE], "observation/images/side": FRAME[SIDE]},
        {"observation/state": FRAME[STATE], "observation/image": FRAME[SIDE]},
        {"observation": {"state": FRAME[STATE], "images": {"side": FRAME[SIDE]}}},
        {"state": FRAME[STATE].astype(np.float64), "images": {"side": CHW}},
        {"state": [float(each) for each in FRAME[STATE]], "image": np.ascontiguousarray(CHW)},
        {"state": FRAME[STATE].astype(">f4"), "side": FRAME[SIDE], "other": np.zeros(3), "session": "a"},
    ],
    ids=["slashes", "one picture", "nested", "CHW and doubles", "a list", "big-endian, more than wanted"],
)
def test_the_habits_of_openpi_clients(client, observation):
    np.testing.assert_array_equal(client.infer(observation)["actions"], actions_for(FRAME))


@pytest.mark.parametrize(
    ("observation", "said"),
    [
        (
            {STATE: FRAME[STATE]},
            r"observation\.images\.side \(12, 16, 3\) is missing.*image.*has: observation\.state",
        ),
        ({**FRAME, "state": FRAME[STATE]}, "comes as each of observation.state, state"),
        ({**FRAME, "observation": {"state": FRAME[STATE]}}, "twice"),
        ({**FRAME, "prompt": 3}, "'prompt' is int, expected a text"),
        ({**FRAME, "prompt": "a", "task": "b"}, "different things"),
        ({**FRAME, STATE: "home"}, "'observation.state' is str, expected a numpy array"),
        ({**FRAME, "prompt": "press " * 2000}, "'prompt' has 12000 characters, expected 8192 at most"),
        ({**FRAME, STATE: bytes(DIM)}, "'observation.state' is bytes, expected a numpy array"),
        ({**FRAME, STATE: np.full(DIM, np.nan)}, "observation.state has a value that is not finite"),
        ({**FRAME, STATE: np.full(DIM, 1e300)}, "observation.state has a value that is not finite"),
        ([1, 2], "the message is list"),
        ({b"raw": 1}, "expected a text"),
    ],
)
def test_a_wrong_observation_is_told_in_words_and_ends_the_connection(door, observation, said):
    with WebsocketClientPolicy(door.endpoint) as client:
        with pytest.raises(RuntimeError, match=said):
            client.infer(observation)
        with pytest.raises(ConnectionClosed) as closed:
            client.socket.recv()
        assert closed.value.rcvd.code == 1011
    with WebsocketClientPolicy(door.endpoint) as client:
        assert client.infer(FRAME)["actions"].shape == (CHUNK, DIM)


ARRAY = {b"__ndarray__": True, b"data": bytes(24), b"dtype": "<f4", b"shape": [6]}
BROKEN = {
    "not MessagePack": b"\xc1",
    "nothing": b"",
    "extension type": b"\xd4\x01\x00",
    "truncated": pack(FRAME)[:-3],
    "more after it": pack(FRAME) + b"\x00",
    "list of 4 G": b"\xdd\xff\xff\xff\xff",
    "map of 4 G": b"\xdf\xff\xff\xff\xff\xa1a",
    "bytes of 4 G": b"\xc6\xff\xff\xff\xff0",
    "deep": b"\x91" * (MAX_DEPTH + 2) + b"\xc0",
    "very deep": b"\x91" * 100_000 + b"\xc0",
    "lists of 4 G in each other": b"\xdd\x00\x00\xff\xff" * 3 + bytes(70_000),
    "many parts": pack([0] * (MAX_ITEMS + 1)),
    "a key twice": b"\x82\xa1a\x00\xa1a\x00",
    "a long key of many": pack({"k" * 300: dict.fromkeys(map(str, range(1000)), 0)}),
    "a number as a key": b"\x81\x00\x00",
    "a list as a key": b"\x81\x90\x00",
    "no UTF-8": b"\xa1\xff",
    "objects": pack({"state": ARRAY | {b"dtype": "|O", b"data": bytes(48)}}),
    "a structure": pack({"state": ARRAY | {b"dtype": "f4,f4"}}),
    "dtype of a pickle": pack({"state": ARRAY | {b"dtype": b"\x80\x04."}}),
    "dates": pack({"state": ARRAY | {b"dtype": "<M8[s]", b"data": bytes(48)}}),
    "too few bytes": pack({"state": ARRAY | {b"shape": [7]}}),
    "too many bytes": pack({"state": ARRAY | {b"shape": [5]}}),
    "negative shape": pack({"state": ARRAY | {b"shape": [-2, -3]}}),
    "boolean shape": pack({"state": ARRAY | {b"shape": [True, 6]}}),
    "overflowing shape": pack({"state": ARRAY | {b"shape": [2**62, 4, 0]}}),
    "shape no list": pack({"state": ARRAY | {b"shape": 6}}),
    "33 dimensions": pack({"state": ARRAY | {b"shape": [1] * 32 + [6]}}),
    "data no bytes": pack({"state": ARRAY | {b"data": "text"}}),
    "scalar of bytes": pack({"state": {b"__npgeneric__": True, b"data": b"1", b"dtype": "<f4"}}),
    "scalar of objects": pack({"state": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_an_observation_is_refused(name):
    with pytest.raises((WireFormatError, FeatureMismatch)):
        translate(our_unpack(BROKEN[name]), StandIn(H, W).served)


def test_hostile_messages_end_their_connection_only(door, client):
    for message in (*BROKEN.values(), "a text", "exit()"):
        with WebsocketClientPolicy(door.endpoint) as hostile:
            hostile.socket.send(message)
            assert isinstance(hostile.socket.recv(), str)
    np.testing.assert_array_equal(client.infer(FRAME)["actions"], actions_for(FRAME))


def test_a_message_that_is_too_large_is_not_read(door, client):
    with WebsocketClientPolicy(door.endpoint) as hostile:
        hostile.socket.send(pack({"image": np.zeros((800, 800, 3), np.uint8)}))
        with pytest.raises(ConnectionClosed) as closed:
            hostile.socket.recv()
        assert closed.value.rcvd.code == 1009
    assert client.infer(FRAME)["actions"].shape == (CHUNK, DIM)


@pytest.mark.parametrize(
    ("sessions", "connections", "said"), [(9, 1, "all the clients"), (1, 9, "1 sessions")]
)
def test_clients_beyond_those_admitted_are_told_so(stand_in, sessions, connections, said):
    with Worker(stand_in, "a", max_sessions=sessions) as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0, max_connections=connections)
        door.start()
        try:
            with (
                WebsocketClientPolicy(door.endpoint) as client,
                pytest.raises(ConnectionClosed, match=f"1013.*{said}"),
            ):
                WebsocketClientPolicy(door.endpoint)
            assert client.get_server_metadata()
        finally:
            door.stop()


def test_the_path_chooses_among_the_checkpoints(stand_in):
    other = StandIn(H, W)
    other.served = Served("other", other.served.inputs, DIM, CHUNK, CHUNK)
    with Worker(stand_in, "runs/one/model") as first, Worker(other, "runs/two/model") as second:
        door = OpenPiWsDoor([first, second], "127.0.0.1", 0)
        door.start()
        try:
            for path, policy in {
                "": "stand-in",
                "/runs/two/model": "other",
                "/one/model?a=b": "stand-in",
            }.items():
                with WebsocketClientPolicy(door.endpoint + path) as client:
                    assert client.get_server_metadata()["policy_type"] == policy
            for path in ("/three", "/model", "/..", "/.%00", "/" + "x" * 3000):
                with pytest.raises(InvalidStatus) as refused:
                    WebsocketClientPolicy(door.endpoint + path)
                assert refused.value.response.status_code == 404
                assert b"runs/one/model (stand-in), runs/two/model (other)" in refused.value.response.body
        finally:
            door.stop()


def test_healthz_and_web_pages(door):
    address = door.endpoint.replace("ws://", "http://")
    with urllib.request.urlopen(f"{address}/healthz") as response:
        assert response.read() == b"OK\n"
    with pytest.raises(InvalidStatus, match="403"):  # a page in a browser on this machine
        connect(door.endpoint, origin="http://example.org")
    with pytest.raises(urllib.error.HTTPError, match="426"):
        urllib.request.urlopen(address)


def test_a_connection_is_a_session(door, client, stand_in):
    sessions = []
    stand_in.open_session = lambda: sessions.append(object()) or stand_in
    with WebsocketClientPolicy(door.endpoint) as other:
        other.infer(FRAME), other.reset(), other.infer(FRAME), client.infer(FRAME)
    assert len(sessions) == 1


def test_a_client_that_was_silent_goes_on(stand_in):
    with Worker(stand_in, "a", idle_timeout_s=0.05) as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0)
        door.start()
        try:
            with WebsocketClientPolicy(door.endpoint) as client:
                client.infer(FRAME)
                threading.Event().wait(0.3)
                assert client.infer(FRAME)["actions"].shape == (CHUNK, DIM)
        finally:
            door.stop()


def test_stopping_tells_the_clients_and_frees_the_port(stand_in):
    port = free_port()
    with Worker(stand_in, "a") as brain:
        for _ in range(2):
            door = OpenPiWsDoor([brain], "127.0.0.1", port)
            door.start()
            client = WebsocketClientPolicy(door.endpoint)
            with pytest.raises(UserError, match=f"door openpi_ws cannot listen on 127.0.0.1:{port}"):
                OpenPiWsDoor([brain], "127.0.0.1", port).start()
            door.stop()
            door.stop()
            with pytest.raises(ConnectionClosed, match="1001.*stopped"):
                client.infer(FRAME)
    assert not [each for each in threading.enumerate() if "openpi" in each.name]


def test_windows_and_depth_are_passed_on():
    depth = FeatureSpec("observation.images.side_depth", "depth", (H, W, 1), ("uint16", "float32"))
    force = FeatureSpec("observation.force", "vector", (15,), ("float32",), history=3)
    served = Served("act", (depth, force), DIM, CHUNK, CHUNK)
    sent = {"images/side_depth": np.ones((H, W), np.uint16), "force": np.zeros((3, 15))}
    found, task = translate(sent, served)
    assert found[depth.name].shape == (H, W, 1) and found[depth.name].dtype == np.uint16
    assert found[force.name].shape == (3, 15) and found[force.name].dtype == np.float32
    assert task == ""


def test_our_messages_are_openpis():
    value = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": ["x", 1, -70000, 2**40, 1.5, None, True, b"raw"],
        "c": {"d": "é" * 300},
    }
    for there in (unpack(our_pack(value)), our_unpack(pack(value))):
        np.testing.assert_array_equal(there.pop("a"), value["a"])
        assert there["c"] == value["c"] and list(there["b"]) == value["b"]
    assert our_unpack(pack({"n": np.float32(1.5), "f": np.bool_(True), "s": np.str_("go")})) == {
        "n": 1.5,
        "f": True,
        "s": "go",
    }
    assert our_unpack(pack(np.array(3.0))).shape == ()


def test_the_actions_are_those_of_our_own_client(act, runner):
    from simplify_work.local.client import PolicyClient
    from simplify_work.server.server import PolicyServer
    from simplify_work.wire import listen
    from simplify_work.wire.address import parse_address

    frame = checkpoints.observation(3)
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    address = listen.endpoint(socket)
    own = PolicyServer(runner, socket)
    own.start()
    try:
        with PolicyClient(address) as ours:
            ours.connect()
            expected = ours.infer(frame, task="press").actions
    finally:
        own.stop()
    with Worker(runner, str(act)) as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0)
        door.start()
        try:
            with WebsocketClientPolicy(door.endpoint) as client:
                sent = {
                    "observation/state": frame["observation.state"].astype(np.float64),
                    "observation/image": np.moveaxis(frame[checkpoints.IMAGE], -1, 0),
                    "prompt": "press",
                }
                np.testing.assert_array_equal(client.infer(sent)["actions"], expected)
                assert re.match(r"lerobot_ext \d", client.get_server_metadata()["server"])
        finally:
            door.stop()
