"""Which cameras there are: RealSense by serial number, others by their video node, the virtual lab's.

A RealSense is asked through librealsense, which may be missing; other cameras are not opened, their names stand in
/sys. What a YAML says of cameras is compared in `doctor_yaml`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_ext.commands.doctor_usb import SYS, UsbDevice, realsense_devices, video_nodes

REALSENSE, VIDEO, LAB = "realsense_rgbd", "opencv", "lab"
BY_ID = Path("/dev/v4l/by-id")
USB2_MBIT = 480


@dataclass(frozen=True)
class FoundCamera:
    """One camera.

    Attributes:
        kind: REALSENSE, VIDEO or LAB.
        id: What a YAML says: serial number, video node, `virtual:…` or the wrist camera's address.
        name: What it calls itself.
        usb: Of a RealSense: `3.2`, `2.1`; else empty.
        firmware, newer_firmware: Of a RealSense; the newer one is empty if librealsense knows none.
        nodes: What must be open to this user; none of a RealSense that librealsense has spoken with.
        usb_device: Its place on USB, where known.
        device: librealsense's device, to ask what it offers.
        camera_name: Among those of its address, for a camera of LeRobot's type zmq.
    """

    kind: str
    id: str
    name: str
    usb: str = ""
    firmware: str = ""
    newer_firmware: str = ""
    nodes: tuple[str, ...] = ()
    usb_device: UsbDevice | None = None
    device: Any = field(default=None, compare=False, repr=False)
    camera_name: str = ""

    @property
    def on_usb2(self) -> bool:
        """Whether it is connected by USB 2 though it could do more."""
        if self.kind != REALSENSE:
            return False
        return self.usb.startswith("2") or (
            not self.usb and self.usb_device is not None and 0 < self.usb_device.speed_mbit <= USB2_MBIT
        )

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.kind,
            "id": self.id,
            "name": self.name,
            "usb": self.usb,
            "firmware": self.firmware,
            "nodes": list(self.nodes),
        }


def find_realsense(sys: Path = SYS) -> tuple[list[FoundCamera], str]:
    """RealSense cameras, and why librealsense could not be asked (empty if it could).

    Those that /sys knows and librealsense does not are among them, without a serial number.
    """
    on_usb = {device.socket: device for device in realsense_devices(sys)}
    try:
        found = _ask_librealsense(on_usb)
        problem = ""
    except (ConnectionError, RuntimeError) as error:
        found, problem = [], " ".join(str(error).split())
    told = {camera.usb_device.socket for camera in found if camera.usb_device is not None}
    if len(found) < len(on_usb):
        found += [
            FoundCamera(REALSENSE, "", device.name, nodes=(device.node,), usb_device=device)
            for socket, device in on_usb.items()
            if socket not in told
        ]
    return found, problem


def _ask_librealsense(on_usb: dict[str, UsbDevice]) -> list[FoundCamera]:
    from lerobot_ext.cameras import librealsense

    rs = librealsense.load()
    cameras = []
    for device in rs.context().query_devices():

        def info(key: str, device: Any = device) -> str:
            what = getattr(rs.camera_info, key)
            return device.get_info(what) if device.supports(what) else ""

        where = info("physical_port")
        place = next(
            (usb for socket, usb in on_usb.items() if socket in where.replace(":", "/").split("/")), None
        )
        firmware, recommended = info("firmware_version"), info("recommended_firmware_version")
        cameras.append(
            FoundCamera(
                REALSENSE,
                info("serial_number"),
                info("name"),
                info("usb_type_descriptor"),
                firmware,
                recommended if _version(recommended) > _version(firmware) else "",
                usb_device=place,
                device=device,
            )
        )
    return cameras


def find_video(sys: Path = SYS, by_id: Path = BY_ID) -> list[FoundCamera]:
    """Cameras with a video node that are no RealSense: the node that gives the pictures, by its lasting name."""
    return [
        FoundCamera(
            VIDEO, lasting_name(node.path, by_id), node.name, nodes=(node.path,), usb_device=node.device
        )
        for node in video_nodes(sys)
        if node.index == 0 and not (node.device is not None and node.device.is_realsense)
    ]


def lasting_name(path: str, folder: Path) -> str:
    """The link in `folder` that leads to `path`, which stays when `path` changes; `path` if there is none."""
    try:
        links = sorted(folder.iterdir())
    except OSError:
        return path
    real = os.path.realpath(path)
    return next((str(link) for link in links if os.path.realpath(link) == real), path)


def find_lab(directory: Path) -> tuple[Any, list[FoundCamera]]:
    """The status of the virtual lab in `directory` (None if none runs there) and its cameras."""
    from lerobot_ext.virtual.client import LabClient

    with LabClient(directory, timeout_s=1.0) as client:
        try:
            status = client.status()
        except (ConnectionError, RuntimeError):
            return None, []
    camera = status.camera
    side = FoundCamera(LAB, f"virtual:{client.directory / 'side'}", camera.name, firmware=camera.firmware)
    address, what = f"127.0.0.1:{status.wrist_port}", "wrist camera of the virtual lab (type zmq)"
    wrists = [FoundCamera(LAB, address, what, camera_name=name) for name in status.wrist_cameras]
    return status, [side, *wrists]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
