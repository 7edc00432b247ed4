"""The demo's report: figures of the episodes' telemetry, and none where there is none."""

import json

import pytest

from lerobot_ext.commands import report


def figures(**more):
    return {
        "demonstrations": [],
        "evaluations": [],
        "losses": [],
        "seconds": {},
        "seconds_total": 60.0,
    } | more


def lines(delay: int, starved: int, end: bool = True) -> str:
    events = [{"event": "start", "time_s": 0.0, "merge": "rtc"}]
    events += [
        {"event": "tick", "time_s": i / 30, "timestep": i, "queue": 5, "starved": i < starved}
        for i in range(100)
    ]
    events += [
        {"event": "chunk", "time_s": i, "delay": delay, "forecast": 3, "jump": 0.5 * i, "round_trip_s": 0.1}
        for i in range(3)
    ]
    events += [{"event": "fault", "time_s": 3.0, "kind": "timeout", "text": "no answer"}]
    return "".join(json.dumps(event) + "\n" for event in events + [{"event": "end"}] * end)


def test_the_summary_is_over_all_episodes(tmp_path):
    (tmp_path / "episode_000000.jsonl").write_text(lines(delay=2, starved=10))
    (tmp_path / "episode_000001.jsonl").write_text(lines(delay=4, starved=30, end=False) + '{"event": "ti')
    (tmp_path / "episode_000002.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("not telemetry")
    text = report.summary(figures(telemetry_dir=str(tmp_path)))
    assert (
        "control over 2 episodes (merge rtc): 200 ticks, 20.0 % without an action; 6 chunks; round trip median "
        "100.0 ms (unknown inference), 95 % below 100.0 ms; delay median 3, largest 4 steps; jump median 0.50, largest 1.00; "
        "0 refused, 2 faults; 1 of the episodes cut off" in text
    )


@pytest.mark.parametrize("more", [{}, {"telemetry_dir": None}, {"telemetry_dir": "/nowhere/telemetry"}])
def test_without_telemetry_there_is_no_line_about_it(more):
    text = report.summary(figures(**more))
    assert "control" not in text and "round trip" not in text and "whole demo: 60 s" in text
