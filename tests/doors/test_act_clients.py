"""Many clients, long episodes and a full, slow or stopping server at the ACT door, with a stand-in for the policy."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import zmq
from act_client import PATIENCE_MS

from lerobot_ext.errors import UserError
from simplify_work.server.doors import act_zmq
from simplify_work.server.doors.act_zmq import ActZmqDoor
from simplify_work.server.protocol import Inference, Request, Served
from simplify_work.server.worker import Worker
from simplify_work.wire.features import DTYPES, FeatureSpec

# --- with a stand-in for the policy ---


class State:
    def __init__(self):
        self.resets = 0

    def reset(self):
        self.resets += 1


class StandIn:
    """Chunks of 5 that repeat the first two entries of the state; waits for `go` where that is cleared."""

    def __init__(self, **served):
        inputs = (FeatureSpec("observation.state", "vector", (2,), DTYPES["vector"]),)
        self.served = Served("stand-in", served.pop("inputs", inputs), 2, 5, 5, **served)
        self.batches: list[int] = []
        self.states: list[State] = []
        self.go, self.entered = threading.Event(), threading.Event()
        self.go.set()

    def open_session(self):
        self.states.append(State())
        return self.states[-1]

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference]]:
        self.batches.append(len(requests))
        self.entered.set()
        self.go.wait(30)
        for index, request in enumerate(requests):
            actions = np.repeat(request.observation["observation.state"][None], 5, axis=0)
            yield index, Inference(actions, 0.0, 0.0, 0.0, len(requests))


@pytest.fixture
def opened():
    """A door to a stand-in; returns (stand-in, worker, door)."""
    running = []

    def opened(runner=None, **options):
        runner = runner or StandIn()
        worker = Worker(runner, "stand-in", **options)
        worker.start()
        door = ActZmqDoor([worker], "127.0.0.1", 0)
        door.start()
        running.append((runner, worker, door))
        return running[-1]

    yield opened
    for runner, worker, door in running:
        runner.go.set()
        door.stop()
        worker.stop()


def qpos(value):
    return {"qpos": np.full(2, value, np.float32)}


def test_an_episode_may_be_longer_than_a_thousand_steps(opened, connect):
    runner, _, door = opened()
    client = connect(door.endpoint)
    for step in range(1100):
        action = client.ask(qpos(step % 50))["action"]
        if step % 50 >= 5:
            weights = np.exp(-0.01 * np.arange(5))
            assert abs(action[0] - np.average(step % 50 - np.arange(4, -1, -1), weights=weights)) < 1e-3
    assert len(runner.batches) == 1100
    assert len(runner.states) == 1


def test_each_connection_is_a_robot_of_its_own_and_reconnecting_begins_anew(opened, connect):
    runner, worker, door = opened()
    one, other = connect(door.endpoint), connect(door.endpoint)
    for _ in range(3):
        np.testing.assert_allclose(one.ask(qpos(1))["action"], 1)
        np.testing.assert_allclose(other.ask(qpos(9))["action"], 9)
    assert len(runner.states) == 2
    assert one.ask("RESET") == {"status": "OK"}
    assert [state.resets for state in runner.states] == [1, 0]
    np.testing.assert_allclose(one.ask(qpos(5))["action"], 5)
    assert other.ask(qpos(5))["action"][0] > 5  # its episode goes on
    one.close()
    np.testing.assert_allclose(connect(door.endpoint).ask(qpos(7))["action"], 7)
    assert len(runner.states) == 3
    assert worker.metrics.figures().sessions == 3


def test_clients_that_wait_together_are_one_batch(opened, connect):
    runner, worker, door = opened()
    clients = [connect(door.endpoint) for _ in range(4)]
    runner.go.clear()
    clients[0].socket.send(pickle.dumps(qpos(0)))
    assert runner.entered.wait(30)
    for number, client in enumerate(clients[1:], 1):
        client.socket.send(pickle.dumps(qpos(number)))
    deadline = time.monotonic() + 30
    while len(worker.waiting) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    runner.go.set()
    for number, client in enumerate(clients):
        assert client.socket.poll(PATIENCE_MS)
        np.testing.assert_allclose(pickle.loads(client.socket.recv())["action"], number)
    assert runner.batches == [1, 3]


def test_the_checkpoint_s_own_coefficient_is_used(opened, connect):
    _, _, door = opened(StandIn(temporal_ensemble_coeff=-1.0))
    client = connect(door.endpoint)
    client.ask(qpos(0))
    share = np.exp(1) / (1 + np.exp(1))
    np.testing.assert_allclose(client.ask(qpos(1))["action"], share, rtol=1e-5)


def test_a_client_that_was_silent_for_long_begins_a_new_episode(opened, connect):
    runner, _, door = opened(idle_timeout_s=0.2)
    client = connect(door.endpoint)
    client.ask(qpos(1))
    time.sleep(0.6)
    np.testing.assert_allclose(client.ask(qpos(5))["action"], 5)
    assert len(runner.states) == 2


def test_a_full_server_says_so_until_a_place_is_given_up(opened, connect, monkeypatch):
    _, _, door = opened(max_sessions=1)
    first, second = connect(door.endpoint), connect(door.endpoint)
    assert first.ask(qpos(1))["status"] == "OK"
    reply = second.ask(qpos(2))
    assert reply["status"] == "ERROR"
    assert "1 sessions" in reply["message"]
    monkeypatch.setattr(act_zmq, "_GONE_S", 0.0)
    assert second.ask(qpos(2))["status"] == "OK"


def test_a_policy_that_fails_or_is_slow_is_an_error_of_the_request(opened, connect, monkeypatch):
    runner, _, door = opened()
    client = connect(door.endpoint)
    monkeypatch.setattr(runner, "infer", lambda requests: 1 / 0)
    assert "ZeroDivisionError" in client.ask(qpos(1))["message"]
    monkeypatch.undo()
    monkeypatch.setattr(act_zmq, "INFER_TIMEOUT_S", 0.2)
    runner.go.clear()
    assert "within 0.2 s" in client.ask(qpos(1))["message"]
    runner.go.set()
    monkeypatch.undo()
    assert client.ask(qpos(1))["status"] == "OK"


def test_actions_that_are_no_numbers_are_an_error_and_no_part_of_the_episode(opened, connect, monkeypatch):
    runner, _, door = opened()
    client = connect(door.endpoint)
    broken = Inference(np.full((5, 2), np.nan, np.float32), 0.0, 0.0, 0.0)
    monkeypatch.setattr(runner, "infer", lambda requests: [(0, broken)])
    assert "not finite numbers" in client.ask(qpos(1))["message"]
    monkeypatch.undo()
    np.testing.assert_allclose(client.ask(qpos(5))["action"], 5)


def test_a_req_socket_that_numbers_its_requests_is_answered(opened):
    _, _, door = opened()
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger, client.rcvtimeo = 0, PATIENCE_MS
        client.req_correlate = client.req_relaxed = True
        client.connect(door.endpoint)
        for value in (1, 1, 1):
            client.send(pickle.dumps(qpos(value)))
            np.testing.assert_allclose(pickle.loads(client.recv())["action"], value)
        client.send_multipart([b"two", b"parts"])
        assert "one part" in pickle.loads(client.recv())["message"]


def test_a_client_behind_a_proxy_is_told_and_not_mixed_with_others(opened):
    _, _, door = opened()
    with zmq.Context() as context, context.socket(zmq.DEALER) as proxy:
        proxy.linger, proxy.rcvtimeo = 0, PATIENCE_MS
        proxy.connect(door.endpoint)
        proxy.send_multipart([b"\0abcd", b"", pickle.dumps(qpos(1))])
        *route, reply = proxy.recv_multipart()
        assert route == [b"\0abcd", b""]
        assert "by a REQ socket" in pickle.loads(reply)["message"]


def test_a_policy_that_fails_at_each_step_does_not_fill_the_log(opened, connect, monkeypatch, caplog):
    runner, _, door = opened()
    client = connect(door.endpoint)
    monkeypatch.setattr(runner, "infer", lambda requests: 1 / 0)
    for _ in range(5):
        assert "ZeroDivisionError" in client.ask(qpos(1))["message"]
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_client_that_does_not_wait_for_its_answer_is_told(opened):
    runner, _, door = opened()
    with zmq.Context() as context, context.socket(zmq.DEALER) as rude:
        rude.linger = 0
        rude.connect(door.endpoint)
        runner.go.clear()
        for number in range(3):
            rude.send_multipart([b"", pickle.dumps(qpos(number))])
        for _ in range(2):
            assert rude.poll(PATIENCE_MS)
            assert "not answered yet" in pickle.loads(rude.recv_multipart()[-1])["message"]
        runner.go.set()
        assert rude.poll(PATIENCE_MS)
        assert pickle.loads(rude.recv_multipart()[-1])["status"] == "OK"
        rude.send(b"no request")
        assert rude.poll(PATIENCE_MS)
        assert "REQ" in pickle.loads(rude.recv_multipart()[-1])["message"]


def test_a_stopping_door_answers_who_waits_and_leaves_nothing(opened, connect):
    others = set(threading.enumerate())
    runner, worker, door = opened()
    first, second = connect(door.endpoint), connect(door.endpoint)
    runner.go.clear()
    first.socket.send(pickle.dumps(qpos(1)))
    assert runner.entered.wait(30)
    second.socket.send(pickle.dumps(qpos(2)))
    deadline = time.monotonic() + 30
    while len(worker.waiting) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    stopper = threading.Thread(target=door.stop)
    stopper.start()
    assert second.socket.poll(PATIENCE_MS)
    assert pickle.loads(second.socket.recv())["status"] == "ERROR"
    runner.go.set()
    assert first.socket.poll(PATIENCE_MS)
    stopper.join(30)
    assert not stopper.is_alive()
    assert worker.metrics.figures().sessions == 0
    left = {thread.name for thread in set(threading.enumerate()) - others}
    assert not [name for name in left if name.startswith("door-act-zmq")]
    door.stop()


def test_what_a_client_cannot_give_keeps_the_door_shut():
    state = FeatureSpec("observation.state", "vector", (2,), DTYPES["vector"])
    force = FeatureSpec("observation.force", "vector", (15,), DTYPES["vector"])
    with pytest.raises(UserError, match=r"wants observation\.force \(15,\), and an ACT client"):
        ActZmqDoor([Worker(StandIn(inputs=(state, force)))], "127.0.0.1", 0)
    with pytest.raises(UserError, match="2 observations at once"):
        ActZmqDoor([Worker(StandIn(n_obs_steps=2))], "127.0.0.1", 0)


def test_a_taken_port_is_told(opened):
    _, worker, door = opened()
    port = int(door.endpoint.rpartition(":")[2])
    other = ActZmqDoor([worker], "127.0.0.1", port)
    with pytest.raises(
        UserError, match=rf"door act_zmq cannot listen on 127.0.0.1:{port} .*--door=act_zmq:PORT"
    ):
        other.start()
    other.stop()
