"""Depth in colours: both ways between metres and colours, where the range comes from, and what cannot be meant."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.errors import UserError
from lerobot_ext.recording.visualize.depth import (
    LEVELS,
    PALETTE,
    UNKNOWN,
    DepthScale,
    choose_scale,
    parse_range,
    shrink,
    to_png,
)

INFO = {"video.depth_min": 0.1, "video.depth_max": 1.1}


def test_every_color_has_one_meaning():
    assert len(np.unique(PALETTE, axis=0)) == LEVELS + 1 and PALETTE[-1].tolist() == list(UNKNOWN)


@given(st.floats(0, 5), st.floats(0.01, 5), st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_pictures_colors_say_its_metres(near, span, shares):
    from PIL import Image

    scale = DepthScale(near, near + span)
    metres = np.array([[*(near + span * np.array(shares)), np.nan]], np.float32)
    with Image.open(io.BytesIO(to_png(scale.index(metres)))) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    assert rgb.tolist() == scale.color(metres).tolist()
    levels = np.array([[np.flatnonzero((pixel == PALETTE).all(axis=1))[0] for pixel in rgb[0]]], np.uint8)
    back = scale.metres(levels)
    assert np.isnan(back[0, -1])
    np.testing.assert_allclose(back[0, :-1], metres[0, :-1], atol=0.51 * scale.step_m + 1e-5)


def test_near_is_dark_far_is_bright_and_beyond_is_the_end():
    scale = DepthScale(0.5, 1.0)
    near, far, before, beyond, unknown = scale.color(np.array([[0.5, 1.0, 0.1, 9.0, np.nan]]))[0]
    assert near.sum() < far.sum()
    assert before.tolist() == near.tolist() and beyond.tolist() == far.tolist()
    assert unknown.tolist() == list(UNKNOWN) and list(UNKNOWN) not in scale.bar()[0].tolist()


def test_the_range_is_the_pictures_the_encoders_or_the_readers():
    images = [np.linspace(0.5, 1.0, 1000, dtype=np.float32)[None], np.full((1, 9), np.nan, np.float32)]
    auto = choose_scale(images, INFO)
    assert (auto.near_m, auto.far_m) == (pytest.approx(0.505, abs=1e-3), pytest.approx(0.995, abs=1e-3))
    assert auto.source == (
        "1st to 99th percentile of the pictures; the encoder's range is 0.10 to 1.10 m"
    )  # fmt: skip
    assert choose_scale(images, INFO, "recorded") == DepthScale(0.1, 1.1, "the encoder's range")
    assert choose_scale(images, None, "recorded") == DepthScale.of(images)
    assert choose_scale(images, INFO, (0.2, 0.3)) == DepthScale(0.2, 0.3, "as asked for")
    assert choose_scale([], None) == DepthScale(0, 1, "no pixel is known")
    for info in (
        {"video.depth_min": 1, "video.depth_max": 0},
        {"video.depth_min": "x", "video.depth_max": 1},
    ):
        assert DepthScale.recorded(info) is None


def test_shrinking_takes_pixels_and_no_means():
    levels = np.zeros((120, 640), np.uint8)
    levels[:, 320:] = 200
    small = shrink(levels, 160)
    assert small.shape == (30, 160) and set(np.unique(small)) == {0, 200}
    assert shrink(levels, 640) is levels


@pytest.mark.parametrize("text", ["", "1", "0.9,0.2", "a,b", "1,2,3", "nan,1", "-1,2", "0,inf"])
def test_a_range_that_cannot_be_meant_gets_a_sentence(text):
    with pytest.raises(UserError, match="expected auto, recorded, or two distances"):
        parse_range(text)


def test_ranges_that_can():
    assert (parse_range("auto"), parse_range("recorded"), parse_range("0.2,0.9")) == (
        "auto",
        "recorded",
        (0.2, 0.9),
    )
