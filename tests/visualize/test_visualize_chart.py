import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lerobot_ext.recording.visualize.chart import Chart, Line, svg_chart, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_ticks_are_round_distinct_and_within_the_axis(low, span, count):
    marks = ticks(low, low + span, count)
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value, _ in marks)
    assert len({label for _, label in marks}) == len(marks) <= count + 2
    assert all(float(label) == pytest.approx(value, abs=1e-6 * span) for value, label in marks)


def test_a_chart_is_well_formed_and_names_its_curves():
    times = np.linspace(0, 3, 20)
    lines = [Line("a <b> & c", np.sin(times), "#123456"), Line("flat", np.zeros(20), "#654321", dashed=True)]
    root = ElementTree.fromstring(svg_chart(Chart("t & u", times, lines, marks_s=[1.0]), 600, 200))
    texts = [element.text for element in root.iter("text")]
    assert {"a <b> & c", "flat", "t & u"} <= set(texts)
    colors = [element.get("stroke") for element in root.iter("polyline")]
    assert "#123456" in colors and "#654321" in colors


@pytest.mark.parametrize("values", [np.zeros(3), np.array([np.nan] * 3), np.array([1, np.nan, 3])])
def test_flat_and_missing_values_are_drawn(values):
    svg = svg_chart(Chart("c", np.arange(3.0), [Line("v", values, "#000000")]), 300, 100)
    assert "nan" not in svg
