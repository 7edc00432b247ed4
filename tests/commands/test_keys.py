"""`lerobot-ext keys` makes keys, adds robots, and says what to copy where."""

import stat

from lerobot_ext.commands.main import main
from simplify_work.wire.keys import ClientKeys, ServerKeys


def test_keys_are_made_and_robots_are_added(tmp_path, capsys):
    folder = tmp_path / "keys"
    assert main(["keys", str(folder), "--robots=arm1,arm2"]) == 0
    said = capsys.readouterr().out
    assert f"made the server's keys: {folder / 'server'}" in said
    assert f"--keys={folder / 'server'}" in said
    secret = (folder / "arm1" / "client.key_secret").read_bytes()

    assert main(["keys", str(folder), "--robots", "arm2, arm3"]) == 0
    said = capsys.readouterr().out
    assert "kept the keys of arm2" in said
    assert "made the keys of arm3" in said
    assert "no restart" in said
    assert (folder / "arm1" / "client.key_secret").read_bytes() == secret
    assert sorted(ServerKeys.load(folder).admitted().values()) == ["arm1", "arm2", "arm3"]
    assert ClientKeys.load(folder / "arm3").server == ServerKeys.load(folder).public
    for path in folder.rglob("*.key_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_mistakes_are_sentences(tmp_path, capsys):
    for words, expected in (
        (["--robots=arm1"], "the following arguments are required: folder"),
        ([str(tmp_path)], "required: --robots"),
        ([str(tmp_path), "--robots=,"], "names no robot"),
        ([str(tmp_path), "--robots=../arm"], "robot name '../arm' cannot be used"),
        ([str(tmp_path), "--robots=server"], "robot name 'server'"),
        ([str(tmp_path), "--robots=arm1", "--robot=arm2"], "did you mean '--robots'?"),
    ):
        assert main(["keys", *words]) == 2
        assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
