"""Shared memory: what is read is whole or refused, names are ours, and nothing is left behind however it ends."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest

from simplify_work.wire import shared
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import WireFormatError
from simplify_work.wire.messages import Infer
from simplify_work.wire.pictures import PictureEncoder
from simplify_work.wire.shared import SLOTS, SharedArrays, SharedView, size_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is Linux's")

INFER = Infer(request=1)
RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (240, 320, 3), np.uint8),
    "state": np.arange(6, dtype=np.float32),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(3.5),
}


def segments() -> set[str]:
    return {path.name for path in shared.FOLDER.glob("lrx_*")}


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = segments()
    yield
    assert segments() - before == set()


@pytest.fixture
def ends():
    """The client's and the server's end of a segment for ARRAYS."""
    client = SharedArrays(size_of(ARRAYS))
    server = SharedView(client.name)
    yield client, server
    server.close()
    client.close()


def test_arrays_arrive_and_only_the_header_is_sent(ends):
    client, server = ends
    frames = pack(INFER, ARRAYS, shared=client, checked=False)
    assert len(frames) == 1
    _, found = unpack(frames, server)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].flags.writeable


def test_what_finds_no_room_travels_as_a_frame(ends):
    client, server = ends
    large = ARRAYS | {"another": np.ones((400, 400, 3), np.uint8)}
    frames = pack(INFER, large, shared=client)
    assert len(frames) == 2
    _, found = unpack(frames, server)
    for name, array in large.items():
        np.testing.assert_array_equal(found[name], array)


def test_encoded_pictures_travel_as_frames(ends):
    client, server = ends
    arrays = ARRAYS | {"image": np.zeros((240, 320, 3), np.uint8)}
    frames = pack(INFER, arrays, PictureEncoder("lossless"), client)
    assert len(frames) == 2
    np.testing.assert_array_equal(unpack(frames, server)[1]["image"], arrays["image"])


def test_a_message_is_whole_until_its_slot_comes_round_again_and_then_refused(ends):
    client, server = ends
    first = pack(INFER, ARRAYS, shared=client)
    for _ in range(SLOTS - 1):
        pack(INFER, {"image": 255 - ARRAYS["image"]}, shared=client)
        np.testing.assert_array_equal(unpack(first, server)[1]["image"], ARRAYS["image"])
    pack(INFER, {"image": 255 - ARRAYS["image"]}, shared=client)
    with pytest.raises(WireFormatError, match="wrote over its shared memory"):
        unpack(first, server)


def test_an_array_of_another_layout_in_its_place_is_noticed(ends):
    client, server = ends
    arrays = {"a": np.zeros(1000), "b": np.zeros(1000)}
    first = pack(INFER, arrays, shared=client)
    for _ in range(SLOTS):
        pack(INFER, {"a": np.zeros(500)}, shared=client)
    with pytest.raises(WireFormatError, match="wrote over"):
        unpack(first, server)


def test_torn_writes_are_refused(ends):
    """While one thread writes without a pause, whatever is read is of one piece or refused."""
    client, server = ends
    stop, newest = threading.Event(), queue.Queue(maxsize=1)

    def write() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            frames = pack(INFER, {"image": np.full((240, 320, 3), value, np.uint8)}, shared=client)
            if newest.empty():
                newest.put(frames)

    thread = threading.Thread(target=write)
    thread.start()
    whole = refused = 0
    deadline = time.monotonic() + 20
    try:
        while (whole < 20 or refused < 20) and time.monotonic() < deadline:
            frames = newest.get(timeout=20)
            time.sleep(0.0003 * (refused < whole))
            try:
                image = unpack(frames, server)[1]["image"]
            except WireFormatError as error:
                assert "wrote over" in str(error)
                refused += 1
            else:
                assert image.min() == image.max()
                whole += 1
    finally:
        stop.set()
        thread.join()
    assert whole and refused


def test_a_write_that_began_and_did_not_end_is_refused(ends):
    client, server = ends
    frames = pack(INFER, {"image": ARRAYS["image"]}, shared=client)
    shared._write_stamp(client._bytes, 0, shared._WRITING)
    with pytest.raises(WireFormatError, match="wrote over"):
        unpack(frames, server)


def test_what_was_read_does_not_change_with_the_segment_or_the_next_message(ends):
    client, server = ends
    kept = [
        unpack(pack(INFER, {"image": ARRAYS["image"] + k}, shared=client), server)[1]["image"]
        for k in range(40)
    ]
    for k, image in enumerate(kept):
        np.testing.assert_array_equal(image, ARRAYS["image"] + np.uint8(k))


def test_memory_that_nobody_holds_any_more_is_used_again(ends):
    client, server = ends
    places = set()
    for _ in range(10):
        image = unpack(pack(INFER, ARRAYS, shared=client), server)[1]["image"]
        places.add(image.ctypes.data)
    assert len(places) <= 2
    assert len(server._copies) <= 2


def test_the_server_takes_the_name_away(ends):
    client, _ = ends
    assert not (shared.FOLDER / client.name).exists()
    with pytest.raises(WireFormatError, match="cannot be used"):
        SharedView(client.name)


def test_without_a_server_the_client_takes_it_away():
    client = SharedArrays(1000)
    assert (shared.FOLDER / client.name).stat().st_mode & 0o777 == 0o600
    client.close()
    assert client.name not in segments()


@pytest.mark.parametrize(
    "name",
    ["", "x", "lrx_", "../etc/passwd", "lrx_" + "0" * 31, "lrx_" + "0" * 32 + "/..", "lrx_" + "G" * 32],
)
def test_other_names_are_refused(name):
    with pytest.raises(WireFormatError, match="no name of shared memory"):
        SharedView(name)


def test_only_segments_are_opened(tmp_path):
    (tmp_path / "secret").write_text("secret")
    makers = {
        "missing": lambda path: None,
        "link": lambda path: path.symlink_to(tmp_path / "secret"),
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "nothing": lambda path: path.touch(),
    }
    for make in makers.values():
        path = shared.FOLDER / f"lrx_{uuid.uuid4().hex}"
        make(path)
        try:
            with pytest.raises(WireFormatError, match="cannot be used"):
                SharedView(path.name)
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
    assert (tmp_path / "secret").exists()


def claim(offset, shape=(4,), checksum=0, encoding="raw"):
    import msgspec
    from test_wire_codec import header

    info = ["x", "uint8", shape, checksum, encoding, offset]
    return [header(msgspec.msgpack.encode({"type": "infer", "request": 1, "arrays": [info]}))]


def test_claims_beyond_the_segment_or_without_one_are_refused(ends):
    client, server = ends
    for offset in (size_of(ARRAYS) * SLOTS + 64, 2**62, 0, 63, size_of(ARRAYS) * SLOTS - 3):
        with pytest.raises(WireFormatError, match="shared memory has"):
            unpack(claim(offset), server)
    for frames in (
        claim(64),
        claim(-1),
        claim(2**63),
        claim(0, encoding="jpeg"),
        claim(0, checksum=None),
        [*claim(0), b"1234"],
    ):
        with pytest.raises(WireFormatError):
            unpack(frames, server)
    with pytest.raises(WireFormatError, match="this client has none"):
        unpack(claim(0))


CLIENT = """
import sys, time
from simplify_work.wire.shared import SharedArrays
import numpy as np
segment = SharedArrays(100_000)
offsets, stamp = segment.place({"x": np.arange(1000)})
print(segment.name, offsets["x"], stamp, flush=True)
time.sleep(60)
"""


@pytest.fixture
def client_process():
    process = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True)
    yield process, *process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_client_leaves_nothing_once_the_server_opened_it(client_process):
    process, name, offset, stamp = client_process
    server = SharedView(name)
    assert name not in segments()
    process.send_signal(signal.SIGKILL)
    process.wait()
    np.testing.assert_array_equal(server.read(int(offset), 8000, int(stamp)).view(np.int64), np.arange(1000))
    server.close()


def test_a_client_killed_before_that_is_cleaned_up_after_by_the_next_one(client_process):
    process, name, _, _ = client_process
    SharedArrays(100).close()
    assert name in segments(), "it lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    SharedArrays(100).close()
    assert name not in segments()


def test_too_much_is_an_error_and_no_crash():
    with pytest.raises(OSError):
        SharedArrays(2**50)
