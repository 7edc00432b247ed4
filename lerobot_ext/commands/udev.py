"""A file of udev rules for the devices that the doctor found: lasting names, permissions, no delays. Text only.

Nothing is written to the system; `lerobot-ext doctor --udev` prints the text, and its comments say how to install it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lerobot_ext.commands.doctor_cameras import REALSENSE, VIDEO, FoundCamera
from lerobot_ext.commands.doctor_ports import ARM
from lerobot_ext.commands.doctor_survey import Port
from lerobot_ext.commands.doctor_usb import UsbDevice

# After 60-serial.rules, which tells the interface, and before 73-seat-late.rules and 80-mm-candidate.rules, which
# read what is set here.
FILE = "70-lerobot.rules"
FOLDERS = ("/etc/udev/rules.d", "/lib/udev/rules.d", "/usr/lib/udev/rules.d")
REALSENSE_FILES = "*realsense*.rules"
REALSENSE_SOURCE = (
    "https://github.com/IntelRealSense/librealsense/blob/master/config/99-realsense-libusb.rules"
)
FTDI = "ftdi_sio"

HEADER = f"""\
# Made by `lerobot-ext doctor --udev` for the devices that were plugged in. To install:
#   lerobot-ext doctor --udev > {FILE}
#   sudo install -m 644 {FILE} /etc/udev/rules.d/
#   sudo udevadm control --reload-rules && sudo udevadm trigger
# and plug the devices in again. Then use the names /dev/lerobot_... in your YAML.
"""


def rules(ports: Sequence[Port], cameras: Sequence[FoundCamera], folders: Sequence[str] = FOLDERS) -> str:
    """The rules file for what was found.

    Args:
        ports: With what answers on each.
        cameras: Those with a video node get a name, a RealSense without Intel's rules gets permissions.
        folders: Where rules are looked for.
    """
    lines = [HEADER, 'ACTION=="remove", GOTO="lerobot_end"', ""]
    on_usb = [port for port in ports if port.place is not None]
    names = _names(on_usb)
    twins = Counter(_identity(port) for port in on_usb)
    for port in on_usb:
        lines += _serial_rules(port, names.get(port.path), twins[_identity(port)] > 1)
    off_usb = [
        port.path for port in ports if port.place is None and port.answer.kind in (ARM, "skin", "ft300")
    ]
    if off_usb:
        lines += [f"# not on USB, so they need no rule: {', '.join(off_usb)}", ""]
    for number, camera in enumerate((each for each in cameras if each.kind == VIDEO and each.usb_device), 1):
        lines += _video_rules(camera, number)
    realsense = [camera for camera in cameras if camera.kind == REALSENSE and camera.usb_device]
    if realsense and not has_realsense_rules(folders):
        lines += _realsense_rules(realsense)
    return "\n".join([*lines, 'LABEL="lerobot_end"', ""])


def has_realsense_rules(folders: Sequence[str] = FOLDERS) -> bool:
    """Whether Intel's rules, or others for RealSense, are installed."""
    return any(any(Path(folder).glob(REALSENSE_FILES)) for folder in folders)


def _names(ports: Sequence[Port]) -> dict[str, str]:
    """`lerobot_follower` and so on, by path; with the arm's id or a number where several are the same."""
    kinds = {port.path: _kind(port) for port in ports if _kind(port)}
    several = Counter(kinds.values())
    names: dict[str, str] = {}
    for port in ports:
        kind = kinds.get(port.path)
        if kind is None:
            continue
        if several[kind] > 1 and port.role is not None and port.role.id:
            name = f"lerobot_{kind}_{re.sub(r'[^A-Za-z0-9_-]', '_', port.role.id)}"
        elif several[kind] > 1 or kind == "arm":
            name = f"lerobot_{kind}_{1 + sum(kinds.get(path) == kind for path in names)}"
        else:
            name = f"lerobot_{kind}"
        names[port.path] = name
    return names


