"""What stock LeRobot leaves when it is killed: every episode that it had saved is there again, frame for frame."""

import json

import av
import numpy as np
import pytest
import stock_crashes as stock
from repair_folders import assert_frame_exact, contents, open_stock, statuses

from lerobot_ext.errors import UserError
from lerobot_ext.recording.repair import Options, repair

pytest_plugins = ["crash_fixtures"]


@pytest.mark.parametrize(
    ("case", "episodes"),
    [
        ("between_frames", 3),
        ("between_frames_streaming", 3),
        ("before_encoding", 3),
        ("between_cameras", 3),
        ("before_metadata", 3),
        ("in_info", 3),
        ("resumed", 4),
        ("batched", 3),
        ("pictures", 2),
        ("many", 13),
    ],
)
def test_every_saved_episode_is_there_again(crashed, case, episodes):
    root, saved = crashed(case)
    before = contents(root)
    report = repair(root)
    assert report.complete and report.checked and report.out == root.with_name(f"{case}_repaired")
    assert statuses(report).count("lost") == 0 and len(report.episodes) == episodes >= saved
    # Nothing says how depth would have been encoded if no episode was: then it is in LeRobot's coarser steps.
    assert_frame_exact(report.out, range(episodes), 3 if case == "batched" else 1)
    assert contents(root) == before
    assert not list(report.out.glob("tmp*")) and not (report.out / "images").exists()
    assert repair(report.out).healthy


@pytest.mark.parametrize("number", [0, 1])
def test_a_kill_at_a_random_moment_costs_no_saved_episode(crashed, number):
    root, saved = crashed(f"random_{number}")
    report = repair(root)
    assert saved >= 2
    assert statuses(report)[:saved] == ["rebuilt"] * saved
    kept = [fate.index for fate in report.episodes if fate.status != "lost"]
    assert_frame_exact(report.out, kept)


def test_pictures_are_those_of_the_same_video(crashed):
    root, _ = crashed("between_frames_streaming")
    out = repair(root).out
    path = next((root / "videos" / stock.SIDE).rglob("*.mp4"))
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    dataset = open_stock(out)
    assert len(dataset) == len(expected)
    for i, picture in enumerate(expected):
        np.testing.assert_array_equal(dataset[i][stock.SIDE].numpy().transpose(1, 2, 0), picture)


def test_rows_and_statistics_are_those_that_stock_writes(crashed):
    """The same three episodes, once finished and once killed."""
    finished, _ = crashed("finished")
    root, _ = crashed("between_frames")
    out = repair(root).out
    import pyarrow.parquet as pq

    expected, found = (
        pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet") for folder in (finished, out)
    )
    assert set(found.column_names) == set(expected.column_names)
    for name in expected.column_names:
        tolerance = 3e-2 if "images" in name and "depth" not in name else 1e-6
        if "depth" in name and name.startswith("stats"):
            tolerance = 1  # millimetres: the recorded ones are of the pictures before they were quantised
        for a, b in zip(expected[name].to_pylist(), found[name].to_pylist(), strict=True):
            if name == "tasks":
                assert a == b
            else:
                np.testing.assert_allclose(b, a, atol=tolerance, err_msg=name)
    infos = [json.loads((folder / "meta/info.json").read_text()) for folder in (finished, out)]
    assert infos[0] == infos[1]
    stats = [json.loads((folder / "meta/stats.json").read_text()) for folder in (finished, out)]
    assert stats[0].keys() == stats[1].keys()
    np.testing.assert_allclose(stats[1]["action"]["mean"], stats[0]["action"]["mean"])


def test_an_episode_whose_pictures_were_dropped_is_lost_and_the_others_stay(crashed):
    root, _ = crashed("dropping")
    report = repair(root)
    assert statuses(report) == ["rebuilt", "lost", "rebuilt", "rebuilt"]
    assert [fate.new_index for fate in report.episodes] == [0, None, 1, 2]
    assert "7 of its 9 frames" in report.episodes[1].reasons[0]
    assert not report.complete
    assert_frame_exact(report.out, [0, 2, 3])
    assert repair(report.out).healthy


def test_nothing_was_saved(crashed):
    root, _ = crashed("in_the_first_episode")
    report = repair(root)
    assert report.healthy and report.complete and report.out is None
    assert any("12 pictures" in note for note in report.notes)


def test_a_finished_recording_is_healthy(crashed):
    root, _ = crashed("finished")
    before = contents(root)
    report = repair(root)
    assert report.healthy and report.complete and report.out is None
    assert statuses(report) == ["kept"] * 3
    assert contents(root) == before and sorted(path.name for path in root.parent.iterdir()) == ["finished"]


def test_recording_goes_on_after_a_repair(crashed):
    root, _ = crashed("between_frames_streaming")
    out = repair(root).out
    dataset = stock.create(out, "all", streaming_encoding=True, resume=True)
    stock.record(dataset, range(3, 5), out.with_name("log.json"))
    dataset.finalize()
    assert_frame_exact(out, range(5))


def test_an_empty_info_is_replaced_by_one_of_the_same_robot(crashed):
    root, saved = crashed("between_frames")
    donor, _ = crashed("resumed")
    (root / "meta/info.json").write_text("")
    with pytest.raises(UserError, match="--info=FILE"):
        repair(root)
    report = repair(root, Options(info=donor / "meta/info.json"))
    assert report.complete and len(report.episodes) == saved
    assert_frame_exact(report.out, range(saved))


def test_pictures_are_encoded_with_the_settings_of_another_recording(crashed):
    root, _ = crashed("batched")
    donor, _ = crashed("resumed")
    report = repair(root)
    assert "over LeRobot's depth range" in " ".join(report.episodes[0].reasons)
    report = repair(root, Options(info=donor / "meta/info.json", out=root.with_name("out")))
    assert_frame_exact(report.out, range(3))


def test_a_lost_task_is_asked_for_and_not_invented(crashed):
    root, _ = crashed("between_frames")
    (root / "meta/tasks.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 tasks \(task_index \[0, 1\]\)"):
        repair(root)
    report = repair(root, Options(tasks=("press gently", "press")))
    assert report.complete
    assert_frame_exact(report.out, range(3))
