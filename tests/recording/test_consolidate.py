"""Joined videos are the loose ones, frame by frame, whatever the codec; what cannot be joined stays loose."""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest
import small_recording as small
from lerobot.datasets.io_utils import load_info

from lerobot_ext.recording import consolidate, disk
from lerobot_ext.recording.consolidate import join_videos

FPS = 30
CODECS = {
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}, "yuv420p"),
    "h264 with B-frames": ("h264", {"g": "30", "bf": "3", "crf": "23"}, "yuv420p"),
    "hevc with B-frames": ("hevc", {"g": "12"}, "yuv420p"),
    "depth": ("hevc", {"g": "2", "x265-params": "lossless=1"}, "gray12le"),
}


def encode(path, codec, length, seed):
    name, options, pix_fmt = CODECS[codec]
    rng = np.random.default_rng(seed)
    pictures = (np.cumsum(rng.integers(0, 3, (length, 48, 64, 3)), 0) * 3).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, FPS, options=options)
        stream.pix_fmt, stream.width, stream.height = pix_fmt, 64, 48
        stream.time_base = Fraction(1, FPS)
        for index, picture in enumerate(pictures):
            if pix_fmt == "gray12le":
                frame = av.VideoFrame.from_ndarray(picture[..., 0].astype(np.uint16) * 16, format=pix_fmt)
            else:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray()) for frame in container.decode(video=0)]


@pytest.mark.parametrize("codec", CODECS)
def test_joined_videos_show_each_frame_at_its_time(tmp_path, codec):
    paths = [
        encode(tmp_path / f"{number}.mp4", codec, length, number)
        for number, length in enumerate((5, 3, 11, 31))
    ]
    join_videos(paths, tmp_path / "joined", FPS)
    frames = [picture for path in paths for _, picture in decoded(path)]
    found = decoded(tmp_path / "joined")
    assert len(found) == len(frames) == consolidate.count_frames(tmp_path / "joined") == 50
    for index, (time, picture) in enumerate(found):
        assert abs(time - index / FPS) < 1e-6
        assert np.array_equal(picture, frames[index])


def test_short_videos_with_b_frames_can_be_joined_where_lerobot_cannot(tmp_path):
    from lerobot.datasets.video_utils import concatenate_video_files

    lengths = (1, 5, 2, 11)
    paths = [
        encode(tmp_path / f"{n}.mp4", "h264 with B-frames", length, n) for n, length in enumerate(lengths)
    ]
    with pytest.raises(ValueError, match="Invalid argument"):
        concatenate_video_files(paths, tmp_path / "stock.mp4")
    join_videos(paths, tmp_path / "joined", FPS)
    assert len(decoded(tmp_path / "joined")) == sum(lengths)


def test_videos_at_another_rate_are_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", "depth", 5, 0)
    with pytest.raises(ValueError, match="its frames are not 10 a second"):
        join_videos([path, path], tmp_path / "joined", 10)


@pytest.fixture
def loose(tmp_path):
    """A recording of three episodes whose videos are loose."""
    root = tmp_path / "recording"
    small.record(small.create(root, given=small.features((small.SIDE,))), range(3))
    return root


def names(root):
    return [
        str(path.relative_to(root / "videos" / small.SIDE)) for path in sorted(root.glob("videos/*/*/*.mp4"))
    ]


LOOSE = [f"chunk-900/file-{number:03d}.mp4" for number in range(3)]


def test_too_little_room_leaves_the_videos_loose(loose, monkeypatch, caplog):
    monkeypatch.setattr(disk, "free_bytes", lambda root: 1000)
    assert not consolidate.consolidate(loose, load_info(loose), [small.SIDE], everything=True)
    assert names(loose) == LOOSE and "are free on the disk" in caplog.text
    assert not list(loose.rglob(".*"))
    small.check(loose, 3)


def test_a_joined_video_that_lacks_frames_is_not_used(loose, monkeypatch, caplog):
    join = consolidate.join_videos
    monkeypatch.setattr(consolidate, "join_videos", lambda paths, joined, fps: join(paths[1:], joined, fps))
    assert not consolidate.consolidate(loose, load_info(loose), [small.SIDE], everything=True)
    assert names(loose) == LOOSE
    assert f"{small.length_of(1) + small.length_of(2)} frames after joining, expected" in caplog.text
    small.check(loose, 3)


def test_videos_of_another_encoder_begin_a_file_of_their_own(loose):
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    other = RGBEncoderConfig(vcodec="h264", preset="medium", crf=10)
    dataset = LeRobotDataset.resume("test/small", root=loose, streaming_encoding=True, rgb_encoder=other)
    small.record(dataset, [3, 4])
    small.check(loose, 5)
    dataset.finalize()
    assert names(loose) == ["chunk-000/file-000.mp4", "chunk-000/file-001.mp4"]
    small.check(loose, 5)


def test_a_recording_whose_consolidation_fails_is_finished_all_the_same(loose, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(consolidate, "join_videos", fail)
    dataset = small.resume(loose)
    small.record(dataset, [3])
    with caplog.at_level(logging.WARNING):
        dataset.finalize()
    assert "stay one file an episode" in caplog.text
    assert names(loose) == [*LOOSE, "chunk-900/file-003.mp4"]
    small.check(loose, 4)
    monkeypatch.undo()
    small.resume(loose).finalize()  # a later one joins them
    assert names(loose) == ["chunk-000/file-000.mp4"]
    small.check(loose, 4)
