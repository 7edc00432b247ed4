"""Points in space: librealsense's own numbers, and those of a recorded dataset lie where the world is."""

import numpy as np
import pytest
from camera_rig import make
from fake_lab import FakeLab, H, W, camera_info

from lerobot_ext.cameras import Intrinsics, RealSenseRGBDCameraConfig, point_cloud
from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera
from lerobot_ext.virtual.link import SideFrame
from lerobot_ext.virtual.realsense import software_device

rs = pytest.importorskip("pyrealsense2", exc_type=ImportError)

COEFFS = (0.14, -0.5, 0.003, -0.002, 0.45)  # the size of a D435's colour camera's


def intrinsics(model="none", coeffs=COEFFS):
    return Intrinsics(W, H, 50.0, 51.0, 30.5, 23.25, model, coeffs)


def for_librealsense(mine):
    made = rs.intrinsics()
    made.width, made.height, made.fx, made.fy = mine.width, mine.height, mine.fx, mine.fy
    made.ppx, made.ppy, made.model = mine.ppx, mine.ppy, getattr(rs.distortion, mine.model)
    made.coeffs = list(mine.coeffs)
    return made


@pytest.mark.parametrize("model", ["none", "brown_conrady", "inverse_brown_conrady"])
def test_every_pixel_is_where_librealsense_says(model):
    mine = intrinsics(model)
    depth = np.random.default_rng(0).integers(1, 5000, (H, W)).astype(np.uint16)
    reference = [
        rs.rs2_deproject_pixel_to_point(for_librealsense(mine), [u, v], depth[v, u] / 1000)
        for v in range(H)
        for u in range(W)
    ]
    np.testing.assert_allclose(point_cloud(depth, mine), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["ftheta", "kannala_brandt4", "modified_brown_conrady"])
def test_a_distortion_that_is_not_known_is_refused(model):
    with pytest.raises(ValueError, match=f"'{model}' cannot be undone; expected one of none, brown"):
        point_cloud(np.ones((H, W), np.uint16), intrinsics(model))


def test_brown_without_coefficients_is_a_pinhole():
    depth = np.full((H, W), 1000, np.uint16)
    plain = point_cloud(depth, intrinsics("none"))
    np.testing.assert_array_equal(point_cloud(depth, intrinsics("modified_brown_conrady", (0,) * 5)), plain)


def test_units_shapes_and_pixels_without_depth():
    depth = np.full((H, W, 1), 2000, np.uint16)
    depth[5, 5] = 0
    color = np.arange(H * W * 3).reshape(H, W, 3).astype(np.uint8)
    points, pixels = point_cloud(depth, intrinsics(), color)
    assert points.shape == (H * W - 1, 3) and points.dtype == np.float32 and (points[:, 2] == 2).all()
    assert pixels.shape == (H * W - 1, 3) and pixels.dtype == np.uint8
    as_dataset = depth.astype(np.float32).transpose(2, 0, 1)
    again, again_pixels = point_cloud(
        as_dataset, intrinsics(), color.transpose(2, 0, 1).astype(np.float32) / 255, unit_m=0.001
    )
    np.testing.assert_allclose(again, points)
    np.testing.assert_array_equal(again_pixels, pixels)
    np.testing.assert_allclose(point_cloud(as_dataset[0] / 1000, intrinsics()), points)
    assert len(point_cloud(depth, intrinsics(), depth_min_m=2.0)) == 0, "the encoder's smallest is no depth"


