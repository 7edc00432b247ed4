"""Forecast, checks, limits, the way to rest, and the telemetry file."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.motors.feetech import FeetechMotorsBus
from scripted import NAMES, chunk

from lerobot_ext.rollout.checks import ActionChecks, by_entry, limits_of
from lerobot_ext.rollout.faults import Outage, RestMotion, describe
from lerobot_ext.rollout.forecast import DelayForecast
from lerobot_ext.rollout.telemetry import TelemetryWriter
from simplify_work.wire.errors import ServerTimeout

# --- forecast ---


def test_the_maximum_forgets_what_left_the_window():
    forecast = DelayForecast("max", 3)
    assert forecast.steps() == 0
    seen = []
    for delay in (9, 1, 2, 3, 1):
        forecast.add(delay)
        seen.append(forecast.steps())
    assert seen == [9, 9, 9, 3, 3]


@given(delays=st.lists(st.integers(0, 50), min_size=1, max_size=30), percent=st.integers(0, 100))
def test_a_percentile_is_a_delay_that_covers_that_share(delays, percent):
    forecast = DelayForecast(f"p{percent}", 30)
    for delay in delays:
        forecast.add(delay)
    steps = forecast.steps()
    assert steps in delays
    assert np.mean(np.array(delays) <= steps) >= percent / 100


@pytest.mark.parametrize("latency", ["", "mean", "p", "p101", "95", "pp9"])
def test_other_words_are_refused(latency):
    with pytest.raises(ValueError, match="expected 'max' or a percentile"):
        DelayForecast(latency)


# --- checks ---

checks = ActionChecks.of(NAMES, {"pan.pos": (-20.0, 20.0)})


def test_a_good_chunk_passes():
    assert checks.refusal(chunk(0), chunk(0)) is None
    assert checks.refusal(chunk(0, second=1e6)) is None, "no limits are known for the gripper"


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros((10, 3)), ["(10, 3)", "(n, 2)", "pan.pos, grip.pos"]),
        (np.zeros((0, 2)), ["(0, 2)"]),
        (np.zeros(2), ["(2,)"]),
        (np.where(chunk(0) == 3, np.nan, chunk(0)), ["pan.pos is nan", "step 3 of 10"]),
        (chunk(0, second=np.inf), ["grip.pos is inf"]),
        (chunk(15), ["pan.pos is 21", "step 6", "-20 to 20", "action_limits.pan.pos"]),
    ],
)
def test_a_bad_chunk_is_refused_in_one_sentence(actions, words):
    text = checks.refusal(np.asarray(actions, np.float32))
    assert all(word in text for word in words) and "\n" not in text


@pytest.mark.parametrize("model_actions", [chunk(np.nan), chunk(0, 9)])
def test_what_the_next_chunk_would_continue_is_checked_too(model_actions):
    assert "model's units" in checks.refusal(chunk(0), model_actions)


@given(st.data())
def test_a_passing_chunk_is_finite_and_within(data):
    value = st.floats(-40, 40) | st.sampled_from([np.nan, np.inf, -np.inf])
    actions = np.array(data.draw(st.lists(st.tuples(value, value), min_size=1, max_size=4)), np.float32)
    good = np.isfinite(actions).all() and (np.abs(actions[:, 0]) <= 20).all()
    assert (checks.refusal(actions) is None) == good


def test_limits_of_an_arm_are_in_the_units_of_its_actions():
    motors = {
        "pan": Motor(1, "sts3215", MotorNormMode.DEGREES),
        "lift": Motor(2, "sts3215", MotorNormMode.RANGE_M100_100),
        "grip": Motor(3, "sts3215", MotorNormMode.RANGE_0_100),
    }
    calibration = {name: MotorCalibration(motor.id, 0, 0, 1024, 3071) for name, motor in motors.items()}
    bus = FeetechMotorsBus("/dev/null", motors, calibration)
    limits = limits_of(SimpleNamespace(bus=bus), slack=0.0)
    ends = [bus._normalize({motor.id: raw for motor in motors.values()}) for raw in (1024, 3071)]
    for motor, name in enumerate(("pan.pos", "lift.pos", "grip.pos"), 1):
        assert limits[name] == pytest.approx((ends[0][motor], ends[1][motor]))
    wider = limits_of(SimpleNamespace(bus=bus), slack=0.1)
    assert wider["grip.pos"] == (-10, 110) and wider["lift.pos"] == (-120, 120)
    assert limits_of(SimpleNamespace(), slack=0.1) == {}


def test_joints_may_be_named_without_their_ending():
    assert by_entry({"pan": 1, "grip.pos": 2}, NAMES, "x") == {"pan.pos": 1, "grip.pos": 2}
    with pytest.raises(
        ValueError, match="inference.rest_position names 'elbow'; the robot's action has pan.pos"
    ):
        by_entry({"elbow": 1}, NAMES, "inference.rest_position")


# --- faults ---


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2),
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2),
    st.floats(0.1, 10),
)
def test_the_way_to_rest_is_straight_slow_and_ends_there(start, target, step):
    start, target = np.float32(start), np.float32(target)
    motion, at = RestMotion(start, target, step), start
    while (position := motion.next()) is not None:
        assert np.abs(position - at).max() <= step + 1e-4
        off = np.cross(np.append(position - start, 0), np.append(target - start, 0))
        assert np.abs(off).max() <= 1e-2 * (1 + np.abs(target - start).max())
        at = position
    assert np.allclose(at, target, atol=1e-5)


def test_waits_between_attempts_grow_to_two_seconds():
    outage = Outage(since=0.0, kind="timeout", text="")
    waits = []
    for _ in range(7):
        outage.failed(10.0, "again")
        waits.append(outage.retry_at - 10)
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


def test_an_error_is_described_by_itself_or_by_its_first_line():
    assert describe(ServerTimeout("no answer; do this.")) == ("timeout", "no answer; do this.")
    kind, text = describe(RuntimeError("CUDA out of memory\nat line 3"))
    assert kind == "policy" and "RuntimeError: CUDA out of memory" in text and "\n" not in text


# --- telemetry ---


def test_lines_are_written_in_order_and_numbers_that_json_has_no_word_for_are_null(tmp_path):
    writer = TelemetryWriter(tmp_path / "deep" / "telemetry")
    assert writer.start(3, fps=30.0) == 3
    writer.event("tick", 0.5, queue=2, starved=False, jump=float("inf"))
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "deep/telemetry/episode_000003.jsonl").open()]
    assert lines == [
        {"event": "start", "time_s": 0.0, "episode": 3, "fps": 30.0},
        {"event": "tick", "time_s": 0.5, "queue": 2, "starved": False, "jump": None},
    ]


def test_an_episode_without_a_number_takes_the_next_that_is_free(tmp_path):
    for expected in (0, 1):
        writer = TelemetryWriter(tmp_path)
        assert writer.start(None) == expected
        writer.close()
    writer = TelemetryWriter(tmp_path)
    writer.start(0, again=True)
    writer.close()
    assert "again" in (tmp_path / "episode_000000.jsonl").read_text(), "recorded again"


def test_without_a_folder_nothing_is_written():
    writer = TelemetryWriter(None)
    assert [writer.start(None), writer.start(None), writer.start(7)] == [0, 1, 7], "but episodes are counted"
    writer.event("tick", 0.0)
    writer.close()


def test_a_file_that_cannot_be_written_costs_its_own_lines_only(tmp_path, caplog):
    (tmp_path / "episode_000001.jsonl").mkdir()
    writer = TelemetryWriter(tmp_path)
    for episode in range(3):
        writer.start(episode)
        writer.event("tick", 0.0)
    writer.close()
    written = [(tmp_path / f"episode_00000{episode}.jsonl").read_text() for episode in (0, 2)]
    assert all(text.count("\n") == 2 for text in written)
    assert caplog.text.count("telemetry cannot be written") == 1


def test_a_folder_that_cannot_be_written_to_costs_one_log_line(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    writer = TelemetryWriter(tmp_path / "file")
    writer.start(0)
    for _ in range(3):
        writer.event("tick", 0.0)
    writer.start(1)
    writer.close()
    assert caplog.text.count("telemetry cannot be written") == 1
