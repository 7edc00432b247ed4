"""Where devices sit on USB, read from Linux's /sys: no device is opened for it. On other systems nothing is found.

Which serial port or video node belongs to which USB device, how fast it is connected, and which driver has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
INTEL = "8086"


@dataclass(frozen=True)
class UsbDevice:
    """One device on USB.

    Attributes:
        socket: Where it is plugged in: `1-2.3` is bus 1, port 2 of it, port 3 of the hub there.
        vendor, product: Numbers, four hexadecimal digits.
        serial_number: None if it has none.
        name: What it calls itself.
        speed_mbit: 480 on USB 2, 5000 and more on USB 3; 0 if not known.
        node: What a program opens that does not go through a driver.
    """

    socket: str
    vendor: str
    product: str
    serial_number: str | None
    name: str
    speed_mbit: float
    node: str

    @property
    def is_realsense(self) -> bool:
        """Whether it is an Intel RealSense."""
        return self.vendor == INTEL and "realsense" in self.name.lower()


@dataclass(frozen=True)
class SerialPlace:
    """A serial port's place on USB.

    Attributes:
        device: The USB device.
        interface: Number of its interface, two hexadecimal digits.
        interfaces: How many it has; an adapter with several ports has several.
        driver: `cdc_acm`, `ftdi_sio`, `ch341`, ...
        latency_ms: How long an FTDI adapter waits for more before it hands on what it has; None for others.
    """

    device: UsbDevice
    interface: str
    interfaces: int
    driver: str
    latency_ms: int | None


@dataclass(frozen=True)
class VideoNode:
    """One `/dev/videoN`.

    Attributes:
        path: The node.
        name: What the driver calls it.
        index: 0 for the pictures; others of the same device carry metadata or other streams.
        device: Its USB device; None if it is not on USB.
    """

    path: str
    name: str
    index: int
    device: UsbDevice | None


def serial_place(port: str, sys: Path = SYS) -> SerialPlace | None:
    """Where the serial port `port` (not a link) sits on USB; None if it does not."""
    entry = sys / "class/tty" / Path(port).name / "device"
    if not entry.exists():
        return None
    folder = entry.resolve()
    interface = next((each for each in (folder, *folder.parents) if _text(each, "bInterfaceNumber")), None)
    device = _device(folder)
    if interface is None or device is None:
        return None
    driver = interface / "driver"
    latency = _text(folder, "latency_timer")
    return SerialPlace(
        device,
        interface=_text(interface, "bInterfaceNumber"),
        interfaces=int(_text(interface.parent, "bNumInterfaces") or 1),
        driver=driver.resolve().name if driver.exists() else "",
        latency_ms=int(latency) if latency.isdigit() else None,
    )


def realsense_devices(sys: Path = SYS) -> list[UsbDevice]:
    """Every RealSense on USB, also where librealsense is not installed or may not open it."""
    devices = (_device(entry.resolve()) for entry in sorted((sys / "bus/usb/devices").glob("*")))
    found = {device.socket: device for device in devices if device is not None and device.is_realsense}
    return list(found.values())


def video_nodes(sys: Path = SYS) -> list[VideoNode]:
    """Every video node, by number."""
    entries = (sys / "class/video4linux").glob("video*")
    numbered = sorted((entry for entry in entries if entry.name[5:].isdigit()), key=lambda e: int(e.name[5:]))
    return [
        VideoNode(
            f"/dev/{entry.name}",
            _text(entry, "name"),
            int(_text(entry, "index") or 0),
            _device((entry / "device").resolve()) if (entry / "device").exists() else None,
        )
        for entry in numbered
    ]


def _device(folder: Path) -> UsbDevice | None:
    """The USB device that `folder` of /sys is or belongs to."""
    for each in (folder, *folder.parents):
        if vendor := _text(each, "idVendor"):
            bus, number = _text(each, "busnum"), _text(each, "devnum")
            speed = _text(each, "speed")
            return UsbDevice(
                each.name,
                vendor,
                _text(each, "idProduct"),
                _text(each, "serial") or None,
                " ".join(filter(None, (_text(each, "manufacturer"), _text(each, "product")))),
                float(speed) if speed.replace(".", "", 1).isdigit() else 0.0,
                f"/dev/bus/usb/{int(bus):03d}/{int(number):03d}"
                if bus.isdigit() and number.isdigit()
                else "",
            )
    return None


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(errors="replace").strip()
    except OSError:
        return ""
