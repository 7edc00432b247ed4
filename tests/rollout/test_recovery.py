"""What the engine does when chunks stop coming: hold, rest, try again, resume with a fresh observation, give up."""

import json
import logging
import time

import numpy as np
import pytest
from scripted import Rig, chunk

from simplify_work.wire.errors import (
    FeatureMismatch,
    KeyRefused,
    PolicyChanged,
    RemoteInferenceError,
    ServerBusy,
    ServerTimeout,
    ServerUnreachable,
    WireFormatError,
)

GONE = ServerUnreachable("no policy server at tcp://gpu:5555; start one there.")


def lose(rig, error=GONE):
    """A first chunk, and then the link is gone with the next request."""
    rig.show()
    rig.source.wait_asked(1)
    rig.chunk(0, chunk(0))
    rig.blind(5)
    rig.show()
    rig.source.wait_asked(2)
    rig.source.on_reset = lambda: (_ for _ in ()).throw(error)
    rig.chunk(1, error)


def come_back(rig):
    """The source answers again, and the engine has noticed."""
    rig.source.on_reset = lambda: None
    resets = rig.source.resets
    rig.clock.now += 2.1
    rig.show()
    rig.source.wait_reset(resets + 1)
    rig.settle(lambda: not rig.engine._recovery.must_reset)


