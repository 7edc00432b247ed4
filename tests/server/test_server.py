"""The server in the process: sessions, limits, and what it does with messages nobody should send."""

from __future__ import annotations

import pickle
import socket as sockets_of_the_system
import threading
import time

import checkpoints
import numpy as np
import pytest
import zmq

from simplify_work.local import PolicyClient
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import (
    AddressError,
    FeatureMismatch,
    RemoteInferenceError,
    ServerBusy,
    ServerStopped,
    ServerTimeout,
    SessionLost,
)
from simplify_work.wire.features import DTYPES, FeatureSpec, describe
from simplify_work.wire.messages import Error, Hello, Infer, Welcome

IMAGE = checkpoints.IMAGE


@pytest.fixture
def serve(runner):
    """Start a server with these options; returns it with its address."""
    running = []

    def start(**options):
        socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
        address = listen.endpoint(socket)
        server = PolicyServer(runner, socket, **options)
        server.start()
        running.append(server)
        return server, address

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def peer():
    """A bare DEALER, for messages that no client would send."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    yield socket
    socket.close()
    context.term()


def answer(peer, frames):
    peer.send_multipart(frames)
    assert peer.poll(10_000)
    return unpack(peer.recv_multipart())[0]


def test_robots_get_their_own_chunks_at_once(serve, act):
    _, address = serve()
    frames = [checkpoints.observation(seed) for seed in range(4)]
    expected = [checkpoints.local_chunk(act, frame).numpy() for frame in frames]
    worst = [1.0] * len(frames)

    def robot(index):
        with PolicyClient(address, timeout_s=30) as client:
            chunks = [client.infer(frames[index]).actions for _ in range(5)]
        worst[index] = max(np.abs(chunk - expected[index]).max() for chunk in chunks)

    threads = [threading.Thread(target=robot, args=(index,)) for index in range(len(frames))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(worst) < 1e-5


def test_features_are_compared_at_the_handshake(serve):
    _, address = serve()
    given = [FeatureSpec("observation.state", "vector", (7,), DTYPES["vector"])]
    with PolicyClient(address) as client, pytest.raises(FeatureMismatch) as caught:
        client.connect(given)
    text = str(caught.value)
    assert f"{IMAGE} is missing" in text
    assert "The robot gives: observation.state (7,)" in text
    with PolicyClient(address) as client:
        assert client.connect(describe(checkpoints.observation())).policy_type == "act"


def test_an_observation_that_does_not_fit_is_refused_and_the_next_one_served(serve):
    _, address = serve()
    with PolicyClient(address, timeout_s=30) as client:
        with pytest.raises(FeatureMismatch):
            client.infer({"observation.state": np.zeros(6, np.float32)})
        assert client.infer(checkpoints.observation()).actions.shape == (20, 6)


def test_a_failing_policy_is_an_error_of_the_request(serve, runner, monkeypatch):
    _, address = serve()
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        with monkeypatch.context() as patch:
            patch.setattr(runner, "predict", lambda *_: 1 / 0)
            with pytest.raises(RemoteInferenceError, match="ZeroDivisionError"):
                client.infer(checkpoints.observation())
        assert len(client.infer(checkpoints.observation()).actions) == 20


def test_actions_that_are_not_finite_are_refused_whole(serve, runner, monkeypatch):
    _, address = serve()
    predict = runner.predict
    with PolicyClient(address, timeout_s=30) as client:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "predict", lambda *args: predict(*args) * float("nan"))
            with pytest.raises(RemoteInferenceError, match="not finite"):
                client.infer(checkpoints.observation())
        assert np.isfinite(client.infer(checkpoints.observation()).actions).all()


def test_only_so_many_sessions_are_admitted(serve):
    _, address = serve(max_sessions=1)
    with PolicyClient(address) as first:
        first.connect()
        with PolicyClient(address) as second, pytest.raises(ServerBusy, match="1 sessions"):
            second.connect()
    deadline = time.monotonic() + 10
    with PolicyClient(address) as third:
        while third.welcome is None:
            try:
                third.connect()
            except ServerBusy:  # the goodbye of the first is on its way
                assert time.monotonic() < deadline


def test_an_idle_session_ends_and_comes_back_by_itself(serve):
    _, address = serve(idle_timeout_s=0.3)
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        time.sleep(1.0)
        assert len(client.infer(checkpoints.observation()).actions) == 20


def test_a_stopping_server_says_goodbye_to_who_waits(serve, runner, monkeypatch):
    server, address = serve()
    entered, leave = threading.Event(), threading.Event()
    predict = runner.predict

    def slow(*args):
        entered.set()
        leave.wait(20)
        return predict(*args)

    monkeypatch.setattr(runner, "predict", slow)
    with PolicyClient(address, timeout_s=20) as client:
        client.connect()
        stopper = threading.Thread(target=lambda: (entered.wait(20), server.stop()))
        stopper.start()
        with pytest.raises(ServerStopped, match="stopped"):
            client.infer(checkpoints.observation())
        leave.set()
        stopper.join(20)
    assert not server.running


def test_a_late_reply_is_never_taken_for_the_next_one(serve, runner, monkeypatch, act):
    _, address = serve()
    predict, slow_calls, leave = runner.predict, [1], threading.Event()

    def slow_once(*args):
        if slow_calls:
            slow_calls.pop()
            leave.wait(20)
        return predict(*args)

    monkeypatch.setattr(runner, "predict", slow_once)
    old, new = checkpoints.observation(1), checkpoints.observation(2)
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        with pytest.raises(ServerTimeout, match=r"within 0.3 s"):
            client.infer(old, timeout_s=0.3)
        leave.set()
        actions = client.infer(new).actions
    assert np.abs(actions - checkpoints.local_chunk(act, new).numpy()).max() < 1e-5


def test_messages_nobody_should_send_are_answered_and_change_nothing(serve, peer, tmp_path):
    server, address = serve()
    peer.connect(address)
    created = tmp_path / "created"

    class Hostile:
        def __reduce__(self):
            return (open, (str(created), "w"))

    valid = pack(Hello(request=1, client="x"))
    for frames in (
        [b""],
        [b"\xff" * 10_000],
        [pickle.dumps(Hostile())],
        [valid[0], pickle.dumps(Hostile())],
        [valid[0][:-3]],
        [b"x"] * 500,
        pack(Welcome(request=1, server="", policy_type="", inputs=(), action_dim=1, action_names=None,
                     chunk_size=1, n_action_steps=1)),
    ):  # fmt: skip
        reply = answer(peer, frames)
        assert isinstance(reply, Error)
        assert reply.error == "wire_format"
    assert server.malformed == 7
    assert not created.exists()
    reply = answer(peer, pack(Infer(request=9)))
    assert (reply.error, reply.request) == (SessionLost.kind, 9)
    assert isinstance(answer(peer, valid), Welcome)


def test_bytes_that_are_not_zeromq_change_nothing(serve):
    _, address = serve()
    host, port = address.removeprefix("tcp://").split(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"\xff\0\0\0\0\0\0\0\1\x7f\3"):
        with sockets_of_the_system.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(garbage)
    with PolicyClient(address, timeout_s=30) as client:
        assert len(client.infer(checkpoints.observation()).actions) == 20


def test_other_machines_are_not_let_in():
    with pytest.raises(AddressError, match=r"0\.0\.0\.0 can be reached from other machines"):
        listen.bind(parse_address("tcp://0.0.0.0:0"))


def test_a_unix_socket_serves_as_well(runner, tmp_path):
    server = PolicyServer(runner, listen.bind(parse_address(f"ipc://{tmp_path}/brain")))
    server.start()
    with PolicyClient(f"ipc://{tmp_path}/brain", timeout_s=30) as client:
        assert len(client.infer(checkpoints.observation()).actions) == 20
    server.stop()
