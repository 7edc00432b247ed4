"""An ACT client, written from the protocol alone, at our door: the same actions, whole episodes, and no silence."""

from __future__ import annotations

import pickletools
import time

import checkpoints
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.modeling_act import ACTTemporalEnsembler

import lerobot_ext
from lerobot_ext.virtual.testing import running_lab
from simplify_work.local import PolicyClient
from simplify_work.server.doors import act_messages
from simplify_work.server.doors.act_zmq import ActZmqDoor
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.server import PolicyServer
from simplify_work.server.worker import Worker
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address

CAMERAS = ("rgb_main", "rgb_left", "rgb_under")
HEIGHT, WIDTH, QPOS, ACTION = 48, 64, 17, 16


def observation(seed=0):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for name in CAMERAS}
    return {"qpos": rng.normal(0, 1, QPOS).astype(np.float32), "images": images}


def ours(request):
    """The same under our names."""
    named = {f"observation.images.{name}": image for name, image in request["images"].items()}
    return {"observation.state": request["qpos"].astype(np.float32), **named}


@pytest.fixture(scope="module")
def astrobench(tmp_path_factory):
    """An ACT of the shapes that the protocol's own description has, its pictures small."""
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (QPOS,))} | {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH))
        for name in CAMERAS
    }
    return checkpoints.make_act(
        tmp_path_factory.mktemp("act") / "checkpoint", inputs=inputs, action_dim=ACTION, chunk_size=6
    )


@pytest.fixture(scope="module")
def served(astrobench):
    """A whole server: our own socket, and the door."""
    lerobot_ext.register()
    runner = PolicyRunner(astrobench, device="cpu")
    runner.warm_up()
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    address = listen.endpoint(socket)
    server = PolicyServer(runner, socket, path=str(astrobench))
    server.start()
    door = ActZmqDoor([server.worker], "127.0.0.1", 0)
    door.start()
    yield door.endpoint, address
    door.stop()
    server.stop()


@pytest.fixture
def client(served, connect):
    return connect(served[0])


def test_the_description_s_own_example(client):
    assert client.ask("RESET") == {"status": "OK"}
    reply = client.ask(observation())
    assert reply.keys() == {"status", "action"}
    assert reply["status"] == "OK"
    assert (reply["action"].shape, reply["action"].dtype) == ((ACTION,), np.float32)
    assert reply["action"].flags.writeable
    assert client.ask("RESET") == {"status": "OK"}


