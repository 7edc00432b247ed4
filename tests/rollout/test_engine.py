"""When the engine asks, what it does with answers, and what an episode's boundary cuts off; with real threads."""

import json
import threading
import time

import numpy as np
import pytest
from scripted import NAMES, PATIENCE_S, Rig, chunk

from lerobot_ext.rollout.sources import Answer
from simplify_work.wire.errors import Superseded


def started(rig, first=0.0, length=10):
    """Show, and answer the first request."""
    rig.show()
    rig.source.wait_asked(1)
    rig.chunk(0, chunk(first, length))


def firsts(actions):
    return [None if action is None else action[0] for action in actions]


# --- asking ---


def test_an_empty_queue_asks_at_once_and_with_the_newest_observation():
    with Rig() as rig:
        shown = rig.show()
        assert rig.source.wait_asked(1).observations == (shown,)
        assert rig.source.resets == 1, "the source hears of the episode first"


def test_it_asks_again_when_the_queue_is_at_the_threshold_and_not_before():
    with Rig(chunk_size_threshold=0.3) as rig:
        started(rig)
        assert firsts(rig.tick(6)) == [0, 1, 2, 3, 4, 5]
        time.sleep(0.05)
        assert len(rig.source.asked) == 1, "4 are left"
        rig.tick(1)
        assert rig.source.wait_asked(2).observations[0]["shown"] == 8


def test_the_threshold_is_a_share_of_what_is_kept_of_a_chunk():
    with Rig(actions_per_chunk=4, chunk_size_threshold=0.5) as rig:
        started(rig)
        assert firsts(rig.blind(2)) == [0, 1]
        rig.show()
        rig.source.wait_asked(2)
        assert firsts(rig.act() for _ in range(3)) == [2, 3, None]


def test_one_request_is_in_flight():
    with Rig() as rig:
        rig.tick(5)
        rig.source.wait_asked(1)
        time.sleep(0.05)
        assert len(rig.source.asked) == 1


def test_a_second_request_leaves_if_configured_and_answers_out_of_order_are_dropped():
    with Rig(requests_in_flight=2, merge="rtc") as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.show()
        rig.source.wait_asked(2)
        rig.tick(3)
        time.sleep(0.05)
        assert len(rig.source.asked) == 2
        rig.chunk(1, chunk(100))
        rig.chunk(0, chunk(200))
        assert rig.act()[0] == 100, "the older request's answer came later and was dropped"


def test_two_requests_in_flight_are_half_a_delay_apart():
    with Rig(requests_in_flight=2, chunk_size_threshold=1.0) as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.blind(8)
        rig.chunk(0, chunk(0))
        rig.show()
        rig.source.wait_asked(2)
        rig.tick(3)
        time.sleep(0.05)
        assert len(rig.source.asked) == 2, "the last chunk took 8 ticks"
        rig.tick(1)
        rig.source.wait_asked(3)


def test_a_superseded_request_is_no_failure():
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.chunk(0, Superseded("a newer observation took its place"))
        rig.show()
        rig.source.wait_asked(2)
        assert rig.engine._log.counts.faults == 0 and rig.source.resets == 1


# --- alignment ---


def test_what_was_executed_while_a_chunk_was_made_is_trimmed():
    with Rig(merge="rtc") as rig:
        started(rig, first=0)
        rig.blind(5)
        rig.show()
        rig.source.wait_asked(2)
        assert firsts(rig.act() for _ in range(3)) == [5, 6, 7]
        rig.chunk(1, chunk(105))  # made from timestep 5, now 3 late
        assert firsts(rig.act() for _ in range(2)) == [108, 109]


def test_waiting_drops_nothing():
    """Only executed actions count, whatever the clock says."""
    with Rig() as rig:
        assert rig.tick(40) == [None] * 40
        rig.chunk(0, chunk(7))
        assert firsts(rig.tick(2)) == [7, 8]


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("weighted_average", 76), ("latest_only", 106), ("average", 56), ("conservative", 36)],
)
def test_aggregation_mixes_actions_of_the_same_timestep(aggregate, expected):
    with Rig(merge="aggregate", aggregate=aggregate) as rig:
        started(rig)
        rig.blind(5)
        rig.show()
        rig.source.wait_asked(2)
        rig.act()
        rig.chunk(1, chunk(105))
        assert rig.act()[0] == pytest.approx(expected, abs=0.01)


