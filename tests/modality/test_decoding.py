import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames_pyav
from small_dataset import EPISODES, FPS, FRAMES

from lerobot_ext.modality import DepthSelection, Selection, decoding
from lerobot_ext.modality.view import select_dataset

DEPTH = "observation.images.side_depth"
TIMES = [[0.0], [1 / FPS], [2 / FPS], [3 / FPS], [39 / FPS], [38 / FPS], [5 / FPS, 4 / FPS, 4 / FPS, 9 / FPS]]
TIMES += [[i / FPS for i in range(40)], [0.0, 36 / FPS]]  # the last ones are sought one by one


def write_video(path, codec, options):
    import av

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for number in range(40):
            picture = np.full((64, 96, 3), 4 * number, np.uint8)
            picture[10:30, number : number + 20] = rng.integers(0, 255, 3)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libsvtav1", {"g": "2", "preset": "12"}),
        ("libx264", {"g": "2"}),
        ("libx264", {"g": "30", "bf": "3"}),
        ("libx265", {"g": "4", "x265-params": "open-gop=1:log-level=none"}),
    ],
)
def test_colour_equals_what_lerobot_decodes(tmp_path, codec, options):
    path = write_video(tmp_path / "video.mp4", codec, options)
    # From the start on: in the middle of an open group LeRobot's decoder finds no place to begin.
    theirs = decode_video_frames_pyav(path, [i / FPS for i in range(40)], 1e-4, return_uint8=True)
    for times in TIMES:
        wanted = theirs[[round(time * FPS) for time in times]].permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(decoding.read_frames(path, times, 1e-4, decoding.RGB_FORMAT), wanted)


def test_depth_equals_what_lerobot_decodes(dataset_root):
    path = next((dataset_root / "videos" / DEPTH).rglob("*.mp4"))
    for times in TIMES:
        theirs = decode_video_frames_pyav(path, times, 1e-4, is_depth=True)[:, 0].numpy()
        np.testing.assert_array_equal(decoding.read_frames(path, times, 1e-4, decoding.DEPTH_FORMAT), theirs)


@pytest.mark.parametrize("time", [0.5 / FPS, -1.0, 1000.0])
def test_a_time_without_a_frame_gives_none_and_costs_the_next_one_nothing(dataset_root, time):
    path = next((dataset_root / "videos" / DEPTH).rglob("*.mp4"))
    before = decoding._here().video(path)._margin
    assert decoding.read_frames(path, [time], 1e-4, decoding.DEPTH_FORMAT) is None
    assert decoding._here().video(path)._margin == before


def test_a_frame_that_is_missing_is_lerobots_error(open_dataset):
    view = select_dataset(open_dataset(tolerance_s=1e-9), Selection(("wrist",)))
    view.reader._columns.tensors["timestamp"] += 0.01
    with pytest.raises(FrameTimestampError, match="violate the tolerance"):
        view[0]


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = write_video(tmp_path / "video.mp4", "libx264", {"g": "2"})
    before = decoding.read_frames(path, [0.0], 1e-4, decoding.RGB_FORMAT)
    other = write_video(tmp_path / "other.mp4", "libx264", {"g": "2", "crf": "50"})
    shutil.move(other, path)
    assert not np.array_equal(decoding.read_frames(path, [0.0], 1e-4, decoding.RGB_FORMAT), before)


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_OPEN_FILES", 2)
    path = write_video(tmp_path / "0.mp4", "libx264", {"g": "2"})
    for number in range(4):
        copy = shutil.copy(path, tmp_path / f"copy{number}.mp4")
        decoding.read_frames(tmp_path / copy, [0.0], 1e-4, decoding.RGB_FORMAT)
    assert len(decoding._here()._videos) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_worker_reads_what_its_parent_has_open(open_dataset):
    view = select_dataset(open_dataset(), Selection(None, DepthSelection(), resize=(32, 48)))
    here = [view[i] for i in range(0, EPISODES * FRAMES, 7)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(view, range(0, EPISODES * FRAMES, 7)),
        num_workers=1,
        multiprocessing_context="fork",
        batch_size=None,
        timeout=60,
    )
    for mine, theirs in zip(here, loader, strict=True):
        for key in view.meta.camera_keys:
            assert torch.equal(mine[key], theirs[key]), key
