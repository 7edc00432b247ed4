"""Whose a column of the force feature is, in which unit, tared by how much: with what was recorded, and without."""

import numpy as np
import pytest
from described import BASELINE, LAYOUT_MM, SKIN
from hypothesis import given
from hypothesis import strategies as st
from press_dataset import CHANNELS

from lerobot_ext.recording.journal import EpisodeRecord
from lerobot_ext.recording.visualize.force import sensors_of

WRENCH = [f"wrist.{name}" for name in ("fx", "fy", "fz", "tx", "ty", "tz")]
UNITS = ["N"] * 3 + ["Nm"] * 3


def test_each_sensor_has_its_columns_unit_and_baseline():
    record = EpisodeRecord(0, baseline={"skin": BASELINE}, drift={"skin": 4.2})
    info = {"sensors": {"skin": SKIN, "wrist": {"unit": "N", "units": UNITS}}}
    skin, wrist = sensors_of([*CHANNELS, *WRENCH], info, record)
    assert skin.columns == tuple(range(15)) and wrist.columns == tuple(range(15, 21))
    assert skin.unit == "µT" and skin.groups() == [("µT", list(range(15)))]
    assert wrist.groups() == [("N", [0, 1, 2]), ("Nm", [3, 4, 5])]
    assert skin.notes() == [
        "tared at the episode's start; subtracted µT: "
        + ", ".join(f"{channel} {value:.4g}" for channel, value in zip(skin.channels, BASELINE, strict=True)),
        "zero moved by 4.2 µT until the episode's end",
    ]
    assert "baseline not recorded" in wrist.notes()[0]
    assert skin.pad is not None and not skin.pad.assumed and wrist.pad is None
    np.testing.assert_array_equal(skin.pad.positions_mm, LAYOUT_MM)


def test_a_dataset_that_says_nothing_has_its_sensors_all_the_same():
    skin, plain = sensors_of([*CHANNELS, "grip"])
    assert skin.unit == "unit unknown" and skin.groups() == [("", list(range(15)))]
    assert skin.pad.assumed and skin.pad.positions_mm.shape == (5, 2)
    assert (plain.name, plain.channels, plain.pad) == ("force", ("grip",), None)


def test_a_calibrated_sensors_baseline_has_the_raw_channels():
    metadata = {"unit": "N", "units": ["N", "N"], "calibration": "pad.json", "raw_channels": ["a", "b", "c"],
                "raw_units": ["uT", "uT", "V"]}  # fmt: skip
    record = EpisodeRecord(0, baseline={"pad": [1.0, 2.0, 3.0]})
    (pad,) = sensors_of(["pad.fx", "pad.fz"], {"sensors": {"pad": metadata}}, record)
    assert pad.notes() == [
        "tared at the episode's start; subtracted: a 1 µT, b 2 µT, c 3 V",
        "calibration: pad.json",
    ]


def test_the_points_tangents_are_turned_into_the_pads():
    turned = [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[-1, 0], [0, 1]], [[0, -1], [-1, 0]], [[1, 0], [0, -1]]]
    (skin,) = sensors_of(CHANNELS, {"sensors": {"skin": SKIN | {"layout_axes": turned}}})
    samples = np.tile([1, 2, 3], 5).astype(np.float32)
    expected = [[1, 2, 3], [2, 1, 3], [-1, 2, 3], [-2, -1, 3], [1, -2, 3]]
    np.testing.assert_array_equal(skin.pad.vectors(samples), expected)
    np.testing.assert_array_equal(skin.pad.vectors(np.stack([samples, samples])), [expected, expected])


def test_an_array_of_pressures_is_a_pad_without_tangents():
    names = [f"tip.{i}" for i in range(4)]
    layout = [[0, 0], [2, 0], [0, 2], [2, 2]]
    (tip,) = sensors_of(names, {"sensors": {"tip": {"layout_mm": layout}}})
    np.testing.assert_array_equal(tip.pad.vectors(np.arange(4)), [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]])


odd = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(odd, odd, odd, odd, odd)
def test_odd_metadata_is_no_reason_to_fail(unit, units, layout, axes, raw):
    metadata = {"unit": unit, "units": units, "layout_mm": layout, "layout_axes": axes, "raw_channels": raw,
                "raw_units": units}  # fmt: skip
    for info in ({"sensors": {"skin": metadata}}, {"sensors": unit}, unit):
        (skin,) = sensors_of(
            CHANNELS, info, EpisodeRecord(0, baseline={"skin": BASELINE}, drift={"skin": raw})
        )
        assert len(skin.units) == 15 and skin.notes()
        assert skin.pad is not None
        assert skin.pad.vectors(np.zeros(15)).shape == (*skin.pad.positions_mm.shape[:1], 3)


@pytest.mark.parametrize("layout", [[[0, 0]] * 4, [[0, float("nan")]] * 5, "centre", [[1]] * 5, []])
def test_a_layout_that_cannot_be_meant_is_the_boards(layout):
    (skin,) = sensors_of(CHANNELS, {"sensors": {"skin": SKIN | {"layout_mm": layout}}})
    assert skin.pad.assumed
