"""`lerobot-ext repair`: what it prints and with which status it ends."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from lerobot_ext.commands.main import main, usage

LENGTHS = (5, 7, 6)
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("recorded") / "press"
    features = {"action": {"dtype": "float32", "shape": (2,), "names": None}}
    dataset = LeRobotDataset.create("test/press", fps=30, features=features, root=root)
    for length in LENGTHS:
        for _ in range(length):
            dataset.add_frame({"action": np.zeros(2, np.float32), "task": "press"})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture
def root(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "press")


def test_a_healthy_dataset(root, capsys):
    assert main(["repair", str(root)]) == 0
    assert "is healthy: 3 episodes, 18 frames; nothing was changed." in capsys.readouterr().out
    assert [path.name for path in root.parent.iterdir()] == ["press"]


def test_everything_is_kept(root, capsys):
    (root / DATA).write_bytes((root / DATA).read_bytes()[:-100])
    assert main(["repair", str(root)]) == 0
    out = capsys.readouterr().out
    assert "fault: data/chunk-000/file-000.parquet: has no footer" in out
    assert "episode 1: kept, 7 frames\n" in out
    assert "episodes: 3 of 3 kept, frames: 18 kept, 0 lost" in out
    assert "LeRobotDataset opens it and shows the first and last frame of every episode." in out
    assert root.with_name("press_repaired").is_dir()


def test_something_is_lost(root, capsys):
    second = pq.read_metadata(root / DATA).row_group(1).column(2).data_page_offset
    (root / DATA).write_bytes((root / DATA).read_bytes()[:second])
    out = root.with_name("elsewhere")
    assert main(["repair", str(root), "--out", str(out), "--no_check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [episode["status"] for episode in found["episodes"]] == ["kept", "lost", "lost"]
    assert (found["out"], found["checked"], found["complete"]) == (str(out), False, False)


def test_a_dry_run_in_words(root, capsys):
    (root / "meta/stats.json").unlink()
    assert main(["repair", str(root), "--dry_run"]) == 0
    assert capsys.readouterr().out.endswith("nothing was written.\n")
    assert [path.name for path in root.parent.iterdir()] == ["press"]


def test_in_place(root, capsys):
    (root / "meta/stats.json").unlink()
    assert main(["repair", str(root), "--in_place"]) == 0
    assert "the damaged folder is" in capsys.readouterr().out
    assert (root / "meta/stats.json").exists()
    assert not (root.with_name("press_before_repair") / "meta/stats.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "is not a folder"),
        (["nowhere", "--dry_rum"], "did you mean '--dry_run'"),
        (["nowhere", "--in_place", "--out=x"], "exclude one another"),
        ([], "ROOT"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["repair", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_it_is_listed():
    assert "  repair " in usage()
