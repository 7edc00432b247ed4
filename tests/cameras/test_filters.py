"""librealsense's filters: the order, the settings, and that they do through the real driver what they say."""

import itertools

import numpy as np
import pytest
from camera_rig import make
from fake_lab import FakeLab, H, W, camera_info

from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.filters import FILTERS, parse

NEEDS_LIBREALSENSE = pytest.importorskip("pyrealsense2", exc_type=ImportError)


def names(camera):
    return [step["name"] for step in camera.metadata()["depth"]["filters"]]


def test_the_order_is_the_recommended_one_whatever_was_asked_for():
    for given in itertools.permutations(
        ["hole_filling", {"temporal": {"alpha": 0.2}}, "spatial", "decimation"]
    ):
        found = parse(given)
        assert [f.name for f in found] == ["decimation", "spatial", "temporal", "hole_filling"]
        assert found[2].settings == {"alpha": 0.2}


@pytest.mark.parametrize(
    ("filters", "sentence"),
    [
        (["smooth"], "there is no 'smooth'; expected decimation, threshold, spatial, temporal, hole_filling"),
        (["spatial", {"spatial": {"delta": 3}}], "'spatial' comes twice"),
        ([{"spatial": {"sigma": 3}}], "'spatial' has no setting 'sigma'; it has magnitude, alpha"),
        ([{"spatial": {"alpha": 0.1}}], "alpha of 'spatial' is 0.1; expected a number from 0.25 to 1"),
        ([{"temporal": {"persistence": "much"}}], "persistence of 'temporal' is much; expected a number"),
        ([{"spatial": {}, "temporal": {}}], "is neither a name nor"),
        ([3], "3 is neither a name nor"),
        (["threshold"], "threshold cuts at depth_min_m and depth_max_m; give one"),
    ],
)
def test_a_wrong_filter_gets_a_sentence(filters, sentence):
    with pytest.raises(ValueError, match=f"camera '0123': .*{sentence}"):
        RealSenseRGBDCameraConfig(serial_number_or_name="0123", filters=filters)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"depth_min_m": 1.0, "depth_max_m": 0.5}, "depth_min_m is 1.0 and depth_max_m is 0.5"),
        ({"depth_min_m": -0.1}, "depth_min_m is -0.1"),
        ({"depth_max_m": float("nan")}, "depth_max_m is nan"),
        ({"use_depth": False, "filters": ["spatial"]}, "use_depth is false"),
        ({"use_depth": False, "depth_max_m": 2.0}, "use_depth is false"),
        ({"align": "none", "filters": ["decimation"]}, "decimation makes depth smaller.*use align: color"),
        ({"reconnect_s": -1}, "reconnect_s is -1"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; expected one of stop, skip_frame"),
    ],
)
def test_a_wrong_setting_of_depth_gets_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        RealSenseRGBDCameraConfig(serial_number_or_name="0123", **fields)


def test_the_ranges_that_are_checked_are_librealsenses():
    rs = NEEDS_LIBREALSENSE
    for name, settings in FILTERS.items():
        block = getattr(rs, f"{name}_filter")()
        for setting in settings.values():
            offered = rs.options.get_option_range(block, getattr(rs.option, setting.option))
            assert offered.min <= setting.low and setting.high == pytest.approx(offered.max)


def noisy(number):
    """A wall at 1 m with noise of 20 mm, and a hole."""
    depth = (1000 + np.random.default_rng(number).normal(0, 20, (H, W))).astype(np.uint16)
    depth[20:26, 30:36] = 0
    return depth


@pytest.fixture
def wall(tmp_path):
    with FakeLab(tmp_path, scene=noisy) as lab:
        yield lab


def depth_of(camera, frames=12):
    return [camera.async_read_combined(3000)[1][..., 0] for _ in range(frames)][-1]