def _kind(port: Port) -> str:
    if port.answer.kind == ARM:
        return port.role.name if port.role and port.role.name else "arm"
    return port.answer.kind if port.answer.kind in ("skin", "ft300") else ""


def _serial_rules(port: Port, name: str | None, has_twin: bool) -> list[str]:
    place = port.place
    what = f"{port.path}: {port.what or port.answer.kind}, {place.device.name}"
    if name is None:
        return [f"# {_comment(what)}: no rule, because nothing known answered", ""]
    matches = ['SUBSYSTEM=="tty"', *_device_matches(place.device, has_twin)]
    notes = []
    if not place.device.serial_number or has_twin:
        why = (
            "no serial number" if not place.device.serial_number else "a serial number that another has, too"
        )
        notes.append(f"# It has {why}: this holds only while it stays in USB socket {place.device.socket}.")
    if place.interfaces > (2 if place.driver == "cdc_acm" else 1):  # cdc_acm: control and data make one port
        matches.append(f'ENV{{ID_USB_INTERFACE_NUM}}=="{place.interface}"')
    settings = [f'SYMLINK+="{name}"', 'GROUP="dialout"', 'MODE="0660"', 'TAG+="uaccess"']
    # ModemManager would open a new port for some seconds and send it modem commands.
    settings += ['ENV{ID_MM_DEVICE_IGNORE}="1"', 'ENV{ID_MM_PORT_IGNORE}="1"']
    lines = [f"# {_comment(what)}", *notes, ", ".join([*matches, *settings])]
    if place.driver == FTDI:
        tuned = ['ACTION=="add"', 'SUBSYSTEM=="usb-serial"', f'DRIVER=="{FTDI}"']
        lines += [
            "# FTDI adapters keep what they receive for 16 ms; 1 ms lets the arm be read in time.",
            ", ".join([*tuned, *_device_matches(place.device, has_twin), 'ATTR{latency_timer}="1"']),
        ]
    return [*lines, ""]


def _video_rules(camera: FoundCamera, number: int) -> list[str]:
    matches = ['SUBSYSTEM=="video4linux"', 'ATTR{index}=="0"', *_device_matches(camera.usb_device, False)]
    settings = [f'SYMLINK+="lerobot_camera_{number}"', 'GROUP="video"', 'MODE="0660"', 'TAG+="uaccess"']
    return [f"# {_comment(f'{camera.id}: {camera.name}')}", ", ".join([*matches, *settings]), ""]


def _realsense_rules(cameras: Sequence[FoundCamera]) -> list[str]:
    lines = [
        "# RealSense: no rules for it were found. These give access to those that are plugged in; Intel's file,",
        f"# which knows all models, is {REALSENSE_SOURCE}",
    ]
    for product in dict.fromkeys(camera.usb_device.product for camera in cameras):
        known = f'ATTRS{{idVendor}}=="8086", ATTRS{{idProduct}}=="{product}"'
        for subsystem in ("usb", "video4linux"):
            group = "plugdev" if subsystem == "usb" else "video"
            lines.append(f'SUBSYSTEM=="{subsystem}", {known}, GROUP="{group}", MODE="0660", TAG+="uaccess"')
    return [*lines, ""]


def _device_matches(device: UsbDevice, by_socket: bool) -> list[str]:
    """What a rule must ask to mean that device, and no other."""
    matches = [f'ATTRS{{idVendor}}=="{device.vendor}"', f'ATTRS{{idProduct}}=="{device.product}"']
    if device.serial_number and not by_socket:
        # udev compares with shell patterns; a character that means something there is asked for by `?`
        matches.append(f'ATTRS{{serial}}=="{re.sub(r"[^A-Za-z0-9 ._:-]", "?", device.serial_number)}"')
    else:
        matches.insert(0, f'KERNELS=="{device.socket}"')
    return matches


def _identity(port: Port) -> tuple[str, str, str | None, str]:
    device = port.place.device
    return device.vendor, device.product, device.serial_number, port.place.interface


def _comment(text: str) -> str:
    return " ".join(text.split())
