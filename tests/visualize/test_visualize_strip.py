"""Ages and drops: what is read of the recording's file, and where the strip has its bands and marks."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from described import DROPPED, LATE, OLD_FRAME, REPEATED, RETRIED, describe, frames_table
from press_dataset import FRAMES

from lerobot_ext.recording.visualize.chart import LEFT, LEGEND
from lerobot_ext.recording.visualize.strip import KINDS, TOP, UNKNOWN_AGE, age_color, load_frames, svg_strip

TIMES, FPS, WIDTH = np.arange(FRAMES) / 15, 15, 1200


@pytest.fixture
def root(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"features": {"observation.force": {}}}')
    return describe(tmp_path)


def polylines(svg: str) -> list[tuple[str, list[list[float]]]]:
    found = []
    for element in ElementTree.fromstring(svg).iter("polyline"):
        points = [[float(v) for v in point.split(",")] for point in element.get("points").split()]
        found.append((element.get("stroke"), points))
    return found


def x_of(frame: int) -> float:
    return LEFT + TIMES[frame] / TIMES[-1] * (WIDTH - LEGEND - LEFT)


def test_marks_are_at_their_frames(root):
    report = load_frames(root, 0, FRAMES, FPS)
    lines = polylines(svg_strip(report, TIMES, FPS, WIDTH))
    for kind, frames in (("dropped", DROPPED), ("repeated", REPEATED), ("retries", RETRIED), ("late", LATE)):
        marks = [p[0][0] for color, p in lines if color == KINDS[kind] and p[0][1] > TOP]
        assert marks == pytest.approx([x_of(frame) for frame in frames], abs=0.2), kind
    assert report.sentence() == (
        "mean age in ms: side 11 (at most 70), skin 3 (at most 3); 2 dropped, 1 repeated, 1 late, 1 retries"
    )


def test_the_band_is_red_where_the_picture_is_a_frame_old(root):
    report = load_frames(root, 0, FRAMES, FPS)
    red = age_color(1000 / FPS, 1000 / FPS)
    bands = [
        p for color, p in polylines(svg_strip(report, TIMES, FPS, WIDTH)) if color == red and p[0][1] > TOP
    ]
    assert len(bands) == 1
    assert (bands[0][0][0] + bands[0][1][0]) / 2 == pytest.approx(x_of(OLD_FRAME), abs=0.2)
    texts = [e.text for e in ElementTree.fromstring(svg_strip(report, TIMES, FPS, WIDTH)).iter("text")]
    assert "side: 2 dropped, 1 repeated" in texts and "loop: 1 late" in texts and "skin" in texts
    assert "67 ms (a frame) or more; grey: unknown" in texts


def test_colors_go_from_green_to_red():
    green, red = age_color(0, 33), age_color(33, 33)
    assert age_color(-2, 33) == green and age_color(500, 33) == red != green
    assert age_color(float("nan"), 33) == UNKNOWN_AGE
    hues = [int(age_color(age, 33)[1:3], 16) - int(age_color(age, 33)[3:5], 16) for age in range(34)]
    assert hues == sorted(hues), "ever less green"


def test_rows_may_be_missing_or_too_many(root):
    path = root / "meta" / "lerobot_ext" / "frames" / "episode_000000.parquet"
    table = pa.table({name: values[5:] for name, values in frames_table().items()})
    pq.write_table(table, path)
    report = load_frames(root, 0, 20, FPS)
    assert np.isnan(report.ages_ms["side"][:5]).all() and report.ages_ms["side"].shape == (20,)
    assert np.flatnonzero(report.new["side.dropped"]).tolist() == [10]
    assert "nan" not in svg_strip(report, TIMES[:20], FPS, WIDTH)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 nonsense"])
def test_without_a_file_that_can_be_read_nothing_is_known(root, content):
    path = root / "meta" / "lerobot_ext" / "frames" / "episode_000000.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    assert load_frames(root, 0, FRAMES, FPS) is None


def test_an_hour_fits_a_page(root):
    frames = 30 * 3600
    rng = np.random.default_rng(0)
    table = {
        "frame_index": np.arange(frames),
        "ages_ms.side": rng.uniform(0, 40, frames).astype(np.float32),
        "new.side.dropped": (rng.random(frames) < 0.5).astype(np.int32),
    }
    pq.write_table(pa.table(table), root / "meta" / "lerobot_ext" / "frames" / "episode_000001.parquet")
    report = load_frames(root, 1, frames, 30)
    assert len(svg_strip(report, np.arange(frames) / 30, 30, WIDTH)) < 2.5e6
