"""What can be seen in coded frames without decoding them, for the encoders that LeRobot uses."""

from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_ext.recording.repair.av1 import order_hint
from lerobot_ext.recording.repair.places import _counts
from lerobot_ext.recording.repair.videos import VideoFile, copy_whole_frames, frames, probe

CODECS = {
    "libsvtav1": ({"g": "2", "crf": "30", "preset": "12"}, "yuv420p"),
    "h264": ({"g": "2", "crf": "30"}, "yuv420p"),
    "libx265": ({"g": "2", "x265-params": "lossless=1:log-level=none"}, "gray12le"),
}
LENGTHS = (11, 9, 14)


def encode(path, codec, length, seed):
    options, pixels = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        stream.time_base = Fraction(1, 30)
        for i in range(length):
            picture = np.full((64, 96, 3), (13 * i + 40 * seed) % 250, np.uint8)
            picture[10:30, i : i + 20] = 200
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module", params=sorted(CODECS))
def joined(request, tmp_path_factory):
    """Three episodes in one file, as LeRobot joins them."""
    from lerobot.datasets.video_utils import concatenate_video_files

    folder = tmp_path_factory.mktemp(request.param)
    parts = [folder / f"{i}.mp4" for i in range(len(LENGTHS))]
    for i, part in enumerate(parts):
        encode(part, request.param, LENGTHS[i], i)
    concatenate_video_files(parts, folder / "joined.mp4")
    return folder / "joined.mp4"


def test_frames_and_beginnings_are_found(joined):
    video = probe(joined, "side")
    assert (len(video.times_s), video.announced, video.why) == (34, 34, "")
    assert video.starts == (0, 11, 20)
    assert video.holds(11, 9, 30) and not video.holds(11, 24, 30)
    np.testing.assert_allclose(video.times_s, np.arange(34) / 30, atol=1e-4)


def test_lost_frames_are_found_by_the_beginnings_and_never_shift_others(joined):
    video = probe(joined, "side")
    assert _counts(video, 0, 34, [11, 9, 14]) == [11, 9, 14]
    assert _counts(video, 0, 34, [11, 12, 14]) == [11, 9, 14]
    assert _counts(video, 0, 34, [12, 9, 14]) == [11, 9, 14]
    assert _counts(video, 0, 34, [12, 8, 14]) is None
    assert _counts(video, 0, 34, [20, 14]) is None


@pytest.mark.parametrize("missing", [1, 200, 700])
def test_a_cut_file_gives_the_frames_before_the_cut_as_they_were(joined, tmp_path, missing):
    whole = probe(joined, "side")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(joined.read_bytes()[:-missing])
    video = probe(cut, "side")
    count = len(video.times_s)
    assert 5 < count < 34 and video.announced == 34 and "it is cut after" in video.why
    copy_whole_frames(video, tmp_path / "copy.mp4")
    copied = probe(tmp_path / "copy.mp4", "side")
    assert copied.why == ""
    np.testing.assert_array_equal(copied.times_s[:count], whole.times_s[:count])
    expected = frames(joined, whole.times_s[:count], "rgb24")
    found = frames(copied.path, copied.times_s[:count], "rgb24")
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_single_frames_are_those_of_a_whole_decoding(joined):
    video = probe(joined, "side")
    everything = list(frames(joined, video.times_s, "rgb24"))
    for wanted in ([0, 1, 30], [5], [33], [2, 16, 17, 32]):
        for i, picture in zip(wanted, frames(joined, video.times_s[wanted], "rgb24"), strict=True):
            np.testing.assert_array_equal(picture, everything[i])
    with pytest.raises(ValueError, match="no frame at"):
        list(frames(joined, np.array([9.0]), "rgb24"))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\0\0\0\x1cftypisom" + bytes(1000)])
def test_what_is_no_video_says_so(tmp_path, content):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    video = probe(path, "side")
    assert not video.readable and video.why


@settings(max_examples=200, deadline=None)
@given(packet=st.binary(max_size=120))
def test_garbage_has_no_counter_or_a_small_one(packet):
    found = order_hint(packet)
    assert found is None or 0 <= found[0] < found[1] <= 256


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    dropped=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    known=st.booleans(),
)
def test_episodes_that_lack_frames_never_shift_the_others(lengths, dropped, known):
    """With the beginnings told up to multiples of 128, as in AV1."""
    shown = [max(1, length - lost) for length, lost in zip(lengths, dropped, strict=False)]
    edges = np.cumsum([0, *shown]).tolist()
    starts = [0]
    for edge in edges[1:-1]:
        if (edge - starts[-1]) % 128:
            starts.append(edge)
    video = VideoFile(
        None,
        "side",
        0,
        0,
        np.arange(edges[-1]) / 30,
        edges[-1],
        edges[-1],
        tuple(starts) if known else (),
        128,
    )
    counts = _counts(video, 0, edges[-1], lengths)
    if known and counts is not None:
        assert counts[: len(shown)] == shown[: len(counts)]
    elif shown == lengths:
        assert counts == lengths
