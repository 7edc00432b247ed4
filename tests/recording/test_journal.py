"""The journal says of each saved episode what happened in it, and nothing about episodes that are not there."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset
from recording_rig import create, run, running_rig

import lerobot_ext
from lerobot_ext.recording import episodes, journal
from lerobot_ext.recording.journal import EpisodeRecord, Journal

FRAMES = 8


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    lerobot_ext.register()
    with running_rig(tmp_path_factory.mktemp("rig")) as rig, rig.robot() as robot:
        yield robot


@pytest.fixture(scope="module")
def recorded(robot, tmp_path_factory):
    """Two episodes: a plain one, and one in whose middle the loop was held up for a third of a second."""
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    dataset = create(root, robot)
    run(robot, dataset, FRAMES)
    dataset.save_episode()
    run(robot, dataset, FRAMES, during=lambda number: time.sleep(0.3 if number == 3 else 0))
    dataset.save_episode()
    dataset.finalize()
    return root


def test_an_episode_is_described(recorded, robot):
    first, second = journal.read(recorded)
    assert (first.episode, first.frames) == (0, FRAMES) and second.episode == 1
    assert len(first.baseline["skin"]) == 15
    assert second.baseline["skin"] == robot.force_sensors["skin"].baseline.tolist()
    assert second.late >= 1
    assert 0 <= first.ages_ms["skin"] < 500 and first.max_ages_ms["skin"] >= first.ages_ms["skin"]
    assert first.counts["arm.retries"] >= 0
    assert len(first.force_min["skin"]) == len(first.force_max["skin"]) == 15
    assert first.saved_at.endswith("+00:00")


def test_the_range_of_force_is_that_of_the_data(recorded):
    dataset = LeRobotDataset("lab/rig", root=recorded)
    table = dataset.hf_dataset.with_format("numpy")
    force = np.stack(table["observation.force"])[np.array(table["episode_index"]) == 0]
    record = journal.read(recorded)[0]
    assert record.force_min["skin"] == pytest.approx(force.min(axis=0), abs=1e-3)
    assert record.force_max["skin"] == pytest.approx(force.max(axis=0), abs=1e-3)


def test_every_frame_has_a_row(recorded):
    table = journal.read_frames(recorded, 1)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    assert columns["frame_index"].tolist() == list(range(FRAMES))
    assert columns["frame_index"].dtype == np.int64
    assert columns["ages_ms.skin"].dtype == np.float32 and np.isfinite(columns["ages_ms.skin"]).all()
    assert columns["new.arm.retries"].dtype == np.int32
    assert np.isnan(columns["period_ms"][0]) and columns["period_ms"][4] > 300
    assert journal.read_frames(recorded, 7) is None


def test_raw_values_are_recovered(recorded):
    dataset = LeRobotDataset("lab/rig", root=recorded)
    force = np.stack(dataset.hf_dataset.with_format("numpy")["observation.force"])[:FRAMES]
    raw = journal.raw_force(recorded, 0, force)
    assert np.allclose(raw - force, journal.read(recorded)[0].baseline["skin"], atol=1e-3)
    assert np.abs(raw).max() > 300, "the skin's offset is there again"
    with pytest.raises(ValueError, match="no baseline"):
        journal.raw_force(recorded, 5, force)
    with pytest.raises(ValueError, match="4"):
        journal.raw_force(recorded, 0, np.zeros(4))


def test_raw_values_of_a_calibrated_sensor_are_untared_in_its_unit(robot, tmp_path):
    matrix = np.zeros((2, 15))
    matrix[0, 0], matrix[1, 2] = 0.5, -0.25
    file = tmp_path / "calibration.json"
    file.write_text(
        json.dumps({"matrix": matrix.tolist(), "channels": ["fx", "fz"], "unit": "N", "limit": 1000})
    )
    with running_rig(tmp_path) as rig, rig.robot(calibration=str(file)) as robot:
        dataset = create(tmp_path / "dataset", robot)
        run(robot, dataset, 3)
        dataset.save_episode()
        untared = matrix @ robot.force_sensors["skin"].latest_raw()[2]
        dataset.finalize()
    force = np.stack(LeRobotDataset("lab/rig", root=dataset.root).hf_dataset["observation.force"])
    assert force.shape == (3, 2)
    assert journal.raw_force(dataset.root, 0, force)[-1] == pytest.approx(untared, abs=5)


def test_what_is_recorded_again_is_counted_once(robot, tmp_path):
    dataset = create(tmp_path / "dataset", robot)
    run(robot, dataset, 5)
    dataset.clear_episode_buffer()
    run(robot, dataset, 3)
    dataset.save_episode()
    dataset.finalize()
    (record,) = journal.read(dataset.root)
    assert record.frames == 3 and journal.read_frames(dataset.root, 0).num_rows == 3


def test_an_episode_that_failed_leaves_nothing(robot, tmp_path):
    dataset = create(tmp_path / "dataset", robot)

    def fail(number):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        run(robot, dataset, 5, during=fail)
    dataset.clear_episode_buffer()
    run(robot, dataset, 2)
    dataset.save_episode()
    dataset.finalize()
    assert [record.frames for record in journal.read(dataset.root)] == [2]


def test_a_resumed_dataset_goes_on_with_its_journal(robot, tmp_path):
    dataset = create(tmp_path / "dataset", robot)
    for _ in range(2):
        run(robot, dataset, 2, pause_s=0)
        dataset.save_episode()
        dataset.finalize()
        dataset = LeRobotDataset.resume("lab/rig", root=dataset.root, streaming_encoding=True)
    dataset.finalize()
    assert [record.episode for record in journal.read(dataset.root)] == [0, 1]


def test_a_robot_that_tells_nothing_has_a_journal_of_frames(robot, tmp_path):
    mute = SimpleNamespace(get_observation=robot.get_observation)
    dataset = create(tmp_path / "dataset", robot)
    run(mute, dataset, 3)
    dataset.save_episode()
    dataset.finalize()
    (record,) = journal.read(dataset.root)
    assert record == replace(
        EpisodeRecord(0, 3, force_min=record.force_min, force_max=record.force_max),
        saved_at=record.saved_at,
        late=record.late,
    )
    assert journal.read_frames(dataset.root, 0).column_names == ["frame_index", "period_ms"]


def test_lines_that_were_cut_off_or_written_twice(tmp_path):
    path = tmp_path / journal.EPISODES
    path.parent.mkdir(parents=True)
    lines = [{"episode": 1, "frames": 5}, {"episode": 0, "frames": 4}, {"episode": 1, "frames": 6, "new": 1}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"episode": 2, "fra')
    assert [(record.episode, record.frames) for record in journal.read(tmp_path)] == [(0, 4), (1, 6)]
    assert journal.read(tmp_path / "elsewhere") == []


def test_a_journal_that_cannot_be_written_breaks_nothing(robot, tmp_path, caplog):
    dataset = create(tmp_path / "dataset", robot)
    run(robot, dataset, 2)
    (Path(dataset.root) / journal.FOLDER).mkdir(parents=True, exist_ok=True)
    (Path(dataset.root) / journal.FOLDER / "frames").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        dataset.save_episode()
    dataset.finalize()
    assert dataset.num_episodes == 1 and "journal" in caplog.text
    assert journal.read(dataset.root) == []


def test_a_kill_between_commit_and_journal_leaves_an_episode_without_a_line(robot, tmp_path):
    root = tmp_path / "dataset"
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lerobot_ext; lerobot_ext.register()
from recording_rig import create, run, running_rig
from lerobot_ext.recording import episodes, journal
from pathlib import Path
with running_rig(Path({str(tmp_path)!r})) as rig, rig.robot() as robot:
    dataset = create(Path({str(root)!r}), robot)
    run(robot, dataset, 3); dataset.save_episode()
    episodes.add_listener(episodes.EpisodeListener("kill", on_saved=lambda *_: os.kill(os.getpid(), 9), order=0))
    run(robot, dataset, 4); dataset.save_episode()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert [record.episode for record in journal.read(root)] == [0]
    dataset = LeRobotDataset.resume("lab/rig", root=root, streaming_encoding=True)
    assert dataset.num_episodes == 2
    run(robot, dataset, 2)
    dataset.save_episode()
    dataset.finalize()
    assert [record.episode for record in journal.read(root)] == [0, 2]


def test_a_frame_costs_next_to_nothing(robot):
    diary = Journal()
    with episodes.episode(robot, None):
        diary.start(robot)
        robot.get_observation()
        start_s = time.process_time()
        for _ in range(1000):
            diary.frame(robot)
        assert (time.process_time() - start_s) / 1000 < 0.2e-3
