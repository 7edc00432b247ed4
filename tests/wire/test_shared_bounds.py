"""Shared memory and private folders: whose they may be, how much they may take, and that no file stays open."""

import gc
import os
import sys

import numpy as np
import pytest

from simplify_work.wire import private, shared
from simplify_work.wire.errors import WireFormatError
from simplify_work.wire.private import PrivateFolder
from simplify_work.wire.shared import SharedArrays, SharedView

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's")


@pytest.fixture
def client():
    client = SharedArrays(100_000)
    yield client
    client.close()


@pytest.fixture
def own_place(tmp_path_factory, monkeypatch):
    base = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(private.tempfile, "tempdir", str(base))
    monkeypatch.setattr(private, "_SHORT", str(base))
    return base


def test_a_segment_of_another_user_or_of_too_many_bytes_is_refused_and_stays(client, monkeypatch):
    with monkeypatch.context() as patch:
        user = os.geteuid()
        patch.setattr(shared.os, "geteuid", lambda: user + 1)
        with pytest.raises(WireFormatError, match="not a segment of this user"):
            SharedView(client.name)
    with monkeypatch.context() as patch:
        patch.setattr(shared, "MAX_BYTES", 4 * client.slot_bytes - 1)
        with pytest.raises(WireFormatError, match=f"it has {4 * client.slot_bytes} bytes, expected 1 to"):
            SharedView(client.name)
    SharedView(client.name).close()


def test_its_memory_is_there_before_it_is_written_to(client):
    taken = (shared.FOLDER / client.name).stat().st_blocks * 512
    assert taken >= 4 * client.slot_bytes, "a write to memory that is not there would end the process"


def test_the_server_keeps_so_many_copies_for_another_use_and_no_more(client):
    server = SharedView(client.name)
    offsets, stamp = client.place({"x": np.zeros(90_000, np.uint8)})
    held = [server.read(offsets["x"], 90_000, stamp) for _ in range(2 * shared._MAX_REUSED)]
    assert len({each.ctypes.data for each in held}) == len(held)
    assert len(server._copies) == shared._MAX_REUSED
    server.close()


def test_a_folder_of_another_user_is_left_alone(own_place, monkeypatch):
    folder = own_place / f"{private.PREFIX}abcdefgh"
    folder.mkdir()
    with monkeypatch.context() as patch:
        user = os.geteuid()
        patch.setattr(private.os, "geteuid", lambda: user + 1)
        private.remove_abandoned()
    assert folder.exists()
    private.remove_abandoned()
    assert not folder.exists()


def test_no_file_stays_open(own_place):
    def all_there_is():
        one, other = SharedArrays(1000), SharedArrays(1000)
        SharedView(one.name).close()
        folder = PrivateFolder()
        PrivateFolder().close()  # looks at the first, which is in use
        folder.close()
        one.close(), other.close()

    all_there_is()
    gc.collect()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        all_there_is()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)