def test_actions_are_those_of_lerobots_temporal_ensembling_and_reset_begins_anew(served, client):
    endpoint, address = served
    with PolicyClient(address, timeout_s=60) as plain:
        for first in (0, 100):
            assert client.ask("RESET") == {"status": "OK"}
            ensembler = None
            for step in range(first, first + 9):  # longer than a chunk
                request = observation(step)
                chunk = torch.from_numpy(plain.infer(ours(request)).actions)[None]
                ensembler = ensembler or ACTTemporalEnsembler(0.01, chunk.shape[1])
                expected = ensembler.update(chunk)[0].numpy()
                np.testing.assert_allclose(client.ask(request)["action"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_and_float64_will_do(served, connect, protocol):
    client = connect(served[0], protocol=protocol)
    request = observation(3)
    expected = client.ask(request)["action"]
    client.ask("RESET")
    doubled = request | {"qpos": request["qpos"].astype(np.float64), "comment": "ignored"}
    np.testing.assert_allclose(client.ask(doubled)["action"], expected, rtol=1e-5, atol=1e-6)


def changed(**changes):
    request = observation()
    for name, value in changes.items():
        target = request["images"] if name in CAMERAS or name.startswith("rgb") else request
        if value is None:
            del target[name]
        else:
            target[name] = value
    return request


class Hostile:
    def __reduce__(self):
        return (time.sleep, (0,))


@pytest.mark.parametrize(
    ("request_", "sentences"),
    [
        (changed(rgb_left=None), ("images['rgb_left'] is missing", "Found: qpos (17,) float32, images['rgb_main']")),
        (
            changed(rgb_left=None, rgb_lft=np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
            ("images['rgb_left'] is missing", "images['rgb_lft'] (48, 64, 3) uint8"),
        ),
        (changed(qpos=np.zeros(16)), ("qpos has shape (16,), expected (17,)",)),
        (changed(qpos=np.zeros((1, 17))), ("qpos has shape (1, 17), expected (17,)",)),
        (changed(qpos=np.zeros(17, np.int64)), ("qpos is int64, expected float32 or float64",)),
        (changed(qpos=np.full(17, np.nan)), ("qpos has a value that is not finite",)),
        (changed(qpos=np.full(17, -1e300)), ("not finite, or too large for float32",)),
        (changed(qpos=[0.0] * 17), ("qpos is a list, expected an array",)),
        (changed(qpos=None), ("qpos is missing",)),
        (changed(images=None), ("images['rgb_main'] is missing", "Found: qpos (17,) float32.")),
        (changed(images=[1]), ("images is a list, expected a dict",)),
        (changed(rgb_main=np.zeros((WIDTH, HEIGHT, 3), np.uint8)), ("shape (64, 48, 3), expected (48, 64, 3)",)),
        (changed(rgb_main=np.zeros((3, HEIGHT, WIDTH), np.uint8)), ("shape (3, 48, 64), expected (48, 64, 3)",)),
        (changed(rgb_main=np.zeros((HEIGHT, WIDTH, 3))), ("images['rgb_main'] is float64, expected uint8",)),
        (changed(rgb_main="picture"), ("images['rgb_main'] is a str, expected an array",)),
        ({}, ("qpos is missing", "images['rgb_under'] is missing", "Found: nothing")),
        ("reset", ("the text 'reset'", "expected the text 'RESET'")),
        ([], ("the request is a list", "expected the text 'RESET'")),
        (None, ("the request is a NoneType",)),
        (Hostile(), ("time.sleep, which is not among what is read here",)),
        ({1: 2}, ("a int as a key, expected text",)),
    ],
    ids=lambda each: each[0][:30] if isinstance(each, tuple) else "",
)  # fmt: skip
def test_what_does_not_fit_is_told_and_the_next_request_served(client, request_, sentences):
    reply = client.ask(request_)
    assert reply["status"] == "ERROR"
    for sentence in sentences:
        assert sentence in reply["message"]
    assert "qpos (17,)" in reply["message"]
    assert "rgb_under" in reply["message"]
    assert client.ask(observation())["status"] == "OK"


def test_garbage_is_answered_not_met_with_silence(client):
    for parts in ([b""], [b"\xff" * 1000], [b"GET / HTTP/1.1"], [b"a", b"b"], [b"x"] * 100, [b"\x80\x04."]):
        assert client.ask_raw(*parts)["status"] == "ERROR"
    assert client.ask(observation())["status"] == "OK"


def test_a_request_that_is_too_long_is_told_so(client):
    reply = client.ask_raw(bytes(act_messages.MAX_REQUEST_BYTES + 1))
    assert f"{act_messages.MAX_REQUEST_BYTES} are read at most" in reply["message"]
    assert client.ask(observation())["status"] == "OK"


def test_any_numpy_reads_the_reply():
    data = act_messages.action(np.arange(3, dtype=np.float32))
    names = [arg for opcode, arg, _ in pickletools.genops(data) if opcode.name == "SHORT_BINUNICODE"]
    assert not any("core" in name for name in names)
    assert max(opcode.proto for opcode, *_ in pickletools.genops(data)) <= 4


# --- the lab ---


def test_it_drives_the_lab_s_arm(tmp_path, connect, unhurried_bus):
    from lerobot.cameras.zmq import ZMQCameraConfig

    from lerobot_ext.robots.config_so_follower_ext import SO101FollowerExtConfig
    from lerobot_ext.robots.so_follower_ext import SO101FollowerExt

    lerobot_ext.register()
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 240, 424)),
    }
    runner = PolicyRunner(checkpoints.make_act(tmp_path / "act", inputs=inputs), device="cpu")
    runner.warm_up()
    with running_lab(tmp_path, no_operator=True) as lab, Worker(runner) as worker:
        door = ActZmqDoor([worker], "127.0.0.1", 0)
        door.start()
        camera = ZMQCameraConfig(
            server_address="127.0.0.1",
            port=lab.wrist_port,
            camera_name="wrist",
            width=424,
            height=240,
            fps=30,
        )
        robot = SO101FollowerExt(
            SO101FollowerExtConfig(
                id="follower",
                port=str(lab.follower),
                calibration_dir=lab.calibration,
                cameras={"wrist": camera},
            )
        )
        robot.connect()
        try:
            client = connect(door.endpoint)
            assert client.ask("RESET") == {"status": "OK"}
            names = list(robot.action_features)
            begin = robot.get_observation()
            for _ in range(10):
                seen = robot.get_observation()
                state = np.array([seen[name] for name in names])
                reply = client.ask({"qpos": state, "images": {"wrist": seen["wrist"]}})
                assert reply["status"] == "OK", reply
                robot.send_action(dict(zip(names, map(float, reply["action"]), strict=True)))
            end = robot.get_observation()
            assert max(abs(end[name] - begin[name]) for name in names) > 1
        finally:
            robot.disconnect()
            door.stop()
