"""A full disk, a folder that cannot be written: refused or stopped with numbers, and what was saved is safe."""

import ctypes
import errno
import os
import resource
import signal
from contextlib import suppress

import killed
import pytest
import small_recording as small

from lerobot_ext.recording import disk
from lerobot_ext.recording.disk import DiskSpaceError, NotWritableError, SpaceWatch

FEATURES = small.features((small.SIDE, small.DEPTH))
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_PRIVATE, MS_REC = 1, 32, 4096, 1 << 18, 1 << 14
libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> bool:
    """Give this process mounts of its own; False where the system does not let it."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
        return False
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    return not mount("none", "/", None, MS_REC | MS_PRIVATE)


def mount(source, target, kind=None, flags=0, options=None) -> int:
    texts = (None if text is None else str(text).encode() for text in (source, target, kind))
    return libc.mount(*texts, ctypes.c_ulong(flags), None if options is None else options.encode())


def can_mount() -> bool:
    def try_it():
        os._exit(0 if own_mounts() else 3)

    child = os.fork()
    if child == 0:
        try_it()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="this system lets nobody mount a file system of his own"
)


def small_disk(folder, megabytes):
    """Mount a disk of that size on `folder`, for this process alone."""
    folder.mkdir()
    assert own_mounts()
    assert not mount("tmpfs", folder, "tmpfs", 0, f"size={megabytes}m")
    return folder


def fill(folder, leave):
    """Fill the disk up to `leave` bytes, as far as the encoders, which write too, leave it to be filled."""
    with suppress(OSError), open(folder / "filler", "wb") as file:
        file.write(bytes(max(0, disk.free_bytes(folder) - leave)))


def test_free_space_and_estimates_are_numbers_that_make_sense(tmp_path):
    assert (
        0 < disk.free_bytes(tmp_path / "not" / "there") == pytest.approx(disk.free_bytes(tmp_path), rel=0.1)
    )
    colour = {"dtype": "video", "shape": (480, 640, 3)}
    depth = {"dtype": "video", "shape": (480, 640, 1), "info": {"is_depth_map": True}}
    state = {"dtype": "float32", "shape": (6,)}
    one = disk.needed_bytes({"a": colour}, 30, 10)
    assert 5e6 < one < 50e6
    assert disk.needed_bytes({"a": depth}, 30, 10) > 5 * one
    assert disk.needed_bytes({"a": colour}, 30, 10, streaming=False) > 10 * one
    assert 0 < disk.needed_bytes({"a": state}, 30, 10) < 50_000
    assert disk.needed_bytes({"a": colour, "b": state}, 30, 20) > 2 * one


def test_after_the_first_episodes_the_measured_size_counts(tmp_path):
    watch = SpaceWatch(tmp_path, FEATURES, small.FPS, streaming=True)
    assert watch.expected() == disk.needed_bytes(FEATURES, small.FPS)
    watch.saved(1000, 10)
    watch.saved(4000, 20)
    assert watch.expected() == int(1.2 * 200 * 20)


def test_an_episode_that_does_not_fit_is_refused_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda root: 100_000_000)
    with pytest.raises(DiskSpaceError, match=r"100 MB are free .* about 50 MB and 60 MB are kept") as caught:
        disk.check_space(tmp_path, 50_000_000, reserve=60_000_000)
    assert caught.value.errno == errno.ENOSPC and "--dataset.root" in str(caught.value)
    disk.check_space(tmp_path, 50_000_000, reserve=50_000_000)
    root = tmp_path / "recording"
    dataset = small.create(root, given=FEATURES)
    with pytest.raises(DiskSpaceError, match="are free on the disk"):
        small.add_frames(dataset, 0)
    assert not dataset.has_pending_frames() and not list(root.glob("tmp*"))
    monkeypatch.undo()
    small.record(dataset, [0])
    small.check(root, 1)


def test_a_disk_that_fills_up_ends_the_episode_and_saves_it(tmp_path, monkeypatch):
    root = tmp_path / "recording"
    dataset = small.create(root, given=FEATURES)
    small.record(dataset, [0])
    small.add_frames(dataset, 1, 3)
    monkeypatch.setattr(disk, "CHECK_EVERY_S", 0)
    monkeypatch.setattr(disk, "free_bytes", lambda root: 10_000_000)
    with pytest.raises(DiskSpaceError, match=r"10 MB are left .* episode 1 was saved with the 3 frames"):
        dataset.add_frame(small.frame(1, 3))
    monkeypatch.undo()
    dataset.finalize()
    loaded = small.load(root)
    assert loaded.meta.total_episodes == 2 and loaded.meta.episodes[1]["length"] == 3
    small.check_item(loaded[len(loaded) - 1], 1, 2)


@needs_mounts
@pytest.mark.parametrize("streaming", [True, False])
def test_a_disk_that_is_full_in_the_middle_of_a_save(tmp_path, streaming):
    def record():
        folder = small_disk(tmp_path / "disk", 16)
        disk.RESERVE_BYTES = 0
        SpaceWatch.expected = lambda self: 0
        root = folder / "recording"
        dataset = small.create(root, streaming=streaming, given=FEATURES)
        small.record(dataset, [0])
        for leave in (0, 8192):
            small.add_frames(dataset, 1)
            fill(folder, leave)
            with pytest.raises(
                DiskSpaceError, match=r"is full .*Episode 1 is dropped, the 1 episodes before it are"
            ):
                dataset.save_episode()
            (folder / "filler").unlink()
            assert {path.name for path in root.iterdir()} <= {"data", "meta", "videos", "images"}
            small.check(root, 1)
        small.record(dataset, [1])
        fill(folder, 8192)
        dataset.finalize()  # too little room to join the videos
        small.check(root, 2)

    assert killed.run(record)


@needs_mounts
def test_a_disk_that_is_full_while_frames_come(tmp_path):
    def record():
        folder = small_disk(tmp_path / "disk", 16)
        disk.RESERVE_BYTES = 3_000_000
        disk.CHECK_EVERY_S = 0
        root = folder / "recording"
        dataset = small.create(root, given=FEATURES)
        small.record(dataset, [0])
        small.add_frames(dataset, 1, 4)
        fill(folder, 1_400_000)
        with pytest.raises(DiskSpaceError, match="episode 1 was saved with the 4 frames it had"):
            dataset.add_frame(small.frame(1, 4))
        with pytest.raises(DiskSpaceError, match="are free on the disk"):
            dataset.add_frame(small.frame(2, 0))
        dataset.finalize()
        assert small.load(root).meta.total_episodes == 2

    assert killed.run(record)


def test_a_file_that_may_not_grow_is_an_error_that_loses_nothing(tmp_path):
    """RLIMIT_FSIZE stands in for a quota where nothing can be mounted."""

    def record():
        root = tmp_path / "recording"
        dataset = small.create(root, given=FEATURES)
        small.record(dataset, [0])
        small.add_frames(dataset, 1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(
            (OSError, RuntimeError), match="episode 1 is dropped, the 1 episodes before it are safe"
        ):
            dataset.save_episode()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        small.check(root, 1)
        assert not list(root.glob("tmp*")) and not list(root.rglob(".*"))
        small.record(dataset, [1])
        dataset.finalize()
        small.check(root, 2)

    assert killed.run(record)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_frame(tmp_path):
    root = tmp_path / "recording"
    dataset = small.create(root, given=FEATURES)
    small.record(dataset, [0])
    dataset.finalize()

    def try_it():
        if os.geteuid() == 0:  # whom permissions do not stop
            if not own_mounts() or mount(root, root, None, MS_BIND):
                return
            assert not mount(None, root, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
        else:
            for folder in (root, root / "meta"):
                folder.chmod(0o555)
        writer = small.resume(root)
        with pytest.raises(NotWritableError, match=r"cannot be written .*chmod"):
            small.add_frames(writer, 1, 1)
        small.check(root, 1)

    try:
        assert killed.run(try_it)
    finally:
        for folder in (root, root / "meta"):
            folder.chmod(0o755)
