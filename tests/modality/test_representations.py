"""Depth in colours and as normals: against OpenCV's colour map and planes whose normals are known."""

import math

import cv2
import numpy as np
import pytest
import torch
from small_dataset import HEIGHT, WIDTH

from lerobot_ext.errors import UserError
from lerobot_ext.modality import DepthSelection, ModalityStep, Selection
from lerobot_ext.modality.depth import DepthRange, Pinhole, depth_image, normals, turbo
from lerobot_ext.modality.view import select_dataset

DEPTH = "observation.images.side_depth"
PIXELS = {"width": 64, "height": 48, "fx": 60.0, "fy": 58.0, "ppx": 31.0, "ppy": 22.5}
CAMERA = Pinhole.of(PIXELS)


def plane(normal: list[float], distance_m: float, height: int = 48, width: int = 64) -> torch.Tensor:
    """(1, H, W) depth of the plane n . p = -distance, by librealsense's deprojection at every pixel."""
    u, v = np.meshgrid(np.arange(width) * 64 / width, np.arange(height) * 48 / height)
    if width != 64:  # the middle of a larger pixel
        u, v = u + (64 / width - 1) / 2, v + (48 / height - 1) / 2
    rays = np.stack([(u - PIXELS["ppx"]) / PIXELS["fx"], (v - PIXELS["ppy"]) / PIXELS["fy"], np.ones_like(u)])
    unit = np.array(normal) / np.linalg.norm(normal)
    return torch.from_numpy(-distance_m / np.tensordot(unit, rays, 1)).to(torch.float32)[None]


def test_turbo_is_the_colour_map_that_everybody_knows():
    metres = torch.linspace(0.2, 1.0, 256).reshape(1, 16, 16)
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = cv2.applyColorMap(codes, cv2.COLORMAP_TURBO)[..., ::-1].astype(np.float32) / 255
    image = turbo(metres, 0.2, 1.0)
    assert image.shape == (3, 16, 16)
    torch.testing.assert_close(image.movedim(0, -1), torch.from_numpy(expected.copy()), atol=2e-4, rtol=0)


def test_a_pixel_without_depth_is_black_in_colours_and_nothing_else_is():
    image = turbo(torch.tensor([[[0.0, 0.01, 0.2, 0.6, 5.0]]]), 0.2, 1.0)
    assert (image[:, 0, 0] == 0).all()
    assert (image[:, 0, 1:].amax(0) > 0).all()
    assert torch.equal(image[:, 0, 1], image[:, 0, 2])  # clipped


@pytest.mark.parametrize("normal", [[0, 0, -1], [0.5, 0, -1], [0, -0.7, -1], [0.3, 0.4, -0.8]])
@pytest.mark.parametrize("size", [(48, 64), (24, 32)])
def test_normals_of_a_plane(normal, size):
    image = normals(plane(normal, 0.5, *size), 0.1, 3.0, CAMERA)
    expected = torch.tensor(normal) / math.sqrt(sum(n * n for n in normal))
    found = image[:, 1:-1, 1:-1] * 2 - 1
    known = image[:, 1:-1, 1:-1].amax(0) > 0
    assert known.float().mean() > 0.5
    assert (found - expected[:, None, None]).abs().amax(0)[known].max() < 2e-3


def test_there_is_no_normal_at_the_border_beside_a_hole_and_out_of_range():
    metres = plane([0, 0, -1], 0.5)
    metres[0, 20, 30] = 0
    image = normals(metres, 0.1, 3.0, CAMERA)
    dark = image.amax(0) == 0
    assert dark[0].all() and dark[:, 0].all() and dark[-1].all() and dark[:, -1].all()
    assert dark[18:23, 28:33].sum() == 5
    assert (normals(metres, 0.6, 3.0, CAMERA) == 0).all()


@pytest.mark.parametrize("representation", ["turbo", "normals"])
def test_millimetres_and_metres_give_the_same_image_at_any_leading_shape(representation):
    selection = DepthSelection(near_m=0.2, far_m=1.0, representation=representation)
    millimetres = np.random.default_rng(0).integers(0, 1200, (2, 3, 1, 12, 16)).astype(np.uint16)
    images = [
        depth_image(depth, selection, DepthRange(0.1, 1.1), size, CAMERA)
        for depth in (millimetres, millimetres.astype(np.float32) / 1000)
        for size in (None, (6, 8))
    ]
    assert torch.equal(images[0], images[2]) and torch.equal(images[1], images[3])
    assert images[0].shape == (2, 3, 3, 12, 16) and images[1].shape == (2, 3, 3, 6, 8)
    assert min(image.min() for image in images) >= 0 and max(image.max() for image in images) <= 1


def test_the_dataset_and_the_robot_see_the_same_normals(open_dataset):
    dataset = open_dataset()
    info = dataset.meta.features[DEPTH]["info"]
    info["camera"] = {"intrinsics": {**PIXELS, "width": WIDTH, "height": HEIGHT}}
    selection = Selection((), DepthSelection(near_m=0.2, representation="normals"), resize=(32, 48))
    view = select_dataset(dataset, selection)
    step = ModalityStep(selection.to_dict(), view.meta.raw_observation)
    recorded = dataset[25][DEPTH]
    from_the_view = step._convert(DEPTH, view[25][DEPTH])
    from_the_robot = step._convert(DEPTH, recorded.round().to(torch.int32))
    # The robot's millimetres are rounded, the encoder's steps are 0.24 mm: normals turn by little.
    assert (from_the_view - from_the_robot).abs().mean() < 0.02
    stats = view.meta.stats[DEPTH]
    assert stats["mean"].shape == (3, 1, 1)
    images = torch.stack([step._convert(DEPTH, view[i][DEPTH]) for i in range(0, len(view), 5)])
    np.testing.assert_allclose(stats["mean"], images.mean((0, 2, 3)).reshape(3, 1, 1), atol=0.03)


def test_normals_without_intrinsics_are_refused_with_a_way_out(open_dataset):
    selection = Selection((), DepthSelection(representation="normals"))
    with pytest.raises(UserError, match="needs the intrinsics.*gray or turbo"):
        select_dataset(open_dataset(), selection)
