"""What `train` says before the first step: every feature with shapes and reasons, and what is odd about the values."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lerobot_ext.commands import train
from lerobot_ext.modality.plan import make_plan
from lerobot_ext.modality.scan import findings
from lerobot_ext.modality.selection import DepthSelection, ForceSelection, Selection
from lerobot_ext.modality.table import table

EVERYTHING = Selection(depth=DepthSelection(), force=ForceSelection(), language_tip=True)


@pytest.fixture(scope="module")
def recorded(dataset_root):
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    return LeRobotDatasetMetadata("test/all", root=dataset_root)


@pytest.fixture
def change(dataset_root, tmp_path):
    """A copy of the dataset's tables with one column changed by a function of (rows, n); returns its directory."""

    def change(key: str, function) -> Path:
        root = tmp_path / "changed"
        if not root.exists():
            shutil.copytree(dataset_root, root, ignore=shutil.ignore_patterns("videos"))
        for file in (root / "data").rglob("*.parquet"):
            data = pq.read_table(file)
            values = np.array(data.column(key).to_pylist())
            episodes = np.array(data.column("episode_index").to_pylist())
            function(values, episodes)
            kind = data.schema.field(key).type
            place = data.schema.get_field_index(key)
            data = data.set_column(place, data.schema.field(key), pa.array(values.tolist(), type=kind))
            pq.write_table(data, file)
        return root

    return change


def said(recorded, root, selection=EVERYTHING, stats=None, episodes=None) -> list[str]:
    plan = make_plan(selection, recorded.features)
    return findings(root, recorded.stats if stats is None else stats, plan, selection, episodes)


def test_a_sound_dataset_needs_no_warning(recorded, dataset_root):
    assert said(recorded, dataset_root) == []


def test_a_dead_channel_is_named(recorded, change):
    def dead(values, episodes):
        values[:, 2] = 0.25

    (line,) = said(recorded, change("observation.force", dead))
    assert line.startswith("warning: observation.force: 1 of 6 values never change (skin.m0_z = 0.25)")
    # Nothing is said about what is not selected.
    assert said(recorded, change("observation.force", dead), Selection()) == []


def test_a_dead_sensor_is_named_with_the_way_out(recorded, change):
    def dead(values, episodes):
        values[:] = 0

    (line,) = said(recorded, change("observation.force", dead))
    assert "warning: observation.force: no value ever changes" in line and "use_force: false" in line


@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_a_joint_that_does_not_move_is_a_note(recorded, change, key):
    def still(values, episodes):
        values[:, 4] = 12.5

    (line,) = said(recorded, change(key, still))
    assert line == f"note: {key}: joint_4.pos = 12.5 in every frame; a joint that does not move?"


def test_warnings_come_before_notes_and_both_are_told(recorded, change):
    change("observation.state", lambda values, episodes: values.__setitem__((slice(None), 0), 1.0))
    root = change("observation.force", lambda values, episodes: values.__setitem__((slice(None), 0), 1.0))
    lines = said(recorded, root)
    assert [line.split(":")[0] for line in lines] == ["warning", "note"]


def test_nan_is_counted_placed_and_told_what_to_do(recorded, change):
    def broken(values, episodes):
        values[25, 1] = np.nan
        values[25, 3] = np.inf
        values[47, 0] = np.nan

    root = change("observation.force", broken)
    (line,) = said(recorded, root)
    assert "warning: observation.force: 3 values in 2 of 60 frames are NaN or infinite" in line
    assert "first in episode 1, frame 5 (skin.m0_y)" in line
    assert "use_force: false" in line and "--operation.episode_indices='[1, 2]'" in line
    # Those episodes left out, all is well.
    assert said(recorded, root, episodes=[0]) == []
    (line,) = said(recorded, root, episodes=[0, 2])
    assert "1 values in 1 of 40 frames" in line and "first in episode 2, frame 7 (skin.m0_x)" in line


def test_nan_in_the_action_cannot_be_left_out(recorded, change):
    (line,) = said(recorded, change("action", lambda values, episodes: values.__setitem__((3, 0), np.nan)))
    assert "action: 1 values" in line and "dataset.episodes" in line and "modality.exclude" not in line


def test_pictures_are_judged_by_the_statistics(recorded, dataset_root):
    one = {"min": np.full((3, 1, 1), 0.5), "max": np.full((3, 1, 1), 0.5)}
    stats = recorded.stats | {"observation.images.wrist": recorded.stats["observation.images.wrist"] | one}
    (line,) = said(recorded, dataset_root, stats=stats)
    assert "observation.images.wrist: every pixel of every frame has the same value" in line

    near = Selection(depth=DepthSelection(near_m=1.0, far_m=2.0))
    (line,) = said(recorded, dataset_root, near)
    assert "nothing is farther than 0.9 m, but depth.near_m is 1" in line


def test_statistics_that_are_nan_are_told(recorded, dataset_root):
    broken = {"mean": np.full(6, np.nan), "std": np.ones(6)}
    stats = recorded.stats | {"observation.force": recorded.stats["observation.force"] | broken}
    (line,) = said(recorded, dataset_root, stats=stats)
    assert "statistics in meta/stats.json are NaN" in line and "recompute_stats" in line


def test_without_tables_and_statistics_nothing_is_said(recorded, tmp_path):
    plan = make_plan(EVERYTHING, recorded.features)
    assert findings(tmp_path, None, plan, EVERYTHING) == []


def test_the_table_tells_the_token_and_the_tip(recorded):
    selection = Selection(force=ForceSelection(fusion="token", force_history=4), language_tip=True)
    lines = {line.split()[0]: line for line in table(make_plan(selection, recorded.features)).splitlines()}
    assert "observation.force 4x6" in lines["observation.force"]
    assert "observation.state 6" in lines["observation.state"]
    assert "appended to the task" in lines["language_tip"] and " task " in lines["language_tip"]
    assert lines["recorded"].split() == ["recorded", "shape", "used", "the", "network", "sees", "why"]


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_only_the_first_process_prints(write_yaml, capsys, monkeypatch, rank, shown):
    monkeypatch.setattr(train, "train", train.TrainConfig.announce)
    monkeypatch.setenv("RANK", rank or "")
    if rank is None:
        monkeypatch.delenv("RANK")
    train.main([f"--config_path={write_yaml()}"])
    assert ("observation.images.wrist" in capsys.readouterr().out) is shown


def test_the_warnings_stand_under_the_table(write_yaml, change, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", train.TrainConfig.announce)
    root = change("observation.state", lambda values, episodes: values.__setitem__((slice(None), 0), 1.0))
    dataset = {"repo_id": "test/all", "root": str(root), "video_backend": "pyav"}
    train.main([f"--config_path={write_yaml(dataset=dataset)}"])
    out = capsys.readouterr().out
    assert out.index("task_index") < out.index("note: observation.state: joint_0.pos = 1 in every frame")