def test_a_guided_request_carries_the_leftover_from_its_observation_on():
    with Rig(merge="rtc", guidance="jacobian", schedule="exp", max_guidance_weight=5.0) as rig:
        rig.show()
        first = rig.source.wait_asked(1)
        assert (first.rtc.inference_delay, first.left_over) == (0, None)
        rig.source.answer(0, Answer(chunk(0), 10 * chunk(0, second=1)))
        rig.settle(lambda: len(rig.engine._queue) == 10)
        rig.blind(5)
        rig.show()
        request = rig.source.wait_asked(2)
        assert np.allclose(request.left_over, (10 * chunk(0, second=1))[5:])
        assert np.allclose(request.planned, chunk(0)[5:])
        rtc = request.rtc
        assert (rtc.guidance, rtc.schedule, rtc.max_guidance_weight) == ("jacobian", "exp", 5.0)
        assert rtc.execution_horizon == 5, "all that is left"


@pytest.mark.parametrize(("wanted", "horizon"), [(None, 5), (4, 4), (2, 3), (50, 5)])
def test_the_horizon_is_within_what_is_left_and_beyond_the_delay(wanted, horizon):
    with Rig(merge="rtc", execution_horizon=wanted) as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.blind(3)  # nothing to execute, but these are ticks
        rig.chunk(0, chunk(0))
        rig.blind(5)
        rig.show()
        rtc = rig.source.wait_asked(2).rtc
        assert (rtc.inference_delay, rtc.execution_horizon) == (3, horizon)


def test_the_delay_that_is_forecast_is_counted_in_control_ticks():
    with Rig(merge="rtc", chunk_size_threshold=0.9) as rig:
        started(rig)
        rig.blind(1)
        rig.show()
        rig.source.wait_asked(2)
        for _ in range(4):
            rig.act()
        rig.clock.now += 99  # a clock alone says nothing
        rig.chunk(1, chunk(1))
        rig.show()
        assert rig.source.wait_asked(3).rtc.inference_delay == 4


# --- episodes ---


def test_a_chunk_asked_for_before_a_reset_is_never_merged():
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.engine.reset()
        rig.show()
        rig.chunk(0, chunk(100))
        assert rig.act() is None
        rig.source.wait_reset(2)
        rig.show()
        rig.source.wait_asked(2)
        rig.chunk(1, chunk(0))
        assert rig.act()[0] == 0


def test_a_failure_of_before_a_reset_is_forgotten():
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.engine.reset()
        rig.chunk(0, RuntimeError("late"))
        rig.show()
        rig.source.wait_asked(2)
        assert not rig.engine._recovery.lost


def test_a_pause_asks_for_nothing_and_drops_what_is_on_its_way():
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        rig.engine.pause()
        rig.chunk(0, chunk(100))
        rig.show()
        time.sleep(0.05)
        assert len(rig.source.asked) == 1 and rig.act() is None
        rig.engine.resume()
        rig.show()
        rig.source.wait_asked(2)


def test_what_was_shown_can_be_taken_back():
    rig = Rig()
    rig.engine.reset()
    rig.engine.start()
    rig.show()
    rig.engine.notify_observation(None)
    rig.engine.resume()
    rig.source.wait_reset(1)
    time.sleep(0.05)
    assert rig.source.asked == []
    rig.engine.stop()


def test_starting_and_stopping_twice_is_as_once_and_it_can_start_again():
    rig = Rig()
    before = threading.active_count()
    rig.engine.stop()
    rig.engine.reset()
    rig.engine.start()
    rig.engine.start()
    assert threading.active_count() == before + 1
    rig.engine.stop()
    rig.engine.stop()
    assert threading.active_count() == before and rig.engine.get_action(None) is None
    with rig:
        started(rig)
        assert rig.act()[0] == 0


