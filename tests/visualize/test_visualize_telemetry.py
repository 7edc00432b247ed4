"""Telemetry: what is read of a file, whole or not, and what page, picture and recording show of it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import small_telemetry
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.commands.main import main
from lerobot_ext.errors import UserError
from lerobot_ext.recording.visualize.control import control_charts, control_html, round_trip_lines
from lerobot_ext.recording.visualize.telemetry import load_if_there, load_telemetry, summarize

TIMES = np.arange(45) / 15


@pytest.fixture
def file(tmp_path):
    return small_telemetry.write(tmp_path / "episode_000000.jsonl")


def test_the_summary_has_the_figures_of_the_file(file):
    telemetry = load_telemetry(file)
    summary = summarize([telemetry])
    assert (summary.ticks, summary.starved, summary.chunks) == (45, 8, 4)
    assert (summary.refused, summary.faults) == (1, 1)
    assert summary.starved_share == pytest.approx(8 / 45)
    assert summary.delay == (3.5, 5) and summary.jump == (0.75, 1.5)
    assert summary.round_trip_s[0] == pytest.approx(0.095)
    assert telemetry.complete and telemetry.notes() == [] and telemetry.merge == "rtc"
    both = summarize([telemetry, telemetry])
    assert (both.episodes, both.ticks, both.starved_share) == (2, 90, summary.starved_share)


def test_what_the_engine_writes_is_understood(tmp_path):
    from lerobot_ext.rollout.telemetry import TelemetryWriter

    writer = TelemetryWriter(tmp_path)
    writer.start(3, fps=30, merge="aggregate", chunk_size=20, action_names=["a"])
    writer.event("tick", 0.0, timestep=0, queue=0, starved=True)
    writer.event(
        "chunk", 0.1, timestep=0, delay=2, forecast=1, jump=0.5, round_trip_s=0.07, infer_s=float("inf")
    )
    writer.event("tick", 0.1, timestep=0, queue=18, starved=False)
    writer.event("fault", 0.2, kind="link", text="the cable was pulled")
    writer.event("end", 0.3, ticks=2, starved=1, chunks=1, refused=0, faults=1)
    writer.close()
    telemetry = load_telemetry(tmp_path / "episode_000003.jsonl")
    summary = summarize([telemetry])
    assert (summary.ticks, summary.starved, summary.chunks, summary.faults) == (2, 1, 1, 1)
    assert telemetry.merge == "aggregate" and telemetry.complete and telemetry.unread == 0
    assert telemetry.incidents[0].text == "link: the cable was pulled"


def test_a_line_that_was_cut_off_costs_that_line_only(file):
    text = file.read_text()
    file.write_text(text[: text.rindex('"end"') + 3])
    telemetry = load_telemetry(file)
    assert summarize([telemetry]).ticks == 45
    assert not telemetry.complete and telemetry.unread == 1
    page = control_html(telemetry, TIMES)
    assert "the process ended before the episode did" in page and "1 of its lines could not be read" in page


@given(st.integers(1, 6000))
def test_a_file_cut_anywhere_still_has_its_charts(length):
    whole = "".join(json.dumps(line) + "\n" for line in small_telemetry.events()).encode()
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode_000000.jsonl"
        path.write_bytes(whole[: min(length, len(whole))])
        telemetry = load_if_there(path)
        if telemetry is not None:
            assert "nan" not in control_html(telemetry, TIMES).replace("unknown", "")


@pytest.mark.parametrize("value", [None, "soon", True, [1], 10**400, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "key", ["time_s", "queue", "delay", "jump", "round_trip_s", "infer_s", "text", "kind"]
)
def test_missing_and_odd_values_are_left_out(key, value, tmp_path):
    lines = small_telemetry.events()
    for line in lines:
        if key in line:
            line[key] = value
    odd = load_telemetry(small_telemetry.write(tmp_path / "odd.jsonl", lines))
    for line in lines:
        line.pop(key, None)
    missing = load_telemetry(small_telemetry.write(tmp_path / "missing.jsonl", lines))
    for telemetry in (odd, missing):
        html = control_html(telemetry, TIMES)
        assert not re.search(r'points="[^"]*(nan|inf)', html)
        assert summarize([telemetry]).ticks == 45


def test_the_parts_of_a_round_trip_stack_to_it(file):
    telemetry = load_telemetry(file)
    lines = round_trip_lines(telemetry)
    names = [line.name for line in lines]
    assert names == ["link and the rest", "waiting there", "preprocess", "inference", "postprocess"]
    np.testing.assert_allclose(lines[-1].values, 1e3 * telemetry.chunks.round_trip_s)
    for below, above in zip(lines, lines[1:], strict=False):
        np.testing.assert_allclose(above.base, below.values)


def test_a_round_trip_without_the_servers_figures_is_one_bar(tmp_path):
    lines = [
        {k: v for k, v in line.items() if k not in ("queue_s", "preprocess_s", "infer_s", "postprocess_s")}
        for line in small_telemetry.events()
    ]
    only = round_trip_lines(load_telemetry(small_telemetry.write(tmp_path / "t.jsonl", lines)))
    assert len(only) == 1 and only[0].values.max() == pytest.approx(110)


def test_starved_ticks_are_shaded_from_the_first_to_the_next_action(file):
    for chart in control_charts(load_telemetry(file), TIMES):
        assert chart.shades == [(pytest.approx(30 / 15), pytest.approx(38 / 15))]
        assert [event.label for event in chart.events] == ["1", "2", "3"]


def test_an_hour_of_telemetry_fits_a_page(tmp_path):
    ticks = [
        {"event": "tick", "time_s": i / 30, "queue": 25 - i % 25, "starved": False} for i in range(30 * 3600)
    ]
    page = control_html(load_telemetry(small_telemetry.write(tmp_path / "long.jsonl", ticks)), TIMES)
    assert len(page) < 5e5


def test_files_without_telemetry_get_a_sentence(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"round_trip_s": 1}\nnonsense\n[1]\n')
    (tmp_path / "bytes.jsonl").write_bytes(bytes(range(256)))
    for name in ("empty", "other", "bytes"):
        with pytest.raises(UserError, match="holds no telemetry"):
            load_telemetry(tmp_path / f"{name}.jsonl")
        assert load_if_there(tmp_path / f"{name}.jsonl") is None
    with pytest.raises(UserError, match="cannot be read"):
        load_telemetry(tmp_path / "nowhere.jsonl")
    assert load_if_there(tmp_path / "nowhere.jsonl") is None


def test_page_picture_and_recording_show_the_telemetry(press, file, tmp_path):
    from PIL import Image

    output = tmp_path / "pages"
    words = ["visualize", f"--root={press}", f"--output={output}", "--film=3"]
    assert main([*words, "--no-rrd"]) == 0
    stem = output / "episode_000000"
    plain = stem.with_suffix(".html").read_text()
    with Image.open(stem.with_suffix(".png")) as picture:
        plain_height = picture.height
    assert "from chunks to motion" not in plain

    assert main([*words, f"--telemetry={file}"]) == 0
    page = stem.with_suffix(".html").read_text()
    assert (
        "merge rtc; 45 ticks, 17.8 % without an action; 4 chunks; round trip median 95.0 ms (50.0 inference), 95 % below 108.5 ms; "
        "delay median 4, largest 5 steps; jump median 0.75, largest 1.50; 1 refused, 1 faults" in page
    )
    for sentence in (
        "1. at 1.70 s, refused: joint 'gripper.pos' of &lt;action 3&gt; is not finite.",
        "2. at 2.00 s, fault: timeout: no answer within 0.5 s &amp; counting.",
        "3. at 2.50 s, resumed: chunks come again after 0.5 s",
    ):
        assert sentence.replace("'", "&#x27;") in page
    for title in (
        "actions in the queue",
        "delay of each chunk",
        "jump at each merge",
        "round trip of each chunk",
    ):
        assert title in page
    assert "news_of_a_later_version" not in page
    with Image.open(stem.with_suffix(".png")) as picture:
        assert picture.height > plain_height + 4 * 200
    printed = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "print", "-v", str(stem.with_suffix(".rrd"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    for entity in ("queue", "delay", "jump", "round_trip_ms", "incidents"):
        assert f"/telemetry/{entity}" in printed


def test_telemetry_in_the_datasets_folder_is_found(press, tmp_path):
    import shutil

    root = tmp_path / "press"
    shutil.copytree(press, root)
    small_telemetry.write(root / "telemetry" / "episode_000001.jsonl")
    for index, there in ((0, False), (1, True)):
        words = [
            f"--root={root}",
            f"--episode_index={index}",
            f"--output={tmp_path}/pages",
            "--no-rrd",
            "--film=0",
        ]
        assert main(["visualize", *words]) == 0
        page = (tmp_path / "pages" / f"episode_{index:06d}.html").read_text()
        assert ("from chunks to motion" in page) == there


def test_a_telemetry_file_that_is_not_there_gets_a_sentence(press, tmp_path, capsys):
    assert main(["visualize", f"--root={press}", f"--telemetry={tmp_path}/no.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "cannot be read: No such file" in error and error.count("\n") == 1
