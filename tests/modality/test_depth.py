import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lerobot_ext.modality import DepthSelection
from lerobot_ext.modality.depth import (
    NEAREST_GRAY,
    DepthRange,
    clean,
    depth_image,
    gray,
    resize_depth,
    to_metres,
)

SELECTION = DepthSelection(near_m=0.2, far_m=1.0)
LIMITS = DepthRange(0.1, 1.1)

maps = hnp.arrays(np.uint16, st.tuples(st.just(1), st.integers(2, 12), st.integers(2, 12)))


@settings(max_examples=50, deadline=None)
@given(maps)
def test_millimetres_and_metres_give_the_same_image(millimetres):
    metres = millimetres.astype(np.float32) / 1000
    for size in (None, (3, 4)):
        images = [
            depth_image(depth, SELECTION, LIMITS, size)
            for depth in (millimetres, torch.from_numpy(millimetres), metres, torch.from_numpy(metres))
        ]
        for image in images[1:]:
            assert torch.equal(images[0], image)
        assert images[0].shape[0] == 3 and images[0].min() >= 0 and images[0].max() <= 1


@settings(max_examples=30, deadline=None)
@given(maps)
def test_what_a_recording_gives_back_looks_like_what_the_camera_saw(millimetres):
    from lerobot.datasets.depth_utils import dequantize_depth, quantize_depth

    scale = {"depth_min": 0.1, "depth_max": 1.1, "use_log": False}
    codes = quantize_depth(millimetres.transpose(1, 2, 0), video_backend=None, **scale)
    recorded = dequantize_depth(torch.from_numpy(codes[None].astype(np.int32)), output_unit="m", **scale)
    seen = depth_image(millimetres, SELECTION, LIMITS)
    # Within half a step of the encoder, except where a millimetre decides between its lowest code and none.
    decided = torch.from_numpy(np.abs(millimetres.astype(int) - 100) > 1)
    difference = (depth_image(recorded, SELECTION, LIMITS) - seen).abs().where(decided, 0.0)
    assert difference.max() <= 0.6 / 4095 / (SELECTION.far_m - SELECTION.near_m)


def test_gray_marks_missing_pixels_and_clips():
    metres = torch.tensor([[[0.0, 0.1, 0.2, 0.6, 1.0, 5.0]]])
    expected = [0.0, NEAREST_GRAY, NEAREST_GRAY, (1 + NEAREST_GRAY) / 2, 1.0, 1.0]
    image = gray(metres, 0.2, 1.0)
    assert image.shape == (3, 1, 6)
    torch.testing.assert_close(image, torch.tensor(expected).expand(3, 1, 6))


def test_clean_forgets_what_is_no_measurement():
    metres = torch.tensor([0.0, 0.1, -1.0, math.nan, math.inf, 0.5, 3.0])
    torch.testing.assert_close(clean(metres, LIMITS), torch.tensor([0, 0, 0, 0, 0, 0.5, 1.1]))


def test_integers_are_millimetres():
    assert to_metres(np.array([1500], np.uint16)).tolist() == [1.5]
    assert to_metres(np.array([1.5], np.float64)).tolist() == [1.5]


def test_missing_pixels_do_not_pull_the_average_down():
    metres = torch.full((1, 8, 8), 0.8)
    metres[:, ::4] = 0
    small = resize_depth(metres, (2, 2))
    torch.testing.assert_close(small, torch.full((1, 2, 2), 0.8))


def test_a_pixel_that_covers_mostly_nothing_is_missing():
    metres = torch.zeros(1, 8, 8)
    metres[:, :, :1] = 0.8
    assert resize_depth(metres, (2, 2)).max() == 0


def test_leading_dimensions_are_kept():
    image = depth_image(torch.rand(2, 5, 1, 8, 10), SELECTION, LIMITS, (4, 5))
    assert image.shape == (2, 5, 3, 4, 5)
