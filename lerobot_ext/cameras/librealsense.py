"""What librealsense has to be asked about devices: is it installed, which are there, what do they offer.

Also `Source`, where frames come from: a device on USB here, the virtual lab's in `lerobot_ext.virtual`.
"""

from __future__ import annotations

import logging
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
            "RealSense cameras need the package pyrealsense2, which is not installed; in the "
            "project's folder run: pip install -e '.[realsense]'"
        ) from error
    except ImportError as error:
        if "libusb" not in str(error):
            raise ConnectionError(f"pyrealsense2 is installed but cannot be loaded: {error}") from error
        raise ConnectionError(
            "pyrealsense2 needs the system library libusb-1.0, which is missing; run "
            "sudo apt-get install libusb-1.0-0"
        ) from error
    return pyrealsense2


class Source(Protocol):
    """Where a pipeline's frames come from.

    Order of use: `device`, `attach`, the pipeline starts, `started`, …, `close`, the pipeline stops.
    """

    device: Any  # rs.device, to ask who it is and what it offers; not used after `attach`
    live: bool  # it shows what is now, at the time it says, and opened anew it does so again

    def attach(self, pipeline: Any, config: Any) -> None:
        """Make `pipeline` (rs.pipeline), configured by `config` (rs.config), use this device."""

    def started(self, profile: Any) -> None:
        """The pipeline runs as `profile` (rs.pipeline_profile) says; frames may flow."""

    def ended(self) -> str:
        """Why no frame will ever come again; empty as long as one may."""

    def missing(self) -> str:
        """Why the device cannot be there any more; empty if it is."""

    def close(self) -> None:
        """Stop the flow of frames and let go of what was opened; no frame comes after it. Idempotent."""


class UsbSource:
    """A RealSense on this computer's USB."""

    live = True

    def __init__(self, device: Any, serial: str):
        self.device = device
        self._serial = serial

    def attach(self, pipeline: Any, config: Any) -> None:
        """See Source. The device's time is converted to this host's, where it can do that."""
        rs = load()
        for sensor in self.device.query_sensors():
            if sensor.supports(rs.option.global_time_enabled):
                try:
                    sensor.set_option(rs.option.global_time_enabled, 1)
                except RuntimeError as error:
                    logger.warning("camera %s stays on its own clock: %s", self._serial, error)
        config.enable_device(self._serial)

    def started(self, profile: Any) -> None:
        """See Source: a real device streams by itself."""

    def ended(self) -> str:
        """See Source: a real device never ends."""
        return ""

    def missing(self) -> str:
        """See Source."""
        return "" if self._serial in _on_usb() else "it is no longer connected to USB"

    def close(self) -> None:
        """See Source."""
        self.device = None


def open_source(name: str, *, serial: str = "", bag_repeat: bool = False) -> Source:
    """Open the device of that serial number, name, `virtual:…` or file.

    Args:
        name: `serial_number_or_name` of the configuration.
        serial: Serial number if it is known: names are given twice.
        bag_repeat: Whether a file begins anew at its end.

    Raises:
        ConnectionError: There is none (the message lists those that are), or several of that name, or no such file.
    """
    load()
    if name.startswith(VIRTUAL):
        from lerobot_ext.virtual.realsense import VirtualRealSense

        return VirtualRealSense(name.removeprefix(VIRTUAL))
    from lerobot_ext.cameras.bag import BagSource, is_bag, path_of

    if is_bag(name):
        return BagSource(path_of(name), repeat=bag_repeat)
    rs = load()
    found = _on_usb()
    for known in (serial, name):
        if known in found:
            return UsbSource(found[known], known)
    named = [number for number, device in found.items() if device.get_info(rs.camera_info.name) == name]
    if len(named) == 1 and not serial:
        return UsbSource(found[named[0]], named[0])
    if len(named) > 1:
        raise ConnectionError(
            f"camera '{name}': {len(named)} cameras have this name; use a serial number: {', '.join(sorted(named))}"
        )
    there = [f"'{camera['id']}' ({camera['name']})" for camera in find_cameras()]
    listed = f"there are: {', '.join(there)}" if there else "none is connected, and no virtual lab is running"
    raise ConnectionError(f"camera '{name}': no RealSense has this serial number or name; {listed}")


def _on_usb() -> dict[str, Any]:
    """The devices on USB by serial number."""
    rs = load()
    return {device.get_info(rs.camera_info.serial_number): device for device in rs.context().query_devices()}


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


def check_offered(
    device: Any, stream: Any, form: Any, width: int | None, height: int | None, fps: int | None
) -> None:
    """Say before the start what librealsense would answer with "Couldn't resolve requests".

    Without width, height and fps any size will do.

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
    if fps in rates.get((width, height), ()) or (rates and width is None):
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
    wanted = f"{stream.name} stream" + (f" {width}x{height}@{fps}" if width is not None else "")
    raise ConnectionError(f"{wanted} is not offered by {who}; {offer}")
