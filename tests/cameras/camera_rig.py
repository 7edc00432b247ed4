"""A camera of the fake lab, and waiting for what it does."""

import threading
import time

from fake_lab import H, W

from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.realsense_rgbd import RealSenseRGBDCamera


def make(name, **fields):
    return RealSenseRGBDCamera(
        RealSenseRGBDCameraConfig(
            **{"serial_number_or_name": name, "fps": 30, "width": W, "height": H, "warmup_s": 0, **fields}
        )
    )


def threads():
    return {t.name for t in threading.enumerate() if "realsense" in t.name}


def until(condition, seconds=20.0):
    """Wait until `condition()` is true; returns what it was."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    assert found, f"not within {seconds} s"
    return found


def error_of(call):
    """What `call` raises, None if nothing."""
    try:
        call()
    except Exception as error:
        return error
    return None
