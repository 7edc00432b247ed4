"""Robots whose observations come to an end: a play is an episode, and the run ends with the last; a stand-in for both."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from lerobot_ext.rollout import plays
from lerobot_ext.rollout.plays import run_plays


class Player:
    """So many plays; `ends` are their `at_end`."""

    def __init__(self, count, did):
        self.left, self.did, self.ends = count, did, []

    @property
    def more(self):
        return self.left > 0

    @contextmanager
    def playing(self, at_end):
        self.left -= 1
        self.ends.append(at_end)
        self.did.append("play")
        try:
            yield
        finally:
            self.did.append("over")


@dataclass
class Runtime:
    cfg: Any
    shutdown_event: Any


@dataclass
class Context:
    hardware: Any
    runtime: Runtime


class Run:
    """A strategy's `run` that does what the test says."""

    def __init__(self, count=2, duration=0.0, end_episode=True, robot=None):
        self.did, self.given = [], []
        self.robot = Player(count, self.did) if robot is None else robot
        note = self.did.append
        engine = SimpleNamespace(
            pause=lambda: note("pause"),
            notify_observation=lambda observation: note(f"notify {observation}"),
            reset=lambda: note("reset"),
        )
        if end_episode:
            engine.end_episode = lambda: note("end_episode")
        self.strategy = SimpleNamespace(
            _engine=engine, _interpolator=SimpleNamespace(reset=lambda: note("interpolator"))
        )
        self.stop = threading.Event()
        cfg = SimpleNamespace(duration=duration)
        hardware = SimpleNamespace(robot_wrapper=SimpleNamespace(inner=self.robot))
        self.ctx = Context(hardware, Runtime(cfg, self.stop))

    def __call__(self, during=lambda ctx: None):
        def run(strategy, ctx):
            assert strategy is self.strategy
            self.did.append("run")
            self.given.append(ctx)
            during(ctx)

        run_plays(run, self.strategy, self.ctx)
        return self


BEGIN = ["play", "pause", "notify None", "reset", "interpolator", "run"]


def test_each_play_is_an_episode_that_begins_anew():
    run = Run()()
    assert run.did == 2 * [*BEGIN, "end_episode", "over"]
    assert Run(count=1, end_episode=False)().did == [*BEGIN, "over"], "LeRobot's engines have no such method"
    assert run.ctx.runtime.shutdown_event is run.stop and run.given[0] is not run.ctx


def test_a_play_s_end_is_not_the_run_s():
    run = Run()

    def during(ctx):
        assert not ctx.runtime.shutdown_event.is_set()
        run.robot.ends[-1]()
        assert ctx.runtime.shutdown_event.is_set() and not run.stop.is_set()

    assert run(during).did.count("run") == 2


def test_the_run_s_end_is_a_play_s():
    run = Run()

    def during(ctx):
        run.stop.set()
        assert ctx.runtime.shutdown_event.is_set()

    assert run(during).did.count("run") == 1 and run.robot.more


def test_the_duration_counts_for_all_plays_together(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(plays, "time", clock)
    run = Run(count=9, duration=5.0)

    def during(ctx):
        clock.now += 2.0

    run(during)
    assert [ctx.runtime.cfg.duration for ctx in run.given] == [5, 3, 1]
    assert run.ctx.runtime.cfg.duration == 5.0
    assert [ctx.runtime.cfg.duration for ctx in Run()().given] == [0, 0], "no end"


def test_an_episode_ends_also_with_an_error():
    run = Run()
    with pytest.raises(ConnectionError):
        run(lambda ctx: (_ for _ in ()).throw(ConnectionError))
    assert run.did == [*BEGIN, "end_episode", "over"]


def test_any_other_robot_runs_as_always():
    run = Run(robot=object())()
    assert run.did == ["run"] and run.given == [run.ctx]
