import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from lerobot_ext.commands.main import main


def test_it_writes_page_picture_and_recording(press, tmp_path, capsys):
    from PIL import Image

    assert main(["visualize", f"--root={press}", "--episode_index=1", f"--output={tmp_path}"]) == 0
    stem = tmp_path / "episode_000001"
    assert stem.with_suffix(".html").read_text().startswith("<!doctype html>")
    with Image.open(stem.with_suffix(".png")) as picture:
        assert picture.width == 1800
    assert str(stem) in capsys.readouterr().out
    verified = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "verify", str(stem.with_suffix(".rrd"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr


def test_the_recording_can_be_left_out(press, tmp_path):
    assert main(["visualize", f"--root={press}", f"--output={tmp_path}", "--no-rrd"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".png"}


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["visualize", "--help"])
    assert exit_.value.code == 0 and "metric colour bar" in capsys.readouterr().out


def test_mistakes_get_a_sentence(press, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut" / "meta").mkdir(parents=True)
    (tmp_path / "cut" / "meta" / "info.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for words, sentence in (
        ([f"--root={tmp_path}/nowhere"], "there is no folder"),
        ([f"--root={tmp_path}/empty"], "is not a LeRobot dataset"),
        ([f"--root={tmp_path}/cut"], "is not a finished dataset"),
        ([f"--root={press}", "--episode_index=2"], "there is no episode 2"),
        ([f"--root={press}", "--episode_index=-1"], "it has 2: 0 to 1"),
        ([f"--root={press}", f"--output={tmp_path}/file"], "cannot write to"),
        ([f"--root={press}", "--spawn", "--no-rrd"], "give one of the two"),
        ([f"--root={press}", "--depth_range=1,0"], "--depth_range is '1,0'; expected auto, recorded"),
        ([f"--root={press}", "--film=-1"], "--film is -1"),
        ([f"--root={press}", "--episode=2"], "--help"),
        ([], "--root"),
    ):
        assert main(["visualize", *words]) == 2, words
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1 and error.startswith("error: "), error


def test_a_recording_that_goes_on_shows_what_is_saved(press, tmp_path, capsys):
    """Videos of an episode each in a file of its own, rows of an episode that is not saved yet, files half written."""
    root = shutil.copytree(press, tmp_path / "going_on")
    for path in (root / "meta" / "episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        for key in ("side", "side_depth", "wrist"):
            name = f"videos/observation.images.{key}/chunk_index"
            where = table.schema.get_field_index(name)
            table = table.set_column(where, name, pa.array([900] * len(table), table[name].type))
        pq.write_table(table, path)
    for chunk in list((root / "videos").glob("*/chunk-000")):
        chunk.rename(chunk.with_name("chunk-900"))
        (chunk.with_name("chunk-900") / "file-002.mp4").write_bytes(b"half")
    (data,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(data)
    late = table.filter(pa.compute.equal(table["episode_index"], 1))
    late = late.set_column(
        late.schema.get_field_index("episode_index"), "episode_index", pa.array([2] * len(late))
    )
    pq.write_table(pa.concat_tables([table, late]), data)
    (root / "images" / "left").mkdir(parents=True)
    (root / "meta" / ".temporary").write_bytes(b"half")

    words = [
        "visualize",
        f"--root={root}",
        f"--output={tmp_path}/pages",
        "--no-rrd",
        "--film=0",
        "--force=norms",
    ]
    assert main([*words, "--episode_index=1"]) == 0
    assert "ages and drops: not recorded" in capsys.readouterr().out
    page = (tmp_path / "pages" / "episode_000001.html").read_text()
    assert 'class="force norms"' in page and "<input" in page, "the pad's player is there without a film"
    assert main([*words, "--episode_index=2"]) == 2
    assert "it has 2: 0 to 1" in capsys.readouterr().err
