"""What infers, without a socket: sessions of foreign clients share it with everybody, and always get an answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from standins import StandIn, state

from simplify_work.local import PolicyClient
from simplify_work.server.server import PolicyServer
from simplify_work.server.worker import Worker
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.errors import (
    RemoteInferenceError,
    ServerBusy,
    ServerStopped,
    ServerTimeout,
    SessionLost,
    Superseded,
)


@pytest.fixture
def start():
    """Start a worker for a stand-in."""
    running = []

    def start(runner, **options):
        worker = Worker(runner, "there", **options)
        worker.start()
        running.append((runner, worker))
        return worker

    yield start
    for runner, worker in running:
        runner.go.set()
        worker.stop()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(session, value, timeout_s=20):
    return session.infer(state(value), task="press", robot_type="so101", timeout_s=timeout_s).actions[0, 0]


def busy(runner, session, pool):
    """Let the policy be busy until `runner.go` is set."""
    runner.go.clear()
    asked = pool.submit(ask, session, 0)
    assert runner.entered.wait(20)
    return asked


def test_a_session_gets_chunks_and_is_reset(start):
    runner = StandIn()
    worker = start(runner)
    assert (worker.path, worker.served) == ("there", runner.served)
    session = worker.open_session("robot")
    assert ask(session, 3) == 3
    assert (runner.batches[0][0].task, runner.batches[0][0].robot_type) == ("press", "so101")
    session.reset()
    assert session.state.resets == 1
    assert worker.metrics.requests._value.get() == 1


def test_what_waits_together_is_one_batch_with_our_own_clients(pool):
    runner = StandIn()
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    address = listen.endpoint(socket)
    server = PolicyServer(runner, socket, path="there")
    server.start()
    try:
        session = server.worker.open_session("foreign")
        first = busy(runner, session, pool)
        with PolicyClient(address, timeout_s=20) as client:
            ours = pool.submit(client.infer, state(5))
            other = pool.submit(ask, server.worker.open_session("foreign, too"), 6)
            wait_until(lambda: len(server.worker.waiting) == 2)
            runner.go.set()
            assert (first.result(20), other.result(20)) == (0, 6)
            np.testing.assert_array_equal(ours.result(20).actions[0], np.full(6, 5))
        assert [len(batch) for batch in runner.batches] == [1, 2]
    finally:
        runner.go.set()
        server.stop()


def test_a_newer_observation_of_the_session_takes_the_place_of_the_older(start, pool):
    runner = StandIn()
    worker = start(runner)
    session = worker.open_session("robot")
    first = busy(runner, session, pool)
    old = pool.submit(ask, session, 1)
    wait_until(lambda: len(worker.waiting) == 1)
    new = pool.submit(ask, session, 2)
    with pytest.raises(Superseded):
        old.result(20)
    runner.go.set()
    assert (first.result(20), new.result(20)) == (0, 2)
    assert len(runner.batches) == 2


def test_what_comes_too_late_is_not_inferred(start, pool):
    runner = StandIn()
    worker = start(runner)
    session = worker.open_session("robot")
    first = busy(runner, worker.open_session("other"), pool)
    with pytest.raises(ServerTimeout, match=r"within 0\.1 s"):
        ask(session, 1, timeout_s=0.1)
    runner.go.set()
    first.result(20)
    assert ask(session, 2) == 2
    assert len(runner.batches) == 2


def test_foreign_sessions_count_like_our_own(pool):
    runner = StandIn()
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    address = listen.endpoint(socket)
    server = PolicyServer(runner, socket, max_sessions=1)
    server.start()
    try:
        session = server.worker.open_session("foreign")
        with PolicyClient(address, timeout_s=20) as client, pytest.raises(ServerBusy, match="1 sessions"):
            client.connect()
        with pytest.raises(ServerBusy):
            server.worker.open_session("another")
        session.close()
        session.close()
        with PolicyClient(address, timeout_s=20) as client:
            client.connect()
            with pytest.raises(ServerBusy):
                server.worker.open_session("another")
    finally:
        server.stop()


def test_a_silent_session_ends_by_itself_and_one_that_asks_goes_on(start):
    runner = StandIn()
    worker = start(runner, idle_timeout_s=1.0)
    silent, busy_one = worker.open_session("silent"), worker.open_session("busy")
    wait_until(lambda: ask(busy_one, 1) and silent.ended)
    assert not busy_one.ended
    assert worker.metrics.figures().sessions == 1
    with pytest.raises(SessionLost):
        ask(silent, 1)
    wait_until(lambda: busy_one.ended)  # nobody asks any more, and it ends all the same


def test_closing_answers_who_waits(start, pool):
    runner = StandIn()
    worker = start(runner)
    session, other = worker.open_session("robot"), worker.open_session("other")
    first = busy(runner, other, pool)
    asked = pool.submit(ask, session, 1)
    wait_until(lambda: len(worker.waiting) == 1)
    session.close()
    with pytest.raises(SessionLost):
        asked.result(20)
    runner.go.set()
    assert first.result(20) == 0


def test_stopping_answers_who_waits_and_who_comes_later(start, pool):
    runner = StandIn()
    worker = start(runner)
    session, other = worker.open_session("robot"), worker.open_session("other")
    first = busy(runner, other, pool)
    asked = pool.submit(ask, session, 1)
    wait_until(lambda: len(worker.waiting) == 1)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    runner.go.set()
    assert first.result(20) == 0
    with pytest.raises(ServerStopped):
        asked.result(20)
    stopper.join(20)
    assert not worker.running
    with pytest.raises(ServerStopped):
        ask(session, 2)
    with pytest.raises(ServerStopped):
        session.reset()


def test_a_failing_policy_is_an_error_of_the_request(start, monkeypatch):
    runner = StandIn()
    session = start(runner).open_session("robot")
    with monkeypatch.context() as patch:
        patch.setattr(session.state, "reset", lambda: 1 / 0)
        with pytest.raises(RemoteInferenceError, match="ZeroDivisionError"):
            session.reset()
        patch.setattr(runner, "infer", lambda requests: 1 / 0)
        with pytest.raises(RemoteInferenceError, match="ZeroDivisionError"):
            ask(session, 1)
    assert ask(session, 2) == 2


def test_a_worker_that_was_never_started_can_be_stopped():
    Worker(StandIn()).stop()
