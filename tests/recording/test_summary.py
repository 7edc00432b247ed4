"""The table at the end of a recording: of what the dataset's folder says."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lerobot_ext.recording import journal
from lerobot_ext.recording.journal import EpisodeRecord
from lerobot_ext.recording.summary import render, summarize

FEATURE = {
    "dtype": "float32",
    "shape": [2],
    "names": ["skin.x", "skin.y"],
    "info": {"sensors": {"skin": {"unit": "uT"}}},
}
RECORDS = [
    EpisodeRecord(
        0,
        frames=90,
        late=3,
        counts={"arm.retries": 2, "side.dropped": 1, "side.received": 95, "wrist.repeated": 4},
        ages_ms={"side": 20.0},
        max_ages_ms={"side": 30.0},
        force_min={"skin": [-1.0, 0.0]},
        force_max={"skin": [2.0, 55.5]},
        drift={"skin": 3.25},
    ),
    EpisodeRecord(
        1,
        frames=30,
        counts={"arm.retries": 0, "side.dropped": 0, "side.reconnects": 1},
        ages_ms={"side": 40.0},
        max_ages_ms={"side": 90.0},
        force_min={"skin": [-7.5, 0.0]},
        force_max={"skin": [2.0, 3.0]},
    ),
]


def folder(root, lengths=(90, 30, 10), records=RECORDS):
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    table = pa.table(
        {"episode_index": list(range(len(lengths))), "length": list(lengths), "more": ["x"] * len(lengths)}
    )
    pq.write_table(table, root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    info = {"fps": 30, "total_episodes": len(lengths), "features": {"observation.force": FEATURE}}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    path = root / journal.EPISODES
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    return root


def text(summary) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(summary))
    return console.export_text()


def rows(shown: str) -> dict[str, str]:
    lines = [line.strip() for line in shown.splitlines()]
    return {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in lines if "  " in line}


def test_the_rows(tmp_path):
    shown = rows(text(summarize(folder(tmp_path / "dataset"))))
    assert shown["episodes"] == "3"
    assert shown["frames"] == "130 (4.3 s at 30 fps)"
    assert shown["late frames"] == "3 (2.50 %)", "of the frames that the journal knows"
    assert shown["dropped"] == "1 (side 1)"
    assert shown["bus retries"] == "2 (arm 2)"
    assert shown["reconnects"] == "1 (side 1)"
    assert shown["mean ages"] == "side 25 ms (at most 90)"
    assert shown["force skin"] == "-7.5 to 55.5 uT"
    assert shown["no journal"] == "of episodes 2"
    assert "free" in shown["on disk"] and "received" not in shown


def test_only_this_sessions_episodes(tmp_path):
    summary = summarize(folder(tmp_path / "dataset"), first=1)
    assert (summary.frames, list(summary.lengths)) == (40, [1, 2])
    assert rows(text(summary))["episodes"] == "2 (and 1 from before)"


def test_a_line_an_episode_where_there_are_few(tmp_path):
    shown = text(summarize(folder(tmp_path / "few")))
    header = next(line for line in shown.splitlines() if "drift" in line)
    assert header.split()[:4] == ["episode", "frames", "late", "dropped"]
    first = next(line for line in shown.splitlines() if line.split()[:2] == ["0", "90"])
    assert first.split() == ["0", "90", "3", "1", "4", "2", "0", "20.0", "55.5", "3.2"]
    many = text(summarize(folder(tmp_path / "many", lengths=[10] * 25)))
    assert "drift" not in many


def test_a_dataset_without_a_journal(tmp_path):
    shown = rows(text(summarize(folder(tmp_path / "dataset", records=[]))))
    assert shown["frames"].startswith("130") and "late frames" not in shown


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(OSError):
        summarize(tmp_path)
