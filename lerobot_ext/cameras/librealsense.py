"""What librealsense has to be asked about devices: is it installed, which are there, what do they offer.

Also `Source`, where frames come from: a device on USB here, the virtual lab's in `lerobot_ext.virtual`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

logger = logging.getLogger(__name__)

VIRTUAL = "virtual:"


def load() -> ModuleType:
    """The module pyrealsense2.

    Raises:
        ConnectionError: It is not installed, or the system library that it needs is not.
    """
    try:
        import pyrealsense2
    except ModuleNotFoundError as error:
        raise ConnectionError(
            "RealSense cameras need the package pyrealsense2, which is not installed; run "
            "pip install 'lerobot_robot_ext[realsense]'"
        ) from error
    except ImportError as error:
        if "libusb" not in str(error):
            raise ConnectionError(f"pyrealsense2 is installed but cannot be loaded: {error}") from error
        raise ConnectionError(
            "pyrealsense2 needs the system library libusb-1.0, which is missing; run "
            "sudo apt-get install libusb-1.0-0"
        ) from error
    return pyrealsense2


@dataclass(frozen=True)
class Intrinsics:
    """The pinhole camera behind an image, in pixels; `model` and `coeffs` are librealsense's distortion."""

    width: int
    height: int
    fx: float
    fy: float
    ppx: float
    ppy: float
    model: str
    coeffs: tuple[float, ...]

    @classmethod
    def of(cls, profile: Any) -> Intrinsics:
        """Those of a librealsense stream profile."""
        i = profile.as_video_stream_profile().get_intrinsics()
        return cls(i.width, i.height, i.fx, i.fy, i.ppx, i.ppy, i.model.name, tuple(i.coeffs))


class Source(Protocol):
    """Where a pipeline's frames come from.

    Order of use: `device`, `attach`, the pipeline starts, `started`, …, `close`, the pipeline stops.
    """

    device: Any  # rs.device, to ask who it is and what it offers

    def attach(self, pipeline: Any, config: Any) -> None:
        """Make `pipeline` (rs.pipeline), configured by `config` (rs.config), use this device."""

    def started(self) -> None:
        """The pipeline runs; frames may flow."""

    def close(self) -> None:
        """Stop the flow of frames and let go of what was opened; no frame comes after it. Idempotent."""


class UsbSource:
    """A RealSense on this computer's USB."""

    def __init__(self, device: Any, serial: str):
        self.device = device
        self._serial = serial

    def attach(self, pipeline: Any, config: Any) -> None:
        """See Source."""
        config.enable_device(self._serial)

    def started(self) -> None:
        """See Source: a real device streams by itself."""

    def close(self) -> None:
        """See Source."""
        self.device = None


def open_source(name: str) -> Source:
    """Open the device of that serial number, name or `virtual:…`.

    Raises:
        ConnectionError: There is none (the message lists those that are), or several of that name.
    """
    rs = load()
    if name.startswith(VIRTUAL):
        from lerobot_ext.virtual.realsense import VirtualRealSense

        return VirtualRealSense(name.removeprefix(VIRTUAL))
    found = {d.get_info(rs.camera_info.serial_number): d for d in rs.context().query_devices()}
    if name in found:
        return UsbSource(found[name], name)
    named = [serial for serial, d in found.items() if d.get_info(rs.camera_info.name) == name]
    if len(named) == 1:
        return UsbSource(found[named[0]], named[0])
    if named:
        raise ConnectionError(
            f"camera '{name}': {len(named)} cameras have this name; use a serial number: {', '.join(sorted(named))}"
        )
    there = [f"'{camera['id']}' ({camera['name']})" for camera in find_cameras()]
    listed = f"there are: {', '.join(there)}" if there else "none is connected, and no virtual lab is running"
    raise ConnectionError(f"camera '{name}': no RealSense has this serial number or name; {listed}")


def find_cameras() -> list[dict[str, Any]]:
    """Every RealSense on USB, and the camera of the virtual lab if the default one runs.

    Returns:
        One dict a camera: `name`, `type`, `id` (what to write as `serial_number_or_name`), `firmware_version`.
    """
    rs = load()
    cameras = [
        {
            "name": device.get_info(rs.camera_info.name),
            "type": "realsense_rgbd",
            "id": device.get_info(rs.camera_info.serial_number),
            "firmware_version": device.get_info(rs.camera_info.firmware_version),
        }
        for device in rs.context().query_devices()
    ]
    from lerobot_ext.virtual.realsense import find_virtual

    virtual = find_virtual()
    if virtual is not None:
        side, camera = virtual
        cameras.append(
            {
                "name": camera.name,
                "type": "realsense_rgbd",
                "id": f"{VIRTUAL}{side}",
                "firmware_version": camera.firmware,
            }
        )
    return cameras


def check_offered(device: Any, stream: Any, form: Any, width: int, height: int, fps: int) -> None:
    """Say before the start what librealsense would answer with "Couldn't resolve requests".

    Raises:
        ConnectionError: `device` does not offer `stream` in that format, size and rate; lists what it offers.
    """
    rs = load()
    rates: dict[tuple[int, int], set[int]] = {}
    for sensor in device.query_sensors():
        for profile in sensor.get_stream_profiles():
            if profile.stream_type() == stream and profile.format() == form:
                video = profile.as_video_stream_profile()
                rates.setdefault((video.width(), video.height()), set()).add(profile.fps())
    if fps in rates.get((width, height), ()):
        return
    who = f"{device.get_info(rs.camera_info.name)} (serial {device.get_info(rs.camera_info.serial_number)})"
    if (width, height) in rates:
        listed = ", ".join(map(str, sorted(rates[width, height])))
        offer = f"offered at {width}x{height}: {listed} fps"
    elif rates:
        offer = "offered: " + ", ".join(
            f"{w}x{h}@{'/'.join(map(str, sorted(values)))}" for (w, h), values in sorted(rates.items())
        )
    else:
        offer = f"it has no {stream.name} stream in format {form.name}"
    raise ConnectionError(f"{stream.name} stream {width}x{height}@{fps} is not offered by {who}; {offer}")
