"""Arrows and discs of known forces: where they point, how long and large they are, what the page's script makes of them."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from described import SKIN
from hypothesis import given
from hypothesis import strategies as st
from press_dataset import CHANNELS

from lerobot_ext.recording.visualize.force import sensors_of
from lerobot_ext.recording.visualize.pad import (
    COLORS,
    FULL_ARROW,
    FULL_DISC,
    LEVELS,
    PadPicture,
    PadScale,
    round_up,
)

PAD = sensors_of(CHANNELS, {"sensors": {"skin": SKIN}})[0].pad


@pytest.fixture
def picture():
    return PadPicture(PAD, PadScale(arrow=40, disc=100), size=210)


def test_points_are_where_the_layout_says_with_y_up(picture):
    centre, right, up, left, down = picture.centers
    assert centre.tolist() == [105, 105]
    assert right[0] > centre[0] and left[0] < centre[0] and right[1] == centre[1]
    assert up[1] < centre[1] < down[1], "y grows downwards in a picture"
    assert right[0] - centre[0] == pytest.approx(picture.spacing)


def test_arrows_and_discs_of_known_forces(picture):
    vectors = np.zeros((5, 3))
    vectors[0] = (40, 0, 100)  # full to the right, full normal
    vectors[1] = (0, 20, -50)  # half upwards, half against the normal
    vectors[2] = (-80, 0, 0)  # beyond the scale
    full_arrow, full_disc = FULL_ARROW * picture.spacing, FULL_DISC * picture.spacing
    moves = picture.geometry(vectors)
    assert moves[0, :2].tolist() == pytest.approx([full_arrow, 0])
    assert moves[0, 2] == pytest.approx(full_disc) and moves[0, 3] == LEVELS - 1
    assert moves[1, :2].tolist() == pytest.approx([0, -full_arrow / 2]), "up is a smaller y"
    assert full_disc * 0.45 < moves[1, 2] < full_disc * 0.6 and moves[1, 3] == (LEVELS - 1) / 4
    assert moves[2, :2].tolist() == pytest.approx([-full_arrow, 0]), "an arrow ends at the scale"
    assert moves[3, :2].tolist() == [0, 0] and moves[3, 3] == (LEVELS - 1) / 2


def test_the_svg_has_them(picture):
    vectors = np.zeros((5, 3))
    vectors[0], vectors[1] = (40, 0, 100), (0, 20, -100)
    svg = re.search(r"<svg.*</svg>", picture.svg("t <1>", "µT", vectors, "s&n"))[0]
    root = ElementTree.fromstring(svg)
    discs = [e for e in root.iter("circle") if e.get("class") == "disc"]
    arrows = [e for e in root.iter("path") if e.get("class") == "arrow"]
    assert [d.get("fill") for d in discs[:3]] == [COLORS[-1], COLORS[0], COLORS[LEVELS // 2]]
    assert float(discs[0].get("r")) == pytest.approx(FULL_DISC * picture.spacing, abs=0.06)
    x, y, tip_x, tip_y = map(float, re.match(r"M(\S+) (\S+) L(\S+) (\S+)", arrows[0].get("d")).groups())
    assert [x, y] == pytest.approx([105, 105]) and tip_y == y
    assert tip_x - x == pytest.approx(FULL_ARROW * picture.spacing, abs=0.06)
    assert arrows[4].get("d") == "", "no arrow for no force"
    texts = " ".join(e.text for e in root.iter("text"))
    assert "µT along the pad" in texts and "-100 to +100 µT normal" in texts and "t <1>" in texts


@given(st.floats(1e-6, 1e6))
def test_a_scale_is_round_and_holds_what_it_was_made_of(value):
    rounded = round_up(value)
    assert value * (1 - 1e-9) <= rounded <= value * 1.51
    assert len(f"{rounded:.1e}".split("e")[0].rstrip("0")) <= 3


def test_the_scale_of_nothing_is_something():
    assert PadScale.of(np.zeros((3, 5, 3))) == PadScale(1, 1)
    assert PadScale.of(np.full((5, 3), np.nan)) == PadScale(1, 1)
    assert PadScale.of(np.array([[3, 4, -0.07]])) == PadScale(5, 0.08)


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")
def test_the_pages_script_moves_pads_pictures_and_cursors(described_page):
    pictures, page, path = described_page
    out = subprocess.run(
        ["node", str(path.parent / "page_dom.js"), str(page), "0", "30"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    states = json.loads(out)
    (pad,) = pictures.pads
    assert states["start"]["clock"] == f"{pictures.view.times_s[pad.peak]:.2f} s"
    assert states["force"] == "force norms"
    for frame in (0, 30):
        state, moves = states[str(frame)], pad.picture.geometry(pad.vectors[frame])
        for (radius, color), arrow, centre, move in zip(
            state["discs"], state["arrows"], pad.picture.centers, moves, strict=True
        ):
            assert float(radius) == pytest.approx(move[2], abs=0.06) and color == COLORS[int(move[3])]
            if np.hypot(*move[:2]) > 1.2:
                tip = [float(v) for v in re.match(r"M\S+ \S+ L(\S+) (\S+)", arrow).groups()]
                assert tip == pytest.approx(centre + move[:2], abs=0.16)
        x = [float(value) for value in state["cursors"]]
        share = pictures.view.times_s[frame] / pictures.view.times_s[-1]
        assert x[0] == pytest.approx(46 + share * (1200 - 130 - 46), abs=1)
    assert states["0"]["shots"] != states["30"]["shots"]
