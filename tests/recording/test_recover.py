"""What a kill left is brought to the last saved episode; whatever else lies there is not touched."""

import json
import os
import shutil

import killed
import pytest
import small_recording as small

from lerobot_ext.recording import commit
from lerobot_ext.recording.recover import recover

FEATURES = small.features((small.SIDE,), vectors=("observation.state",))


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("two") / "recording"
    small.record(small.create(root, given=FEATURES), range(2))
    return root


@pytest.fixture
def root(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path / "recording")
    return tmp_path / "recording"


def info_of(root):
    return json.loads((root / "meta/info.json").read_text())


def content(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_whole_recording_and_no_recording_are_left_alone(root, tmp_path):
    before = content(root)
    assert recover(root) == [] and content(root) == before
    assert recover(tmp_path / "nowhere") == []


def test_an_episode_that_is_whole_but_not_counted_is_kept(root):
    whole, stats = info_of(root), (root / "meta/stats.json").read_text()

    def save():
        dataset = small.resume(root)
        small.add_frames(dataset, 2)
        replaced = []

        def stop_at_stats(temp, path, replace=os.replace):
            replaced.append(path.name)
            if path.name == "stats.json":
                os.kill(os.getpid(), 9)
            replace(temp, path)

        os.replace = stop_at_stats
        dataset.save_episode()

    assert not killed.run(save)
    assert info_of(root) == whole
    small.check(root, 2)
    (line,) = [line for line in recover(root) if "not counted" in line]
    assert "episode 2 (" in line and "kept, there are 3 episodes now" in line
    small.check(root, 3)
    assert info_of(root)["splits"] == {"train": "0:3"}
    found, before = (json.loads(text) for text in ((root / "meta/stats.json").read_text(), stats))
    assert found["timestamp"]["count"][0] == before["timestamp"]["count"][0] + small.length_of(2)
    assert recover(root) == []


def test_rows_videos_and_lines_of_an_episode_that_does_not_exist_go(root):
    own = root / "meta/lerobot_ext"
    (own / "frames").mkdir(parents=True)
    lines = [json.dumps({"episode": number}) for number in range(3)]
    (own / "episodes.jsonl").write_text("\n".join(lines) + '\n{"epis')
    for number in range(3):
        (own / f"frames/episode_{number:06d}.parquet").touch()
    (root / "videos" / small.SIDE / "chunk-900/file-002.mp4").write_bytes(b"unfinished")
    (root / "images" / small.SIDE / "episode-000002").mkdir(parents=True)
    (root / "images" / small.SIDE / "episode-000002/frame-000000.png").touch()
    found = recover(root)
    assert (own / "episodes.jsonl").read_text().splitlines() == lines[:2]
    assert sorted(path.name for path in (own / "frames").iterdir()) == [
        f"episode_{number:06d}.parquet" for number in range(2)
    ]
    assert len(list(root.glob("videos/*/*/*"))) == 2 and not (root / "images").exists()
    assert any("1 videos that belong to no episode" in line for line in found)
    assert any("episode 2 was in progress when the recording ended: dropped" in line for line in found)
    small.check(root, 2)


@pytest.mark.parametrize("damage", ["torn table", "missing rows", "fewer episodes", "foreign rows"])
def test_what_other_crashes_leave_is_not_touched_and_the_next_step_is_named(root, damage):
    if damage == "torn table":
        path = root / "data/chunk-000/file-000.parquet"
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "missing rows":
        (root / "data/chunk-000/file-000.parquet").unlink()
    elif damage == "fewer episodes":
        (root / "meta/info.json").write_text(json.dumps(info_of(root) | {"total_episodes": 5}))
    else:
        shutil.copyfile(root / "data/chunk-000/file-000.parquet", root / "data/chunk-000/file-001.parquet")
    (root / "tmpabcd1234").mkdir()
    before = content(root)
    lines = recover(root)
    assert f"lerobot-ext repair {root}" in lines[0]
    assert content(root) == before


def test_a_folder_without_a_saved_episode_starts_anew(tmp_path):
    root = tmp_path / "recording"

    def begin():
        small.add_frames(small.create(root, given=FEATURES), 0, 2)
        os.kill(os.getpid(), 9)

    assert not killed.run(begin)
    dataset = small.resume(root)
    small.record(dataset, [0])
    dataset.finalize()
    small.check(root, 1)


def test_a_folder_without_a_dataset_is_said_to_be_one(tmp_path):
    (tmp_path / "recording" / "meta").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no dataset to go on with"):
        small.resume(tmp_path / "recording")


def test_a_failed_step_of_a_save_closes_the_writer_and_resume_goes_on(root, monkeypatch):
    dataset = small.resume(root)
    replace = os.replace

    def fail(temp, path):
        if path.name == "info.json":
            raise OSError(5, "Input/output error")
        replace(temp, path)

    small.add_frames(dataset, 2)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output error"):
        dataset.save_episode()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="open the dataset anew with resume"):
        small.add_frames(dataset, 2)
    dataset.finalize()
    dataset = small.resume(root)
    assert dataset.num_episodes == 3
    small.record(dataset, [3])
    small.check(root, 4)


def test_a_writer_that_was_not_told_of_a_crash_refuses_to_append(root):
    shutil.copyfile(root / "data/chunk-000/file-000.parquet", root / "spare")
    dataset = small.resume(root)
    tails = commit.Tails.of(dataset.meta)
    assert tails.data[:2] == (0, 0) and tails.data[2] == dataset.num_frames
    dataset.meta.info.total_frames += 1
    with pytest.raises(RuntimeError, match="lerobot-ext repair"):
        commit.Tails.of(dataset.meta)
