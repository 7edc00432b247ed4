import errno
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from small_dataset import EPISODES, FPS, FRAMES

from lerobot_ext.errors import UserError
from lerobot_ext.modality import DepthSelection, ForceSelection, Selection, disk_cache
from lerobot_ext.modality.cache import Columns, FrameStore, encode
from lerobot_ext.modality.disk_cache import StreamFile, open_stores
from lerobot_ext.modality.view import select_dataset

SIDE, DEPTH, WRIST = (f"observation.images.{name}" for name in ("side", "side_depth", "wrist"))
ALL = Selection(None, DepthSelection(), ForceSelection(), True, (32, 48))
WINDOWS = {key: [-1 / FPS, 0.0] for key in (WRIST, DEPTH, "observation.state")} | {"action": [0.0, 1 / FPS]}
fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the streams that the decoder was called for."""
    from lerobot_ext.modality import decoding

    calls = set()
    original = decoding.read_frames

    def watching(path, *args):
        calls.add(path.parents[1].name)
        return original(path, *args)

    monkeypatch.setattr(decoding, "read_frames", watching)
    return calls


def stream(key=WRIST, frames=10, **fields):
    return StreamFile(key, frames, (3, 4, 6), None, {"format": 1} | fields)


def build(sinks):
    """Rows that tell their number."""
    for sink in sinks.values():
        for row in range(10):
            sink.put(row, torch.full((1, 3, 4, 6), row, dtype=torch.uint8))


def is_whole(stores):
    return all(store.get(row).eq(row).all() for store in stores.values() for row in range(10))


def test_depth_is_kept_within_half_a_step():
    metres = torch.rand(4, 1, 8, 8) * 2
    metres[:, :, 0] = 0
    store = FrameStore.in_memory(4, (1, 8, 8), 1.5, shared=False)
    store.put(0, metres)
    back = store.get(torch.arange(4))
    torch.testing.assert_close(back, metres.clamp(max=1.5), atol=0.5 * 1.5 / 32766 + 1e-6, rtol=0)
    assert torch.equal(back == 0, metres == 0)
    assert encode(torch.full((1, 1, 1, 1), 1e-6), 1.5).item() == 1, "a measurement stays one"


@pytest.mark.parametrize("windows", [None, WINDOWS])
def test_frames_from_files_equal_decoded_ones(open_dataset, tmp_path, windows):
    dataset = open_dataset(delta_timestamps=windows, episodes=[0, 2])
    plain = select_dataset(dataset, ALL)
    cached = pickle.loads(pickle.dumps(select_dataset(dataset, ALL, 1.0, cache_dir=tmp_path)))
    for index in (0, 1, FRAMES - 1, FRAMES, 2 * FRAMES - 1):
        a, b = plain[index], cached[index]
        assert a.keys() == b.keys()
        for key, value in a.items():
            if not isinstance(value, torch.Tensor):
                assert value == b[key], key
                continue
            assert (value.dtype, value.shape) == (b[key].dtype, b[key].shape), key
            within = 0.5 * 1.1 / 32766 + 1e-6 if key == DEPTH else 0
            torch.testing.assert_close(
                value.clamp(max=1.1), b[key].clamp(max=1.1), atol=within, rtol=0, msg=key
            )


@pytest.mark.parametrize("cached", [False, True])
def test_columns_are_as_lerobot_gives_them(open_dataset, cached):
    dataset = open_dataset(delta_timestamps={"action": [0.0, 1 / FPS], "observation.state": [0.0]})
    view = select_dataset(dataset, Selection(()), 1.0 if cached else None)
    for index in (0, FRAMES - 1, FRAMES):
        theirs = dataset[index]
        for key, value in view[index].items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == theirs[key].dtype, key
                assert torch.equal(value, theirs[key]), key
            else:
                assert value == theirs[key], key


def test_columns_of_every_kind():
    from datasets import Dataset

    table = Dataset.from_dict(
        {
            "number": [1, 2],
            "share": [0.5, 1.5],
            "flag": [True, False],
            "vector": [[1.0, 2.0], [3.0, 4.0]],
            "matrix": [[[1, 2]], [[3, 4]]],
            "ragged": [[1.0], [1.0, 2.0, 3.0]],
            "text": ["a", "b"],
            "hole": [None, 1.0],
        }
    )
    columns = Columns(table, set())
    kinds = {key: (value.dtype, tuple(value.shape)) for key, value in columns.tensors.items()}
    assert kinds == {
        "number": (torch.int64, (2,)),
        "share": (torch.float32, (2,)),
        "flag": (torch.bool, (2,)),
        "vector": (torch.float32, (2, 2)),
        "matrix": (torch.int64, (2, 1, 2)),
    }
    assert columns.objects == {"ragged": [[1.0], [1.0, 2.0, 3.0]], "text": ["a", "b"], "hole": [None, 1.0]}


@pytest.mark.parametrize("folder", [None, "frames"])
def test_changing_an_item_does_not_change_the_cache(open_dataset, tmp_path, folder):
    view = select_dataset(open_dataset(), ALL, 1.0, cache_dir=folder and tmp_path / folder)
    before = {key: value.clone() for key, value in view[3].items() if isinstance(value, torch.Tensor)}
    for value in view[3].values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    assert all(torch.equal(view[3][key], value) for key, value in before.items())


def test_files_are_found_again_and_streams_are_shared(open_dataset, decoded, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    select_dataset(open_dataset(), Selection(("wrist",), resize=(32, 48)), 1.0, cache_dir=tmp_path)
    assert decoded == {WRIST} and f"in {tmp_path}" in caplog.text and "1 built now" in caplog.text
    decoded.clear()
    select_dataset(open_dataset(), Selection(("wrist",), resize=(32, 48)), 1.0, cache_dir=tmp_path)
    assert not decoded and "(found)" in caplog.text
    select_dataset(open_dataset(), ALL, 1.0, cache_dir=tmp_path)
    assert decoded == {SIDE, DEPTH}


@pytest.mark.parametrize("change", ["size", "far_m", "episodes", "video", "table", "info"])
def test_files_that_do_not_fit_are_not_used(open_dataset, dataset_root, decoded, tmp_path, change):
    selection, options = Selection(("wrist",), DepthSelection(far_m=1.0), resize=(32, 48)), {}
    select_dataset(open_dataset(), selection, 1.0, cache_dir=tmp_path)
    decoded.clear()
    expected = {WRIST, DEPTH}
    touched = None
    if change == "size":
        selection = Selection(("wrist",), DepthSelection(far_m=1.0), resize=(16, 48))
    elif change == "far_m":
        selection, expected = Selection(("wrist",), DepthSelection(far_m=0.9), resize=(32, 48)), {DEPTH}
    elif change == "episodes":
        options = {"episodes": [1]}
    elif change == "video":
        touched, expected = next((dataset_root / "videos" / WRIST).rglob("*.mp4")), {WRIST}
    elif change == "table":
        touched = next((dataset_root / "data").rglob("*.parquet"))
    else:
        info = dataset_root / "meta" / "info.json"
        info.write_text(info.read_text() + "\n")
    if touched is not None:
        os.utime(touched, ns=(1, touched.stat().st_mtime_ns + 1))
    select_dataset(open_dataset(**options), selection, 1.0, cache_dir=tmp_path)
    assert decoded == expected


def test_a_build_that_was_killed_is_done_again(tmp_path):
    def killed():
        def half(sinks):
            next(iter(sinks.values())).put(0, torch.zeros(5, 3, 4, 6, dtype=torch.uint8))
            os.kill(os.getpid(), signal.SIGKILL)

        open_stores(tmp_path, "data", [stream()], 1.0, half)

    child = fork.Process(target=killed)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "data").glob("observation*")] == [".part"]
    bound = 1.5 * stream().size / 1e9
    assert is_whole(open_stores(tmp_path, "other", [stream()], bound, build)), "what it left makes room, too"
    child = fork.Process(target=killed)
    child.start()
    child.join(30)
    assert is_whole(open_stores(tmp_path, "data", [stream()], 1.0, build))
    assert [path.suffix for path in (tmp_path / "data").glob("observation*")] == [".frames"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(sinks):
        raise RuntimeError("a video is damaged")

    with pytest.raises(RuntimeError, match="damaged"):
        open_stores(tmp_path, "data", [stream()], 1.0, fail)
    assert not list((tmp_path / "data").glob("observation*"))


def test_processes_that_start_at_once_build_once(tmp_path):
    log = tmp_path / "log"

    def slowly(sinks):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        build(sinks)

    def run():
        os._exit(0 if is_whole(open_stores(tmp_path / "cache", "data", [stream()], 1.0, slowly)) else 1)

    children = [fork.Process(target=run) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_a_file_of_the_wrong_length_is_built_again(tmp_path):
    del open_stores(tmp_path, "data", [stream()], 1.0, build)[WRIST]
    path = next((tmp_path / "data").glob("*.frames"))
    os.truncate(path, 100)
    assert is_whole(open_stores(tmp_path, "data", [stream()], 1.0, build))


def test_files_used_longest_ago_make_room_and_those_in_use_do_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    bound = 2.5 * stream().size / 1e9
    old, new = stream(depends=1), stream(depends=2)
    for each in (new, old):
        open_stores(tmp_path, "a", [each], bound, build)
    os.utime(tmp_path / "a" / f"{old.name}.frames", (1, 1))
    third = open_stores(tmp_path, "b", [stream(depends=3)], bound, build)
    assert "used longest ago" in caplog.text
    left = {path.stem for path in tmp_path.glob("*/*.frames")}
    assert left == {new.name, stream(depends=3).name}
    kept = open_stores(tmp_path, "a", [new], bound, build)
    with pytest.raises(UserError, match=r"needs 0.00 GB.*of which 0.00 are in use by running processes"):
        open_stores(tmp_path, "c", [stream(depends=4)], bound, build)
    assert is_whole(kept) and is_whole(third)


def test_what_is_larger_than_the_bound_says_so(open_dataset, tmp_path):
    with pytest.raises(
        UserError, match=r"needs 0.00 GB, modality.cache_max_gb allows 1e-06 in .*modality.resize"
    ):
        select_dataset(open_dataset(), ALL, 1e-6, cache_dir=tmp_path)


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda path: usage(100, 0, 100))
    with pytest.raises(UserError, match=r"needs 0.00 GB in .*: 0.00 GB free; .*modality.cache_dir"):
        open_stores(tmp_path, "data", [stream()], 1.0, build)


def test_a_disk_that_fills_up_is_said_too(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_cache.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device; free some"):
        open_stores(tmp_path, "data", [stream()], 1.0, build)
    assert not list((tmp_path / "data").glob("observation*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"modality.cache_dir .*file: .*; give a folder to write to"):
        open_stores(tmp_path / "file", "data", [stream()], 1.0, build)


def test_the_folder_is_below_lerobots_cache():
    from lerobot.utils.constants import HF_LEROBOT_HOME

    assert disk_cache.default_folder().is_relative_to(HF_LEROBOT_HOME)


def test_cache_of_a_split_dataset_is_of_its_episodes(open_dataset, tmp_path):
    parts = [open_dataset(episodes=list(range(2))), open_dataset(episodes=[2])]
    views = [select_dataset(part, ALL, 1.0, cache_dir=tmp_path) for part in parts]
    assert [len(view) for view in views] == [2 * FRAMES, FRAMES]
    assert [
        np.unique([int(view[i]["episode_index"]) for i in (0, len(view) - 1)]).tolist() for view in views
    ] == [
        [0, 1],
        [EPISODES - 1],
    ]