@pytest.mark.parametrize(
    "error",
    [
        GONE,
        ServerTimeout("no answer."),
        ServerBusy("full."),
        WireFormatError("garbage."),
        RuntimeError("CUDA out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_queued_is_executed_and_then_nothing_is_sent(error, caplog):
    with Rig() as rig:
        lose(rig, error)
        assert [action and action[0] for action in rig.tick(8)] == [5, 6, 7, 8, 9, None, None, None]
        logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(logged) == 1 and "no chunks" in logged[0].getMessage()
        assert str(error).rstrip(".") in logged[0].getMessage() and "holds" in logged[0].getMessage()
        assert not rig.engine.failed and not rig.shutdown.is_set()


def test_an_outage_is_logged_once_and_tried_again_with_growing_waits(caplog):
    with Rig() as rig:
        lose(rig)
        tries = [rig.source.resets]
        for _ in range(120):
            rig.tick(1, dt=0.05)
            time.sleep(0.002)
            tries.append(rig.source.resets)
        assert 3 <= tries[-1] <= 7, "6 s: after 0.2, 0.6, 1.4, 3 and 5 s"
        assert caplog.text.count("no chunks") == 1


def test_motion_resumes_with_an_observation_shown_after_the_source_came_back(caplog):
    caplog.set_level(logging.INFO)
    with Rig() as rig:
        lose(rig)
        rig.tick(8)
        before = rig.shown
        come_back(rig)
        assert len(rig.source.asked) == 2, "what was shown before does not count"
        fresh = rig.show()
        request = rig.source.wait_asked(3)
        assert request.observations == (fresh,) and fresh["shown"] > before
        rig.chunk(2, chunk(50))
        assert rig.act()[0] == 50, "the arm stood still, so nothing is trimmed"
        assert "chunks come again after" in caplog.text


def test_what_was_queued_before_the_outage_is_replaced():
    with Rig(merge="append") as rig:
        lose(rig)
        rig.tick(1)
        come_back(rig)
        rig.show()
        rig.source.wait_asked(3)
        rig.chunk(2, chunk(106))
        assert rig.act()[0] == 106


def test_a_second_request_that_was_on_its_way_does_not_end_an_outage():
    with Rig(requests_in_flight=2, chunk_size_threshold=1.0) as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.show()
        rig.source.wait_asked(2)
        rig.source.on_reset = lambda: (_ for _ in ()).throw(GONE)
        rig.chunk(0, GONE)
        rig.chunk(1, chunk(0))
        assert rig.act() is None and rig.engine._recovery.lost


@pytest.mark.parametrize("last", [True, False], ids=["after motion", "before any"])
def test_the_arm_goes_slowly_to_where_the_episode_began(last, caplog):
    with Rig(when_lost="rest", max_hold_s=1.0, rest_speed=30.0) as rig:
        if last:
            rig.show(**{"pan.pos": 3.0, "grip.pos": 0.5})
            rig.source.wait_asked(1)
            rig.chunk(0, chunk(0))
            rig.blind(5)
            rig.show()
            rig.source.wait_asked(2)
        else:
            rig.show()
            rig.source.wait_asked(1)
        rig.source.on_reset = lambda: (_ for _ in ()).throw(GONE)
        rig.chunk(len(rig.source.asked) - 1, GONE)
        moved = rig.tick(60)
        if not last:
            assert moved == [None] * 60, "it is there"
            return
        assert moved[:5] == [[5, 0], [6, 0], [7, 0], [8, 0], [9, 0]]
        assert moved[5 : 5 + 29] == [None] * 29, "held for a second first"
        way = [action for action in moved[5:] if action is not None]
        steps = np.diff([[9, 0], *way], axis=0)
        assert np.abs(steps).max() <= 1.0 + 1e-3, "30 units a second at 30 Hz"
        assert np.allclose(steps, steps[0], atol=1e-3), "straight and even"
        assert way[-1] == [3, 0.5] and moved[-1] is None
        assert caplog.text.count("rest position") == 1


def test_the_rest_position_may_be_given_for_some_joints():
    with Rig(when_lost="rest", max_hold_s=0, rest_speed=1e3, rest_position={"pan.pos": -4.0}) as rig:
        lose(rig)
        assert rig.tick(7)[5:] == [[-4, 0], None]


def test_a_chunk_ends_the_way_to_rest():
    with Rig(when_lost="rest", max_hold_s=0, rest_speed=1.0) as rig:
        lose(rig)
        assert rig.tick(8)[5:] != [None] * 3
        come_back(rig)
        assert rig.tick(2) == [None, None], "it stays where the fresh observation sees it"
        rig.source.wait_asked(3)
        rig.chunk(2, chunk(50))
        assert rig.act()[0] == 50


def test_after_give_up_s_the_run_ends(caplog):
    with Rig(give_up_s=10.0) as rig:
        lose(rig)
        rig.tick(8)
        rig.clock.now += 9.0
        rig.tick(1)
        assert not rig.engine.failed
        rig.clock.now += 1.0
        rig.tick(1)
        assert rig.engine.failed and rig.engine.ready and rig.shutdown.is_set()
        assert rig.act() is None
        assert "the run ends: no chunks for 10 s: no policy server at tcp://gpu:5555" in caplog.text


def test_a_pause_does_not_count_and_episodes_do_not_begin_the_count_anew():
    with Rig(give_up_s=10.0) as rig:
        lose(rig)
        for _ in range(3):
            rig.clock.now += 3.0
            rig.engine.end_episode()
            rig.clock.now += 100.0
            rig.engine.resume()
            rig.show()
            rig.act()
            assert not rig.engine.failed
        rig.clock.now += 3.0
        rig.show()
        rig.act()
        assert rig.engine.failed


def test_a_source_that_never_answers_ends_the_run_too(caplog):
    with Rig(give_up_s=10.0) as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.act()
        rig.clock.now += 9.0
        rig.act()
        assert not rig.engine.failed
        rig.clock.now += 1.0
        rig.act()
        assert rig.engine.failed and "has not answered at all" in caplog.text


def test_a_link_that_was_lost_in_the_last_episode_is_lost_in_this_one():
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.engine.end_episode()
        rig.chunk(0, GONE)
        assert rig.engine._recovery.lost


@pytest.mark.parametrize("kind", [PolicyChanged, FeatureMismatch, KeyRefused])
def test_what_trying_again_does_not_mend_ends_the_run_at_once(kind, caplog):
    with Rig() as rig:
        lose(rig, kind("the sentence."))
        assert rig.engine.failed and rig.shutdown.is_set()
        assert "the run ends: the sentence." in caplog.text and "goes on by itself" not in caplog.text


def test_one_bad_chunk_is_refused_whole_and_asked_for_again(caplog):
    with Rig(limits={"pan.pos": (-50.0, 50.0)}) as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.chunk(0, chunk(0))
        rig.blind(5)
        rig.show()
        rig.source.wait_asked(2)
        rig.chunk(1, chunk(45))
        rig.show()
        rig.source.wait_asked(3)
        assert rig.source.resets == 1 and not rig.engine._recovery.lost
        rig.chunk(2, chunk(5))
        assert [action[0] for action in rig.tick(6)] == [5, 6, 7, 8, 9, 10]
        assert rig.engine._log.counts.refused == 1
        assert caplog.text.count("a chunk was refused") == 1


def test_bad_chunks_only_are_an_outage():
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.chunk(0, np.full((10, 2), np.nan))
        assert rig.engine._recovery.lost and rig.tick(2) == [None, None]
        come_back(rig)
        rig.show()
        rig.source.wait_asked(2)
        rig.chunk(1, chunk(0))
        assert rig.act()[0] == 0


def test_a_chunk_that_the_client_refused_is_counted_as_refused():
    with Rig() as rig:
        lose(rig, RemoteInferenceError("the chunk is not finite."))
        assert (rig.engine._log.counts.refused, rig.engine._log.counts.faults) == (1, 1)


def test_the_telemetry_marks_fault_refusal_and_resumption(tmp_path):
    with Rig(telemetry_dir=str(tmp_path)) as rig:
        lose(rig)
        rig.engine.end_episode()
        rig.engine.resume()
        rig.tick(3)
        come_back(rig)
        rig.show()
        rig.source.wait_asked(3)
        rig.chunk(2, np.full((10, 2), np.nan))
        come_back(rig)
        rig.show()
        rig.source.wait_asked(4)
        rig.chunk(3, chunk(0))
    files = sorted(tmp_path.iterdir())
    events = [[json.loads(line) for line in file.open()] for file in files]
    first = [line for line in events[0] if line["event"] in ("fault", "refused", "resumed")]
    assert [(line["event"], line["kind"], line["text"]) for line in first] == [
        ("fault", "unreachable", str(GONE))
    ]
    second = [line["event"] for line in events[1] if line["event"] in ("fault", "refused", "resumed")]
    assert second == ["fault", "refused", "resumed"], (
        "an outage that goes on is in the next episode's file, too"
    )
    assert (events[1][-1]["faults"], events[1][-1]["refused"]) == (1, 1)


def test_an_error_of_ours_in_a_thread_ends_the_run_instead_of_going_unnoticed(monkeypatch):
    with Rig() as rig:
        monkeypatch.setattr(rig.engine, "_take_in", lambda *args: 1 / 0)
        rig.show()
        rig.source.wait_asked(1)
        rig.source.answer(0, chunk(0))
        rig.shutdown.wait(10)
        assert rig.engine.failed