def test_stopping_waits_for_a_call_no_longer_than_its_deadline(caplog):
    with Rig() as rig:
        rig.show()
        rig.source.wait_asked(1)
        began = time.monotonic()
        rig.engine.stop()
        assert rig.source.patience_s <= time.monotonic() - began < rig.source.patience_s + PATIENCE_S
        assert "will be thrown away" in caplog.text


def test_it_is_ready_after_the_compiler_has_warmed_up():
    """As LeRobot's strategies do it: observations are shown, no action is taken, then the engine is reset."""
    with Rig(warm_up=2) as rig:
        for number in (1, 2):
            assert not rig.engine.ready
            rig.show()
            rig.source.wait_asked(number)
            rig.clock.now += 20
            rig.chunk(number - 1, chunk(0))
        assert rig.engine.ready
        rig.engine.reset()
        rig.show()
        assert rig.source.wait_asked(3)
        assert rig.engine._forecast.steps() == 0, "compiling is no delay to expect"


# --- telemetry ---


def lines_of(folder, episode):
    return [json.loads(line) for line in (folder / f"episode_{episode:06d}.jsonl").open()]


def test_an_episodes_telemetry_tells_what_happened(tmp_path):
    with Rig(telemetry_dir=str(tmp_path), chunk_size_threshold=0.5) as rig:
        rig.engine.start_episode(4)
        rig.show()
        rig.source.wait_asked(1)
        assert rig.act() is None
        rig.clock.now += 0.5
        rig.chunk(0, chunk(0))
        rig.blind(5)
        rig.show()
        rig.source.wait_asked(2)
        rig.act()
        rig.chunk(1, chunk(6))
        rig.engine.end_episode()
        rig.engine.stop()
        lines = lines_of(tmp_path, 4)
    assert lines[0] == {
        "event": "start",
        "time_s": 0.0,
        "episode": 4,
        "fps": 30.0,
        "merge": "append",
        "chunk_size": 10,
        "action_names": list(NAMES),
    }
    of = {
        name: [line for line in lines if line["event"] == name]
        for name in ("tick", "request", "chunk", "end")
    }
    assert [tick["starved"] for tick in of["tick"]] == [True] + 6 * [False]
    assert [tick["timestep"] for tick in of["tick"]] == [0, 1, 2, 3, 4, 5, 6]
    assert [tick["queue"] for tick in of["tick"]] == [0, 9, 8, 7, 6, 5, 4]
    assert [(r["timestep"], r["forecast"]) for r in of["request"]] == [(0, 0), (5, 1)]
    first, second = of["chunk"]
    assert (first["timestep"], first["arrived"], first["delay"], first["jump"]) == (0, 0, 0, None)
    assert (second["timestep"], second["arrived"], second["delay"], second["forecast"]) == (5, 6, 1, 1)
    assert (second["trimmed"], second["actions"], second["round_trip_s"]) == (1, 10, 0.01)
    assert second["jump"] == 0, "appended"
    counted = {"ticks": 7, "starved": 1, "chunks": 2, "refused": 0, "faults": 0}
    assert lines[-1] == {"event": "end", "time_s": lines[-1]["time_s"]} | counted
    assert first["time_s"] == pytest.approx(0.5)


def test_strategies_without_episodes_get_a_file_from_reset_to_reset(tmp_path):
    with Rig(telemetry_dir=str(tmp_path)) as rig:
        rig.tick(2)
        rig.engine.reset()
        rig.tick(3)
    assert [lines_of(tmp_path, episode)[-1]["ticks"] for episode in (0, 1)] == [2, 3]


def test_a_paused_episode_is_one_episode(tmp_path):
    with Rig(telemetry_dir=str(tmp_path)) as rig:
        rig.tick(2)
        rig.engine.pause()
        rig.engine.resume()
        rig.tick(3)
    assert lines_of(tmp_path, 0)[-1]["ticks"] == 5
    assert not (tmp_path / "episode_000001.jsonl").exists()
