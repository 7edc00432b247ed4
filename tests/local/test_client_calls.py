"""Calls of PolicyClient: they overlap, each keeps its deadline, and a lost server is found again by itself."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
import standin

from simplify_work.local import PolicyClient
from simplify_work.wire.errors import (
    KeyRefused,
    PolicyChanged,
    RemoteError,
    ServerStopped,
    ServerTimeout,
    ServerUnreachable,
)
from simplify_work.wire.keys import ServerKeys, make_keys
from simplify_work.wire.messages import Rtc


def in_threads(*calls):
    """Run calls at once; returns what each returned or raised."""
    results = [None] * len(calls)

    def run(index):
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def until(condition, wait_s: float = 20):
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_request_reaches_the_server_while_the_first_is_inferred(serve):
    runner = standin.StandIn()
    server, address = serve(runner)
    first, second = standin.observation(1), standin.observation(2)
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        runner.leave.clear()

        def later():
            assert runner.entered.wait(20)
            return client.infer(second)

        def release():
            until(lambda: server.metrics.requests._value.get() == 2)
            runner.leave.set()

        one, two, _ = in_threads(lambda: client.infer(first), later, release)
    np.testing.assert_array_equal(one.actions, standin.actions_for(first))
    np.testing.assert_array_equal(two.actions, standin.actions_for(second))


def test_a_reset_passes_a_waiting_request_of_another_thread(serve):
    runner = standin.StandIn()
    _, address = serve(runner)
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        runner.delay_s = 0.2
        chunk, nothing = in_threads(
            lambda: client.infer(standin.observation()), lambda: (runner.entered.wait(20), client.reset())[1]
        )
    assert chunk.actions.shape == (standin.CHUNK, standin.DIM)
    assert nothing is None
    assert runner.resets == 1


def test_threads_that_take_turns_get_their_own_answers(serve):
    _, address = serve(standin.StandIn(48, 64))
    wrong = []
    with PolicyClient(address, timeout_s=30) as client:
        turn = threading.Semaphore(2)  # two requests of a robot may be under way

        def ask(index):
            frame = standin.observation(index, 48, 64)
            for _ in range(30):
                with turn:
                    try:
                        chunk = client.infer(frame)
                    except RemoteError as error:
                        if error.kind != "superseded":
                            raise
                        continue
                wrong.append(not np.array_equal(chunk.actions, standin.actions_for(frame)))
            return True

        assert in_threads(*(lambda index=index: ask(index) for index in range(4))) == [True] * 4
    assert wrong
    assert not any(wrong)


def test_each_call_keeps_its_own_deadline(serve):
    runner = standin.StandIn()
    _, address = serve(runner)
    frame = standin.observation()
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        runner.leave.clear()
        taken = []

        def short():
            runner.entered.wait(20)
            started = time.monotonic()
            try:
                client.infer(frame, timeout_s=0.3)
            finally:
                taken.append(time.monotonic() - started)
                runner.leave.set()

        long, error = in_threads(lambda: client.infer(frame), short)
    assert isinstance(error, ServerTimeout)
    assert "within 0.3 s" in str(error)
    assert 0.25 < taken[0] < 5
    np.testing.assert_array_equal(long.actions, standin.actions_for(frame))


def test_the_follower_leads_when_the_leader_gives_up(serve):
    runner = standin.StandIn()
    _, address = serve(runner)
    frame = standin.observation()
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        runner.leave.clear()

        def second():
            runner.entered.wait(20)
            return client.infer(frame)

        def release():
            time.sleep(0.8)
            runner.leave.set()

        error, chunk, _ = in_threads(lambda: client.infer(frame, timeout_s=0.5), second, release)
    assert isinstance(error, ServerTimeout)
    np.testing.assert_array_equal(chunk.actions, standin.actions_for(frame))


def test_closing_ends_a_call_of_another_thread(serve):
    runner = standin.StandIn()
    _, address = serve(runner)
    client = PolicyClient(address, timeout_s=30)
    client.connect()
    runner.leave.clear()
    error, _ = in_threads(
        lambda: client.infer(standin.observation()), lambda: (runner.entered.wait(20), client.close())
    )
    runner.leave.set()
    assert isinstance(error, ServerStopped)
    assert client.infer(standin.observation()).actions.shape == (standin.CHUNK, standin.DIM)
    client.close()


def test_a_killed_server_is_noticed_and_found_again():
    frame = standin.observation()
    with PolicyClient("tcp://127.0.0.1:1", timeout_s=1):
        pass  # a client that never connected closes as well
    with standin.StandInProcess() as first:
        address = first.address
        client = PolicyClient(address, timeout_s=20)
        client.connect()
        os.kill(first.process.pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, first.process.kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(ServerUnreachable, match="was lost"):
            client.infer(frame)
        assert time.monotonic() - started < 10  # and not after the 20 s of the deadline
        killer.join()
    with pytest.raises(ServerUnreachable, match="no policy server at"):
        client.infer(frame, timeout_s=0.3)
    starter: list = []
    waiting = threading.Timer(0.5, lambda: starter.append(standin.StandInProcess(address)))
    waiting.start()
    chunk = client.infer(frame)  # waits for the server within its deadline
    np.testing.assert_array_equal(chunk.actions, standin.actions_for(frame))
    client.close()
    waiting.join()
    with starter[0]:
        pass


def test_what_was_asked_of_a_server_that_went_away_is_not_asked_of_the_next(serve):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    runner = standin.StandIn()
    old, new = standin.observation(1), standin.observation(2)
    with PolicyClient(address, timeout_s=20) as client:
        for _ in range(3):
            with pytest.raises(ServerUnreachable):
                client.infer(old, timeout_s=0.2)
        serve(runner, address)
        client.infer(new)
    assert [np.array_equal(each.observation[standin.SIDE], new[standin.SIDE]) for each in runner.seen] == [
        True
    ]


def test_a_server_with_another_policy_is_refused(serve):
    server, address = serve()
    with PolicyClient(address, timeout_s=20) as client:
        client.connect()
        server.stop()
        serve(standin.StandIn(depth=True), address)
        with pytest.raises(PolicyChanged, match="end this run"):
            client.infer(standin.observation())


@pytest.mark.parametrize("robot", [None, "stranger"])
def test_keys_at_fault_are_an_error_at_once(serve, tmp_path, robot):
    make_keys(tmp_path / "keys", ["arm"])
    make_keys(tmp_path / "others", ["stranger"])
    _, address = serve(keys=ServerKeys.load(tmp_path / "keys" / "server"))
    started = time.monotonic()
    with (
        PolicyClient(
            address, timeout_s=30, connect_timeout_s=30, keys=robot and tmp_path / "others" / robot
        ) as client,
        pytest.raises(KeyRefused),
    ):
        client.connect()
    assert time.monotonic() - started < 10


def test_rtc_and_model_actions_travel(serve):
    runner = standin.StandIn(supports_rtc=True, postprocessor=(np.full(6, 2.0), np.zeros(6)))
    _, address = serve(runner)
    left_over = np.arange(12, dtype=np.float32).reshape(2, 6)
    rtc = Rtc(3, 10, "jacobian", "exp", 5.0)
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        assert client.supports_rtc
        chunk = client.infer(standin.observation(), rtc=rtc, left_over=left_over, model_actions=True)
        scale, offset = client.postprocessor
        assert client.infer(standin.observation()).model_actions is None
    assert runner.seen[0].rtc == rtc
    np.testing.assert_array_equal(runner.seen[0].left_over, left_over)
    np.testing.assert_allclose(chunk.model_actions * scale + offset, chunk.actions)
    assert (scale.dtype, offset.dtype) == (np.float64, np.float64)
