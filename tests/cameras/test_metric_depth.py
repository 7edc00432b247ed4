from fractions import Fraction

import numpy as np
import pytest

from lerobot_ext.cameras.depth import MetricDepth

COUNTS = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("unit", [Fraction(1, 1000), Fraction(1, 10000), Fraction(1, 4000), Fraction(1, 200)])
def test_every_count_becomes_the_nearest_millimetre_and_too_far_becomes_unknown(unit):
    metric = MetricDepth(float(np.float32(float(unit))), "uint16")(COUNTS)
    exact = [round(count * unit * 1000) for count in range(65536)]  # Fraction rounds ties to even
    expected = [millimetres if millimetres <= 65535 else 0 for millimetres in exact]
    assert metric.shape == (256, 256, 1) and metric.dtype == np.uint16
    np.testing.assert_array_equal(metric.ravel(), expected)


def test_metres_keep_a_tenth_of_a_millimetre():
    metric = MetricDepth(float(np.float32(0.0001)), "float32")(np.array([[3004, 0]], np.uint16))
    assert metric.dtype == np.float32 and metric.shape == (1, 2, 1)
    np.testing.assert_array_equal(metric.ravel(), np.array([0.3004, 0], np.float32))


def test_the_result_is_a_new_array_also_without_conversion():
    counts = np.ones((2, 2), np.uint16)
    metric = MetricDepth(0.001, "uint16")(counts)
    metric[:] = 5
    assert counts.max() == 1


@pytest.mark.parametrize("unit", [0.0, -0.001, 2.0])
def test_an_impossible_unit_is_refused(unit):
    with pytest.raises(ValueError, match="depth unit"):
        MetricDepth(unit, "uint16")


@pytest.mark.parametrize(("unit", "dtype"), [(0.001, "uint16"), (0.0001, "uint16"), (0.0001, "float32")])
def test_the_ends_of_the_range_count_and_what_is_outside_does_not(unit, dtype):
    counts = np.array([[round(metres / unit) for metres in (0.299, 0.3, 0.5, 0.7, 0.701)] + [0]], np.uint16)
    metric = MetricDepth(float(np.float32(unit)), dtype, 0.3, 0.7)(counts).ravel()
    expected = np.array([0, 0.3, 0.5, 0.7, 0, 0]) * (1000 if dtype == "uint16" else 1)
    np.testing.assert_allclose(metric, expected, rtol=1e-6)
