import subprocess
import sys

import draccus
import pytest
from lerobot.cameras import CameraConfig, make_cameras_from_configs

from lerobot_ext.cameras import RealSenseRGBDCameraConfig


def test_lerobot_makes_the_camera_from_its_type_name():
    config = draccus.decode(
        CameraConfig,
        {"type": "realsense_rgbd", "serial_number_or_name": "0123", "fps": 30, "width": 424, "height": 240},
    )
    camera = make_cameras_from_configs({"side": config})["side"]
    assert type(camera).__name__ == "RealSenseRGBDCamera"
    assert (camera.use_rgb, camera.use_depth, camera.height, camera.width) == (True, True, 240, 424)
    assert not camera.is_connected


def test_filters_and_an_endless_patience_can_be_written_in_a_yaml():
    config = draccus.decode(
        CameraConfig,
        {
            "type": "realsense_rgbd",
            "serial_number_or_name": "0123",
            "filters": ["temporal", {"spatial": {"alpha": 0.4}}],
            "reconnect_s": float("inf"),
            "depth_max_m": 1,
        },
    )
    assert [f.name for f in config.filter_chain] == ["spatial", "temporal"]
    assert draccus.decode(CameraConfig, draccus.encode(config, CameraConfig)) == config


def test_neither_the_config_nor_the_driver_loads_librealsense():
    code = (
        "import sys, lerobot_ext.cameras.realsense_rgbd as m; from lerobot_ext.cameras import *;"
        "m.RealSenseRGBDCamera(RealSenseRGBDCameraConfig(serial_number_or_name='1'));"
        "assert not {'pyrealsense2', 'zmq', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"fps": 30}, "width, height not given; give fps, width and height together"),
        ({"use_rgb": False, "use_depth": False}, "both false"),
        ({"align": "depth"}, "align is 'depth'; expected one of color, none"),
        ({"depth_dtype": "float16"}, "expected one of uint16, float32"),
        ({"fps": 0, "width": 1, "height": 1}, "fps is 0; expected a positive number"),
        ({"max_age_ms": -1}, "max_age_ms is -1"),
        ({"serial_number_or_name": ""}, "is empty"),
    ],
)
def test_a_wrong_configuration_gets_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        RealSenseRGBDCameraConfig(**{"serial_number_or_name": "0123", **fields})
