"""Every complete frame is found, and none is invented, whatever else is in the stream."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.sensors.anyskin_frames import FrameFinder

microtesla = st.floats(-2000, 2000, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
values = st.lists(microtesla, min_size=20, max_size=20).map(lambda v: np.array(v, "<f4").reshape(5, 4))


def encode(frame: np.ndarray) -> bytes:
    return frame.astype("<f4").tobytes() + b"\r\n"


def stream_of(*parts: bytes, cuts: list[int] | None = None) -> list[np.ndarray]:
    stream, finder, found = b"".join(parts), FrameFinder(), []
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts or [])})
    for start, end in zip(edges, edges[1:], strict=False):
        for frame in finder.feed(stream[start:end]):
            assert stream[frame.start : frame.start + 80] == frame.values.tobytes()
            found.append(frame.values)
    return found


def same(found: list[np.ndarray], sent: list[np.ndarray]) -> bool:
    return [f.tobytes() for f in found] == [s.astype("<f4").tobytes() for s in sent]


@given(
    garbage=st.binary(max_size=300),
    sent=st.lists(values, min_size=3, max_size=8),
    cuts=st.lists(st.integers(0)),
)
def test_after_garbage_every_frame_but_the_first_is_found(garbage, sent, cuts):
    found = stream_of(garbage, *map(encode, sent), cuts=cuts)
    # The first one counts only if the garbage happens to end like a frame.
    assert same(found, sent[1:]) or (garbage.endswith(b"\r\n") and same(found, sent))


@given(sent=st.lists(values, min_size=4, max_size=8), keep=st.integers(0, 81))
def test_joining_in_the_middle_of_a_frame_loses_that_frame_only(sent, keep):
    tail = encode(sent[0])[81 - keep :]
    assert same(stream_of(tail, *map(encode, sent[1:])), sent[1:]) or keep == 0


@given(sent=st.lists(values, min_size=8, max_size=10), at=st.integers(0, 80), lost=st.integers(1, 30))
def test_a_cut_frame_is_dropped_and_its_neighbours_are_kept(sent, at, lost):
    cut = encode(sent[3])
    cut = cut[:at] + cut[at + lost :]
    found = stream_of(*map(encode, sent[:3]), cut, *map(encode, sent[4:]))
    kept = [f.tobytes() for f in found]
    expected = [s.astype("<f4").tobytes() for s in sent]
    assert all(frame in expected for frame in kept)
    assert kept[:2] == expected[1:3]
    assert kept[-3:] == expected[-3:]


def with_end_inside(position: int) -> np.ndarray:
    """A frame whose number at `position` is 32 + something and contains 0x0D 0x0A, at the given byte of four."""
    frame = np.full(20, 32.5, "<f4")
    number = bytearray(frame[position // 4 : position // 4 + 1].tobytes())
    number[position % 4 : position % 4 + 2] = b"\r\n"
    frame[position // 4] = np.frombuffer(bytes(number), "<f4")[0]
    return frame.reshape(5, 4)


@given(number=st.integers(0, 19), byte=st.integers(0, 1), count=st.integers(4, 12), skip=st.integers(0, 81))
def test_an_end_inside_every_frame_at_the_same_place_does_not_mislead(number, byte, count, skip):
    frame = with_end_inside(4 * number + byte)
    assert b"\r\n" in frame.tobytes()
    stream = encode(frame) * count
    found = stream_of(stream[skip:])
    assert len(found) >= count - 2
    assert all(f.tobytes() == frame.tobytes() for f in found)


def test_numbers_that_cannot_be_are_rejected_and_the_boundary_is_kept():
    good, bad = np.full((5, 4), 3.0), np.full((5, 4), 3.0)
    finder = FrameFinder()
    found = []
    for frame in (good, good, good):
        found += finder.feed(encode(frame))
    for wrong in (np.nan, np.inf, 1e9, 1e-30):
        bad[2, 1] = wrong
        assert finder.feed(encode(bad)) == []
        found += finder.feed(encode(good))
    assert finder.rejected == 4 and finder.lost_boundary == 0
    assert len(found) == 2 + 4


def test_garbage_alone_gives_nothing_and_is_not_hoarded():
    finder = FrameFinder()
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert finder.feed(rng.bytes(500)) == []
    assert len(finder._buffer) < 4 * finder.size


def test_other_numbers_of_magnetometers():
    frame = np.arange(8, dtype="<f4").reshape(2, 4)
    finder = FrameFinder(num_magnetometers=2)
    found = finder.feed(b"\r\n" + (frame.tobytes() + b"\r\n") * 3)
    assert [f.values.tobytes() for f in found] == [frame.tobytes()] * 3
