"""Pictures and depth agree with the geometry."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lerobot_ext.virtual.render import Cameras, camera_info
from lerobot_ext.virtual.world import World


@pytest.fixture(scope="module")
def scene():
    world = World()
    cameras = Cameras(world, 424, 240)
    yield world, cameras
    cameras.close()


def plane_depth(intrinsics, pose, position, column, row, height):
    """Depth of the horizontal plane `height` at a pixel's centre, from the stated intrinsics alone."""
    ray = np.array([(column - intrinsics.ppx) / intrinsics.fx, -(row - intrinsics.ppy) / intrinsics.fy, -1.0])
    return (height - position[2]) / (pose @ ray)[2]


def test_depth_at_the_tables_centre_is_the_geometrys(scene):
    world, cameras = scene
    column, row, _ = cameras.project("side_depth", world.data.site("table_centre").xpos)
    column, row = round(column), round(row)
    index = world.model.camera("side_depth").id
    pose, position = world.data.cam_xmat[index].reshape(3, 3), world.data.cam_xpos[index]
    info = camera_info(424, 240, 30)
    expected = plane_depth(info.depth, pose, position, column, row, 0.0004)
    assert cameras.depth_m()[row, column] == pytest.approx(expected, abs=0.0003)
    assert cameras.depth()[row, column] * info.depth_units_m == pytest.approx(expected, abs=0.001)


def test_depth_can_be_counted_in_tenths_of_a_millimetre():
    def look():
        fine = Cameras(World(), 424, 240, depth_unit_m=0.0001)
        try:
            return fine.depth(), fine.depth_m()
        finally:
            fine.close()

    with ThreadPoolExecutor(1) as other:  # a thread has one OpenGL context at a time
        counts, metres = other.submit(look).result()
    seen = counts > 0
    assert np.abs(counts[seen] * 1e-4 - metres[seen]).max() < 0.00006
    assert camera_info(424, 240, 30, 0.0001).depth_units_m == 0.0001


def test_the_truth_can_be_seen_from_the_colour_camera(scene):
    world, cameras = scene
    mark = cameras.table_mark()
    assert cameras.depth_m("side")[mark.row, mark.column] == pytest.approx(mark.depth_m, abs=0.0005)


def test_depth_everywhere_on_the_mat_is_the_geometrys(scene):
    world, cameras = scene
    metres = cameras.depth_m()
    index = world.model.camera("side_depth").id
    pose, position = world.data.cam_xmat[index].reshape(3, 3), world.data.cam_xpos[index]
    intrinsics = camera_info(424, 240, 30).depth
    for column, row in ((120, 200), (212, 225), (330, 205), (60, 230)):
        expected = plane_depth(intrinsics, pose, position, column, row, 0.0002)
        assert metres[row, column] == pytest.approx(expected, abs=0.0003)


def test_the_table_mark_is_in_the_colour_picture(scene):
    world, cameras = scene
    mark = cameras.table_mark()
    picture = cameras.color("side").astype(int)
    assert picture.shape == (240, 424, 3)
    assert picture[mark.row, mark.column].min() > 150  # white, on a mat that is not
    assert picture[mark.row + 12, mark.column].max() < 150
    index = world.model.camera("side").id
    pose, position = world.data.cam_xmat[index].reshape(3, 3), world.data.cam_xpos[index]
    expected = plane_depth(camera_info(424, 240, 30).color, pose, position, mark.column, mark.row, 0.0004)
    assert mark.depth_m == pytest.approx(expected, abs=1e-5)


def test_the_colour_camera_is_a_baseline_beside_the_depth_camera(scene):
    world, _ = scene
    info = camera_info(424, 240, 30)
    color, depth = (world.model.camera(name).id for name in ("side", "side_depth"))
    in_depth_axes = world.data.cam_xmat[depth].reshape(3, 3).T @ (
        world.data.cam_xpos[depth] - world.data.cam_xpos[color]
    )
    assert in_depth_axes == pytest.approx(info.depth_to_color_m, abs=1e-9)
    assert np.array_equal(world.data.cam_xmat[color], world.data.cam_xmat[depth])


def test_the_lamp_is_seen_by_both_colour_cameras(scene):
    world, cameras = scene
    for camera in ("side", "wrist"):
        greens = []
        for on in (False, True):
            world.set_lamp(on)
            red, green, _ = np.moveaxis(cameras.color(camera).astype(int), -1, 0)
            greens.append(int((green > red + 60).sum()))
        assert greens[1] > greens[0] + 300
    world.set_lamp(False)


def test_what_is_too_far_is_zero(scene):
    world, cameras = scene
    world.model.geom("wall").pos[1] = 4.0
    import mujoco

    mujoco.mj_forward(world.model, world.data)
    assert cameras.depth()[5, 5] == 0
    world.model.geom("wall").pos[1] = 1.1
    mujoco.mj_forward(world.model, world.data)
    assert cameras.depth()[5, 5] > 1000
