"""The camera in the real lab: what it measures agrees with the world's geometry."""

import numpy as np
import pytest
from camera_rig import error_of, until

from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera

pytest.importorskip("pyrealsense2", exc_type=ImportError)
pytest.importorskip("mujoco")


def test_aligned_depth_at_the_tables_centre_is_that_of_the_geometry(tmp_path):
    from lerobot_ext.virtual.testing import running_lab

    with running_lab(tmp_path) as lab:
        truth = lab.client.status()
        config = RealSenseRGBDCameraConfig(
            serial_number_or_name=f"virtual:{lab.directory}/side", fps=30, width=424, height=240, warmup_s=0
        )
        with RealSenseRGBDCamera(config) as camera:
            framesets = [camera.async_read_combined(5000) for _ in range(3)]
            newest = camera.read_latest_frameset(5000)
            assert camera.intrinsics.fx == pytest.approx(truth.camera.color.fx)
        with RealSenseRGBDCamera(config) as camera:  # opened for a second time
            camera.read()
            lab.client.fault("side", "frozen")
            error = until(lambda: error_of(lambda: camera.read_latest(max_age_ms=400)))
            assert isinstance(error, TimeoutError), error
            lab.client.fault("side", "unplugged")
            error = until(lambda: isinstance(e := error_of(camera.read_latest), ConnectionError) and e)
            assert "virt0001 is unplugged" in str(error)
            lab.client.fault("side")
            until(lambda: error_of(lambda: camera.read_latest(max_age_ms=2000)) is None)
            assert camera.counts["reconnects"] == 1
    mark = truth.table_centre
    for color, depth in framesets:
        assert color.shape == (240, 424, 3) and depth.shape == (240, 424, 1)
        assert color.std() > 5, "there is a picture"
        around = depth[mark.row - 1 : mark.row + 2, mark.column - 1 : mark.column + 2, 0]
        assert abs(float(np.median(around)) - mark.depth_m * 1e3) <= 2
    assert newest.age_ms < 5000
