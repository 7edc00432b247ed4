"""The folder of an `ipc://` socket: nobody else's, and gone with its maker, at the latest at the next one's start."""

import os
import stat
import subprocess
import sys

import pytest

from simplify_work.wire import private
from simplify_work.wire.address import parse_address
from simplify_work.wire.private import PrivateFolder


@pytest.fixture(autouse=True)
def own_place(tmp_path_factory, monkeypatch):
    """Folders of other runs on this machine do not matter."""
    base = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(private.tempfile, "tempdir", str(base))
    monkeypatch.setattr(private, "_SHORT", str(base))
    return base


def test_only_its_user_may_enter_and_two_do_not_collide():
    one, other = PrivateFolder(), PrivateFolder()
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o700
    assert one.address != other.address and parse_address(one.address).path.startswith(str(one.path))
    one.close()
    one.close()
    assert not one.path.exists() and other.path.exists()
    other.close()


def test_one_that_a_kill_left_is_removed_and_one_in_use_is_not(own_place):
    code = (
        f"import tempfile; tempfile.tempdir = {str(own_place)!r}\n"
        "from simplify_work.wire.private import PrivateFolder\n"
        "folder = PrivateFolder(); open(folder.path / 'socket', 'w').close(); print(folder.path, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        path = private.Path(process.stdout.readline().strip())
        PrivateFolder().close()
        assert path.exists(), "its maker lives"
        process.kill()
    assert path.exists()
    PrivateFolder().close()
    assert not path.exists()


def test_nothing_else_is_removed(own_place):
    others = [own_place / name for name in ("lrx_ipc_", "lrx_ipc_abc", "notes")]
    for path in others:
        path.mkdir()
    full = own_place / "lrx_ipc_abcdefgh"
    full.mkdir()
    (full / "precious").touch()
    PrivateFolder().close()
    private.remove(others[2])
    assert all(path.exists() for path in (*others, full / "precious"))


def test_a_long_name_of_the_folder_for_temporary_files(own_place, monkeypatch):
    deep = own_place / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(private.tempfile, "tempdir", str(deep))
    folder = PrivateFolder()
    assert len(os.fsencode(parse_address(folder.address).path)) <= 107
    folder.close()
