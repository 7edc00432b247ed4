"""The worker at its edges: batches of a bounded size, a policy that fails half way, and sessions that end meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from standins import STATE, StandIn, state

from simplify_work.server.mailbox import Job
from simplify_work.server.protocol import Inference
from simplify_work.server.worker import Worker, _durations
from simplify_work.wire.errors import RemoteInferenceError, SessionLost
from simplify_work.wire.messages import Infer


@pytest.fixture
def runner():
    runner = StandIn()
    yield runner
    runner.go.set()


def ask(session, value):
    return session.infer(state(value), timeout_s=30).actions[0, 0]


def together(runner, worker, pool, count):
    """The answers to so many robots that ask while the policy is busy with another one."""
    runner.go.clear()
    first = pool.submit(ask, worker.open_session("first"), 0)
    assert runner.entered.wait(30)
    asked = [pool.submit(ask, worker.open_session(f"{each}"), each) for each in range(count)]
    deadline = time.monotonic() + 30
    while len(worker.waiting) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    runner.go.set()
    assert first.result(30) == 0
    return asked


def test_a_batch_has_a_bound(runner):
    with Worker(runner, max_batch=2) as worker, ThreadPoolExecutor(8) as pool:
        asked = together(runner, worker, pool, 5)
        assert [each.result(30) for each in asked] == list(range(5))
    assert [len(batch) for batch in runner.batches] == [1, 2, 2, 1]


def test_who_has_an_answer_keeps_it_when_the_policy_fails_at_the_next(runner, monkeypatch):
    def infer(requests):
        for index, request in enumerate(requests):
            runner.entered.set()
            runner.go.wait(30)
            if index:
                raise MemoryError("too many")
            yield index, Inference(np.repeat(request.observation[STATE][None], 5, axis=0), 0.0, 0.0, 0.0)

    monkeypatch.setattr(runner, "infer", infer)
    with Worker(runner) as worker, ThreadPoolExecutor(8) as pool:
        one, other = together(runner, worker, pool, 2)
        answers = [each.exception(30) for each in (one, other)]
        assert [type(each) for each in answers].count(RemoteInferenceError) == 1 and None in answers
        assert ask(worker.open_session("later"), 7) == 7, "the worker goes on"


def test_the_next_silent_session_is_looked_for_when_it_may_have_to_end(runner):
    worker = Worker(runner, idle_timeout_s=1000.0)
    assert worker._end_silent_sessions() == 1000.0
    one, other = worker.open_session("one"), worker.open_session("other")
    one.last_seen_s -= 900
    assert worker._end_silent_sessions() == pytest.approx(100, abs=60)
    one.last_seen_s -= 200
    assert worker._end_silent_sessions() == pytest.approx(1000, abs=60)
    assert one.ended and not other.ended


def test_a_session_that_ended_while_its_request_was_taken_is_not_inferred(runner):
    worker = Worker(runner)
    session, answers = worker.open_session("robot"), []
    job = Job(session, Infer(request=0), state(1), answers.append)
    session.ended = True
    worker._answer([job])
    assert isinstance(answers[0].result, SessionLost) and not runner.batches
    # The policy's own clock may say that it worked longer than the request was there.
    assert _durations(job, Inference(np.zeros((1, 6)), 1e6, 1e6, 1e6)).queue_s == 0