@pytest.mark.parametrize(
    ("depth", "color", "sentence"),
    [
        (np.zeros((H, W + 1), np.uint16), None, f"depth is {W + 1}x{H}, the intrinsics are of {W}x{H}"),
        (np.zeros((2, H, W), np.uint16), None, r"depth has shape \(2, 48, 64\)"),
        (np.zeros((H, W), np.uint16), np.zeros((H, 2, 3)), r"color has shape \(48, 2, 3\)"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(depth, color, sentence):
    with pytest.raises(ValueError, match=sentence):
        point_cloud(depth, intrinsics(), color)


@pytest.mark.parametrize(
    "metadata", [{}, {"camera": {"serial": "1"}}, {"intrinsics": {"fx": 1}}, {"a": None}]
)
def test_metadata_without_intrinsics_is_said(metadata):
    with pytest.raises(ValueError, match="no camera intrinsics in this metadata"):
        Intrinsics.from_metadata(metadata)


def test_the_live_cameras_cloud_is_librealsenses(tmp_path):
    lab = FakeLab(tmp_path, camera_info(unit_m=0.0001), base=12000)
    with lab, make(lab.name, depth_dtype="float32", align="none") as camera:
        frameset = camera.async_read_frameset(3000)
        told = camera.metadata()["depth"]
    mine = point_cloud(frameset.depth, Intrinsics.from_metadata(told))
    _device, (depth, _) = software_device(camera_info(unit_m=0.0001))
    queue = rs.frame_queue(2)
    depth.sensor.open(depth.profile)
    depth.sensor.start(queue)
    counts = np.rint(frameset.depth[..., 0] / 1e-4).astype(np.uint16)
    depth.push(SideFrame(frame_number=1, timestamp_ms=1.0), counts.view(np.uint8).ravel())
    vertices = rs.pointcloud().calculate(queue.wait_for_frame(1000).as_depth_frame()).get_vertices()
    reference = np.asanyarray(vertices).view(np.float32).reshape(-1, 3)
    depth.sensor.stop()
    depth.sensor.close()
    np.testing.assert_allclose(mine, reference[reference[:, 2] > 0], rtol=1e-5, atol=1e-6)


def test_a_recorded_datasets_table_is_where_the_world_has_it(tmp_path):
    pytest.importorskip("mujoco")
    from lerobot.configs.video import DepthEncoderConfig
    from lerobot.datasets import LeRobotDataset

    from lerobot_ext.virtual.testing import running_lab
    from lerobot_ext.virtual.world import World

    key, color_key = "observation.images.side_depth", "observation.images.side"
    with running_lab(tmp_path, depth_unit_m=0.0001, no_operator=True) as lab:
        config = RealSenseRGBDCameraConfig(
            serial_number_or_name=f"virtual:{lab.directory}/side", fps=30, width=424, height=240,
            warmup_s=0, max_age_ms=5000, depth_min_m=0.25, depth_max_m=1.0, depth_dtype="float32",
        )  # fmt: skip
        with RealSenseRGBDCamera(config) as camera:
            assert camera.depth_unit_m == 0.0001
            told = camera.metadata()
            color, depth = camera.async_read_combined(5000)
    names = ["height", "width", "channels"]
    features = {
        key: {"dtype": "video", "shape": depth.shape, "names": names,
              "info": {"is_depth_map": True, "camera": told["depth"]}},
        color_key: {"dtype": "video", "shape": color.shape, "names": names, "info": {"camera": told["color"]}},
    }  # fmt: skip
    encoder = DepthEncoderConfig(depth_min=0.249, depth_max=1.0)
    root = tmp_path / "dataset"
    dataset = LeRobotDataset.create("test/cloud", 30, features, root=root, depth_encoder=encoder)
    for _ in range(2):
        dataset.add_frame({key: depth, color_key: color, "task": "look"})
    dataset.save_episode()
    dataset.finalize()

    dataset = LeRobotDataset("test/cloud", root=root, video_backend="pyav")
    item, info = dataset[0], dataset.meta.features[key]["info"]
    points, pixels = point_cloud(
        item[key], Intrinsics.from_metadata(info), item[color_key],
        unit_m=0.001, depth_min_m=info["video.depth_min"],
    )  # fmt: skip
    assert len(points) == len(pixels) > 1000
    assert points[:, 2].min() > 0.25 and points[:, 2].max() < 1.01, "neither holes nor the wall behind"
    world = World()
    index = world.model.camera("side").id
    pose, position = world.data.cam_xmat[index].reshape(3, 3), world.data.cam_xpos[index]
    heights = (points * [1, -1, -1] @ pose.T + position)[:, 2]  # MuJoCo's cameras look along -z with y up
    on_table = np.abs(heights) < 0.01
    assert on_table.mean() > 0.2
    assert abs(np.median(heights[on_table])) < 0.0015, "the table's surface is at zero, to a millimetre"
    assert np.std(heights[on_table]) < 0.002
