"""Damage of every other kind: what can be kept is kept, what is lost is said, and nothing is invented."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stock_crashes as stock
from repair_folders import assert_frame_exact, contents, statuses

from lerobot_ext.errors import UserError
from lerobot_ext.recording.repair import Options, repair

pytest_plugins = ["crash_fixtures"]

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
INFO, STATS = "meta/info.json", "meta/stats.json"
SIDE_VIDEO = f"videos/{stock.SIDE}/chunk-000/file-000.mp4"


@pytest.fixture
def finished(crashed):
    """Three whole episodes."""
    return crashed("finished")[0]


def edit_info(root, **values):
    info = json.loads((root / INFO).read_text()) | values
    (root / INFO).write_text(json.dumps(info, indent=4))


def test_totals_that_disagree_follow_the_episodes(finished):
    edit_info(finished, total_episodes=2, total_frames=21, splits={"train": "0:2"})
    report = repair(finished)
    assert report.complete and statuses(report) == ["kept"] * 3
    assert "counts 2 episodes and 21 frames, there are 3 and 36" in " ".join(report.faults)
    assert_frame_exact(report.out, range(3))
    assert (report.out / EPISODES).read_bytes() == (finished / EPISODES).read_bytes()


def test_missing_statistics_are_aggregated_again(finished):
    expected = json.loads((finished / STATS).read_text())
    (finished / STATS).unlink()
    report = repair(finished)
    assert report.complete and statuses(report) == ["kept"] * 3
    found = json.loads((report.out / STATS).read_text())
    for name in ("mean", "std", "min", "max", "count", "q50"):
        np.testing.assert_allclose(found["action"][name], expected["action"][name])
        np.testing.assert_allclose(found[stock.SIDE][name], expected[stock.SIDE][name])


def test_a_data_file_without_its_end_keeps_what_the_metadata_know(finished):
    (finished / DATA).write_bytes((finished / DATA).read_bytes()[:-2000])
    report = repair(finished)
    assert report.complete and statuses(report) == ["kept"] * 3
    assert_frame_exact(report.out, range(3))
    assert (report.out / STATS).read_bytes() == (finished / STATS).read_bytes()


def test_a_data_file_cut_in_its_last_row_group_loses_that_episode(finished):
    start = pq.read_metadata(finished / DATA).row_group(2).column(3).data_page_offset
    (finished / DATA).write_bytes((finished / DATA).read_bytes()[:start])
    report = repair(finished)
    assert statuses(report) == ["kept", "kept", "lost"] and not report.complete
    assert "rows are in no data file" in report.episodes[2].reasons[0]
    assert report.frames("lost") == stock.LENGTHS[2]
    assert_frame_exact(report.out, range(2))


@pytest.mark.parametrize("path", [EPISODES, STATS])
def test_an_empty_file_of_metadata_is_made_again(finished, path):
    (finished / path).write_bytes(b"")
    report = repair(finished)
    assert report.complete
    assert_frame_exact(report.out, range(3))
    assert repair(report.out).healthy


def test_an_empty_data_file_loses_its_episodes_and_the_others_are_numbered_anew(crashed):
    root, _ = crashed("resumed")
    (root / DATA).write_bytes(b"")
    report = repair(root)
    assert statuses(report) == ["lost", "lost", "rebuilt", "rebuilt"]
    assert [fate.new_index for fate in report.episodes] == [None, None, 0, 1]
    assert_frame_exact(report.out, [2, 3])
    assert repair(report.out).healthy


def test_rows_behind_the_last_episode_are_left_out_with_it(finished):
    """An episode whose numbers were written, but no picture."""
    table = pq.read_table(finished / DATA)
    rows = table.slice(0, stock.LENGTHS[0])
    for name, values in (
        ("episode_index", np.full(rows.num_rows, 3)),
        ("index", 36 + np.arange(rows.num_rows)),
    ):
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, pa.array(values))
    pq.write_table(pa.concat_tables([table, rows.cast(table.schema)]), finished / DATA)
    report = repair(finished)
    assert statuses(report) == ["kept"] * 3 + ["lost"]
    assert_frame_exact(report.out, range(3))
    assert repair(report.out).healthy


def test_a_row_of_metadata_without_data_is_left_out(finished):
    table = pq.read_table(finished / EPISODES)
    last = table.slice(2, 1)
    at = last.column_names.index("episode_index")
    last = last.set_column(at, last.schema.field(at), pa.array([3]))
    pq.write_table(pa.concat_tables([table, last]), finished / EPISODES)
    report = repair(finished)
    assert statuses(report) == ["kept"] * 3 + ["lost"]
    assert "meta/episodes has it" in report.episodes[3].reasons[0]
    assert_frame_exact(report.out, range(3))


def test_a_hole_in_the_data_is_closed_and_said(finished):
    table = pq.read_table(finished / DATA)
    keep = [i for i, episode in enumerate(table["episode_index"].to_pylist()) if episode != 1]
    pq.write_table(table.take(keep), finished / DATA)
    (finished / "meta/lerobot_ext/frames").mkdir(parents=True)
    journal = finished / "meta/lerobot_ext/episodes.jsonl"
    journal.write_text("".join(f'{{"episode": {i}, "drift": {i}.5}}\n' for i in range(3)) + '{"episo')
    for i in range(3):
        (finished / f"meta/lerobot_ext/frames/episode_{i:06d}.parquet").write_text(str(i))
    report = repair(finished)
    assert statuses(report) == ["kept", "lost", "kept"]
    assert_frame_exact(report.out, [0, 2])
    lines = (report.out / "meta/lerobot_ext/episodes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"episode": 0, "drift": 0.5},
        {"episode": 1, "drift": 2.5},
    ]
    frames = {path.name: path.read_text() for path in (report.out / "meta/lerobot_ext/frames").iterdir()}
    assert frames == {"episode_000000.parquet": "0", "episode_000001.parquet": "2"}
    row = pq.read_table(report.out / EPISODES).to_pylist()[1]
    assert (row["stats/episode_index/mean"], row["stats/index/min"]) == ([1.0], [stock.LENGTHS[0]])
    assert repair(report.out).healthy


def test_damaged_frame_numbers_lose_their_episode(finished):
    table = pq.read_table(finished / DATA)
    numbers = table["frame_index"].to_numpy().copy()
    numbers[3] = 77
    at = table.column_names.index("frame_index")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(numbers)), finished / DATA)
    report = repair(finished)
    assert statuses(report) == ["lost", "kept", "kept"]
    assert_frame_exact(report.out, [1, 2])


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_cut_video_keeps_the_episodes_that_are_whole_in_it(finished, with_metadata):
    data = (finished / SIDE_VIDEO).read_bytes()
    (finished / SIDE_VIDEO).write_bytes(data[:-200])
    if not with_metadata:
        shutil.rmtree(finished / "meta/episodes")
    report = repair(finished)
    kept = "kept" if with_metadata else "rebuilt"
    assert statuses(report) == [kept, kept, "lost"]
    assert "it is cut after" in report.episodes[2].reasons[0]
    assert_frame_exact(report.out, range(2))
    assert (finished / SIDE_VIDEO).read_bytes() == data[:-200]
    assert repair(report.out).healthy


def test_a_video_without_index_takes_its_episodes_with_it(crashed):
    root, _ = crashed("resumed")
    path = root / f"videos/{stock.DEPTH}/chunk-000/file-000.mp4"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4] + bytes(500))
    report = repair(root)
    assert statuses(report) == ["lost", "lost", "rebuilt", "rebuilt"]
    assert "moov" in report.episodes[0].reasons[0]
    assert_frame_exact(report.out, [2, 3])


def test_a_missing_video_is_named(finished):
    (finished / SIDE_VIDEO).unlink()
    before = contents(finished)
    report = repair(finished)
    assert statuses(report) == ["lost"] * 3 and report.out is None and not report.complete
    assert stock.SIDE in report.episodes[0].reasons[0] and "is missing" in report.episodes[0].reasons[0]
    assert contents(finished) == before


def test_in_place_the_damaged_folder_stays_beside(finished):
    edit_info(finished, total_episodes=1)
    before = contents(finished)
    report = repair(finished, Options(in_place=True))
    assert report.out == finished and report.before == finished.with_name("finished_before_repair")
    assert contents(report.before) == before
    assert_frame_exact(finished, range(3))


def test_videos_share_their_space_with_the_damaged_folder(finished):
    edit_info(finished, total_episodes=1)
    out = repair(finished).out
    old, new = (os.stat(root / SIDE_VIDEO) for root in (finished, out))
    shared = (old.st_ino, old.st_dev) == (new.st_ino, new.st_dev)
    assert shared or new.st_nlink == 1  # a hard link, or blocks shared below the file system's surface
    assert os.stat(out / DATA).st_ino != os.stat(finished / DATA).st_ino


def test_a_dry_run_writes_nothing(finished):
    edit_info(finished, total_episodes=1)
    before = contents(finished.parent)
    report = repair(finished, Options(dry_run=True))
    assert not report.healthy and report.complete and report.out is None
    assert contents(finished.parent) == before
    assert [path.name for path in finished.parent.iterdir()] == ["finished"]


def test_a_result_is_not_written_over(finished):
    finished.with_name("finished_repaired").mkdir()
    with pytest.raises(UserError, match="--out=DIR"):
        repair(finished)


def test_other_files_come_along(finished):
    edit_info(finished, total_episodes=1)
    (finished / "README.md").write_text("mine")
    (finished / "tmp_notes").mkdir()
    (finished / "tmp_notes/press.txt").write_text("mine, too")
    (finished / "telemetry").mkdir()
    (finished / "telemetry/episode_000002.jsonl").write_text("{}")
    out = repair(finished).out
    assert (out / "README.md").read_text() == "mine"
    assert (out / "tmp_notes/press.txt").exists()
    assert (out / "telemetry/episode_000002.jsonl").exists()


@pytest.mark.parametrize("content", ["nothing", "no info", "old", "not JSON"])
def test_what_is_no_dataset_is_refused(tmp_path, content):
    root = tmp_path / "x"
    if content != "nothing":
        (root / "meta").mkdir(parents=True)
    if content == "old":
        (root / INFO).write_text('{"codebase_version": "v2.1", "features": {}, "fps": 30}')
    if content == "not JSON":
        (root / INFO).write_text("{]")
    expected = {"nothing": "not a folder", "old": "v3.0", "no info": "missing", "not JSON": "cut"}
    with pytest.raises(UserError, match=expected[content]):
        repair(root)
    assert not list(tmp_path.glob(".*"))
