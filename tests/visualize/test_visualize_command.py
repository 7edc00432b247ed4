import subprocess
import sys

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
        ([f"--root={press}", "--episode=2"], "--help"),
        ([], "--root"),
    ):
        assert main(["visualize", *words]) == 2, words
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1 and error.startswith("error: "), error
