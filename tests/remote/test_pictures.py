"""A picture that was uint8 is that uint8 again on the wire, and everything else is left as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lerobot.policies.utils import prepare_observation_for_inference

from simplify_work.local.batch import observation_from_batch, quantised, task_of
from simplify_work.wire.errors import FeatureMismatch
from simplify_work.wire.features import DTYPES, FeatureSpec

IMAGE, DEPTH, STATE = "observation.images.side", "observation.images.side_depth", "observation.state"
INPUTS = (
    FeatureSpec(STATE, "vector", (2,), DTYPES["vector"]),
    FeatureSpec(IMAGE, "image", (4, 5, 3), DTYPES["image"]),
    FeatureSpec(DEPTH, "depth", (4, 5, 1), DTYPES["depth"]),
)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_all_256_values_come_back_exactly(library):
    values = np.arange(256, dtype=np.uint8)
    scaled = (torch.from_numpy(values).type(torch.float32) / 255).numpy()
    if library == "numpy":
        scaled = values.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(quantised(scaled), values)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(4, 9), st.integers(4, 9), st.just(3))),
    st.sampled_from([np.uint16, np.float32]),
)
def test_what_lerobot_prepares_is_undone(image, depth_dtype):
    height, width = image.shape[:2]
    raw = {
        STATE: np.array([1.5, -2.25], np.float32),
        IMAGE: image,
        DEPTH: np.arange(height * width).reshape(height, width, 1).astype(depth_dtype) * 10,
    }
    batch = prepare_observation_for_inference(dict(raw), torch.device("cpu"), "press", "so100")
    found = observation_from_batch(batch, INPUTS, "act")
    assert set(found) == set(raw)
    for name, array in raw.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.c_contiguous


def test_a_picture_that_never_was_uint8_stays_float():
    image = np.random.default_rng(0).random((3, 40, 50), np.float32)
    batch = {STATE: np.zeros(2, np.float32), IMAGE: image, DEPTH: np.zeros((4, 5), np.uint16)}
    found = observation_from_batch(batch, INPUTS, "act")
    assert found[IMAGE].dtype == np.float32
    np.testing.assert_array_equal(found[IMAGE], image.transpose(1, 2, 0))


def test_a_cameras_own_arrays_are_sent_as_they_are():
    image = np.zeros((40, 50, 3), np.uint8)
    batch = {STATE: np.zeros((1, 2), np.float64), IMAGE: image, DEPTH: np.zeros((4, 5), np.float64)}
    found = observation_from_batch(batch, INPUTS, "act")
    assert np.shares_memory(found[IMAGE], image)
    assert (found[STATE].dtype, found[STATE].shape) == (np.float32, (2,))
    assert (found[DEPTH].dtype, found[DEPTH].shape) == (np.float32, (4, 5, 1))


def test_a_batch_of_two_is_refused():
    with pytest.raises(FeatureMismatch, match=f"{IMAGE} has shape"):
        observation_from_batch({IMAGE: np.zeros((2, 3, 40, 50), np.float32)}, INPUTS, "act")


@pytest.mark.parametrize(
    ("batch", "task"),
    [({}, ""), ({"task": "a"}, "a"), ({"task": ["a"]}, "a"), ({"task": []}, ""), ({"task": None}, "")],
)
def test_the_task_is_a_string_or_a_list_of_one(batch, task):
    assert task_of(batch) == task