def test_filters_do_what_they_say_and_the_metadata_says_what_was_done(wall):
    plain = {}
    with make(wall.name) as camera:
        plain = depth_of(camera)
        assert names(camera) == []
    wanted = ["hole_filling", {"temporal": {"alpha": 0.1, "delta": 100}}, {"spatial": {"delta": 50}}]
    with make(wall.name, filters=wanted) as camera:
        smooth = depth_of(camera)
        told = camera.metadata()["depth"]["filters"]
    assert (plain[20:26, 30:36] == 0).any() and (smooth[20:26, 30:36] > 0).all()
    assert smooth[smooth > 0].std() < 0.6 * plain[plain > 0].std()
    assert [step["name"] for step in told] == [
        "depth_to_disparity", "spatial", "temporal", "disparity_to_depth", "hole_filling"
    ]  # fmt: skip
    assert (told[1]["delta"], told[1]["alpha"], told[2]["alpha"]) == (50, 0.5, 0.1), "defaults are told, too"


def test_a_device_without_a_baseline_is_smoothed_as_depth_and_the_metadata_says_so(wall, monkeypatch):
    from lerobot_ext.virtual import realsense

    original = realsense.software_device

    class Sensor:
        def __init__(self, sensor):
            self._sensor = sensor

        def __getattr__(self, name):
            return getattr(self._sensor, name)

        def add_read_only_option(self, option, value):
            if option != NEEDS_LIBREALSENSE.option.stereo_baseline:
                self._sensor.add_read_only_option(option, value)

    class Module:
        class software_device(NEEDS_LIBREALSENSE.software_device):  # noqa: N801
            def add_sensor(self, name):
                return Sensor(super().add_sensor(name))

        def __getattr__(self, name):
            return getattr(NEEDS_LIBREALSENSE, name)

    def without(info):
        with monkeypatch.context() as patch:
            patch.setattr(realsense, "load", Module)
            return original(info)

    monkeypatch.setattr(realsense, "software_device", without)
    with make(wall.name, filters=["spatial"]) as camera:
        assert names(camera) == ["spatial"]
        assert depth_of(camera).max() < 1100


def test_decimated_depth_has_the_colour_images_size_once_it_is_aligned(wall):
    with make(wall.name, filters=[{"decimation": {"magnitude": 2}}]) as camera:
        color, depth = camera.async_read_combined(3000)
        assert names(camera) == ["decimation"]
        assert depth.shape[:2] == color.shape[:2] == (camera.height, camera.width)
        assert camera.intrinsics.width == W


def test_filters_come_before_alignment(tmp_path):
    # What the colour camera sees and the depth camera does not has no depth; filling holes later would invent it.
    lab = FakeLab(tmp_path, camera_info(baseline_m=0.1), base=1000)
    with lab, make(lab.name, filters=["hole_filling"]) as camera:
        assert not camera.async_read_combined(3000)[1][H // 2, :3].any()


def test_two_cameras_do_not_share_what_their_filters_remember(tmp_path):
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    near, far = FakeLab(folders[0], base=500), FakeLab(folders[1], base=1500)
    with (
        near,
        far,
        make(near.name, filters=["temporal"]) as one,
        make(far.name, filters=["temporal"]) as other,
    ):
        for _ in range(10):
            assert one.async_read_combined(3000)[1].max() < 800
            assert other.async_read_combined(3000)[1].max() > 1400


def ramp(number):
    return (200 + 20 * np.arange(W)[np.newaxis, :] + 0 * np.arange(H)[:, np.newaxis]).astype(np.uint16)


@pytest.mark.parametrize("filters", [[], ["threshold"], ["threshold", "hole_filling"]])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_depth_outside_of_the_range_is_no_depth(tmp_path, filters, dtype):
    with FakeLab(tmp_path, scene=ramp) as lab:
        fields = {"depth_min_m": 0.5, "depth_max_m": 1.0, "depth_dtype": dtype, "filters": filters}
        with make(lab.name, **fields) as camera:
            depth = depth_of(camera, 2)[5]
            told = camera.metadata()["depth"]
            assert camera.config.depth_range_m == (0.5, 1.0)
    metres = depth / (1000 if dtype == "uint16" else 1)
    inside = (ramp(0)[5] >= 500) & (ramp(0)[5] <= 1000)
    assert metres[inside].min() == pytest.approx(0.5) and metres[inside].max() == pytest.approx(1.0)
    if "hole_filling" not in filters:
        assert not metres[~inside].any()
    assert metres[metres > 0].min() >= 0.4999 and metres.max() <= 1.0001
    assert (told["depth_min_m"], told["depth_max_m"], told["dtype"]) == (0.5, 1.0, dtype)
