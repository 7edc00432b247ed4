"""The Rerun recording, read back: metric depth, arrows and discs of known forces, curves, ages."""

import numpy as np
import pytest
import rrd
from described import DROPPED, LAYOUT_MM, OLD_FRAME
from press_dataset import FRAMES, H, W, frame

from lerobot_ext.recording.visualize.depth import UNKNOWN, DepthScale
from lerobot_ext.recording.visualize.pad import FULL_ARROW, PadScale
from lerobot_ext.recording.visualize.rerun import write_rrd
from lerobot_ext.recording.visualize.rerun_parts import RGB, DepthPicture, PadDrawing, bar_picture


@pytest.fixture(scope="module")
def recording(described_page, tmp_path_factory):
    path = tmp_path_factory.mktemp("rerun") / "episode.rrd"
    write_rrd(described_page[0], path)
    return path


def test_everything_is_in_it(recording):
    there = rrd.entities(recording)
    assert {"images/side", "images/side_depth", "images/side_depth/unknown", "images/side_depth_scale", "images/wrist",
            "pad/skin/arrows", "pad/skin/discs", "force/skin", "force_norm/skin", "ages_ms", "lost", "state",
            "action", "task"} <= there  # fmt: skip


def test_depth_is_metric_with_its_range_and_unknown_pixels(recording, described_page):
    scale = described_page[0].scales["observation.images.side_depth"]
    assert rrd.values(recording, "images/side_depth", "DepthImage:meter")[0] == [1000.0]
    (ends,) = rrd.values(recording, "images/side_depth", "DepthImage:depth_range")[0]
    assert ends == pytest.approx([1e3 * scale.near_m, 1e3 * scale.far_m])
    truth = frame(20)["observation.images.side_depth"][..., 0]
    buffer = rrd.with_frames(recording, "images/side_depth", "DepthImage:buffer")[20][0]
    depth = np.frombuffer(bytes(buffer), np.uint16).reshape(H, W)
    np.testing.assert_allclose(depth[truth > 0].astype(int), truth[truth > 0].astype(int), atol=3)
    mask = rrd.with_frames(recording, "images/side_depth/unknown", "SegmentationImage:buffer")[20][0]
    np.testing.assert_array_equal(np.frombuffer(bytes(mask), np.uint8).reshape(H, W), truth == 0)


def test_arrows_and_discs_are_the_recorded_forces(recording, described_page):
    (pad,) = described_page[0].pads
    arrows = rrd.with_frames(recording, "pad/skin/arrows", "Arrows2D:vectors")
    radii = rrd.with_frames(recording, "pad/skin/discs", "Points2D:radii")
    origins = rrd.values(recording, "pad/skin/arrows", "Arrows2D:origins")[0]
    np.testing.assert_allclose(origins, np.array(LAYOUT_MM) * (1, -1))
    assert set(arrows) == set(range(FRAMES))
    for at in (0, pad.peak):
        full = FULL_ARROW * 7 / pad.picture.scale.arrow
        np.testing.assert_allclose(arrows[at], pad.vectors[at, :, :2] * (full, -full), atol=1e-3)
        assert np.argmax(radii[at]) == np.argmax(np.abs(pad.vectors[at, :, 2]))


def test_curves_have_their_names_and_values(recording):
    assert rrd.values(recording, "force/skin", "SeriesLines:names")[0][:2] == ["m0_x", "m0_y"]
    force = rrd.with_frames(recording, "force/skin", "Scalars:scalars")
    np.testing.assert_allclose(force[22], frame(22)["observation.force"], atol=1e-4)
    names = rrd.values(recording, "ages_ms", "SeriesLines:names")[0]
    ages = rrd.with_frames(recording, "ages_ms", "Scalars:scalars")
    assert ages[OLD_FRAME][names.index("side")] == 70 and ages[0][names.index("skin")] == 3
    lost = rrd.values(recording, "lost", "SeriesLines:names")[0].index("side.dropped")
    counts = rrd.with_frames(recording, "lost", "Scalars:scalars")
    assert [at for at in range(FRAMES) if counts[at][lost]] == list(DROPPED)


def test_depth_of_either_unit_is_the_same_picture(tmp_path):
    import rerun as rr

    stream = rr.RecordingStream("test", make_default=False)
    stream.save(tmp_path / "d.rrd")
    picture = DepthPicture("depth", DepthScale(0.2, 0.9))
    picture.start(stream)
    picture.log(stream, np.array([[0, 500, 1234]], np.uint16)[..., None])
    picture.log(stream, np.array([[np.nan, 0.5, 1.234]], np.float32))
    picture.log(stream, np.array([[0.0, 0.5, 1.234]], np.float32))
    stream.flush()
    stream.disconnect()
    depths = [bytes(v[0]) for v in rrd.values(tmp_path / "d.rrd", "depth", "DepthImage:buffer")]
    masks = [bytes(v[0]) for v in rrd.values(tmp_path / "d.rrd", "depth/unknown", "SegmentationImage:buffer")]
    assert len(set(depths)) == len(set(masks)) == 1
    assert np.frombuffer(depths[0], np.uint16).tolist() == [0, 500, 1234] and masks[0] == bytes([1, 0, 0])
    bar = bar_picture(picture.scale)
    assert (bar[10, 31], bar[10, 368]) == (
        pytest.approx(picture.scale.bar()[0, 0], abs=9),
        pytest.approx(picture.scale.bar()[0, -1], abs=9),
    )
    assert list(UNKNOWN) not in bar[10].tolist()


def test_a_live_pads_scale_grows_and_never_shrinks(described_page):
    pad = described_page[0].pads[0].sensor.pad
    drawing = PadDrawing("pad/x", pad, PadScale(20, 20), "µT")
    small, large = np.full((5, 3), 5.0), np.full((5, 3), 70.0)
    assert not drawing.grow(small) and drawing.scale == PadScale(20, 20)
    assert drawing.grow(large) and drawing.scale == PadScale(100, 80)
    assert not drawing.grow(small) and drawing.scale == PadScale(100, 80)
    _, radii, colors = drawing.shapes(-large)
    assert (colors[:, 2] > colors[:, 0]).all() and radii.max() < 7 and tuple(RGB[0]) not in map(tuple, colors)
