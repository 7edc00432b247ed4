"""Serial ports by the serial number of what is plugged in, because their names change when it is plugged in anew.

Numbers come from pyserial and from the links of `/dev/serial/by-id`. A virtual lab has such links too, beside its
ports; nothing here opens a port or knows what speaks on it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from serial.tools import list_ports as pyserial_ports

DEV = Path("/dev")
BY_ID = Path("serial/by-id")
# udev's name for a serial port: usb-<maker and product>_<serial number>-if<interface>[-port<number>]
LINK = re.compile(r"usb-(?P<what>.+)_(?P<serial>[^_]+)-if[0-9a-fA-F]{2}(-port\d+)?")


@dataclass(frozen=True)
class SerialPort:
    """One serial port that is there now.

    Attributes:
        path: Its name now, for example `/dev/ttyACM0`.
        serial_number: Of the USB device behind it; None if it has none.
        vendor_id, product_id: USB's numbers; None if it is not on USB.
        description: What the device calls itself.
    """

    path: str
    serial_number: str | None
    vendor_id: int | None
    product_id: int | None
    description: str


def list_ports(*folders: str | os.PathLike[str]) -> list[SerialPort]:
    """Every serial port that is there, sorted by path.

    Args:
        folders: Where else to look for `serial/by-id`, beside `/dev` and the folder of a running virtual lab
            (`LEROBOT_LAB_DIR` or `/tmp/lerobot_lab`).
    """
    ports = {
        port.device: SerialPort(port.device, port.serial_number, port.vid, port.pid, port.description or "")
        for port in pyserial_ports.comports()
    }
    for folder in dict.fromkeys([DEV, _lab(), *(_root(Path(folder).absolute()) for folder in folders)]):
        for linked in _linked(folder):
            known = ports.get(linked.path)
            if known is None:
                ports[linked.path] = linked
            elif known.serial_number is None:
                ports[linked.path] = replace(known, serial_number=linked.serial_number)
    return sorted(ports.values(), key=lambda port: port.path)


def serial_number_of(path: str | os.PathLike[str]) -> str | None:
    """Serial number of the device behind the port `path` (a name, a link to it, or its name under `by-id`).

    Returns:
        None if there is no such port, or nothing tells its number.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return None
    for port in list_ports(Path(path).absolute().parent):
        if port.serial_number and os.path.realpath(port.path) == real:
            return port.serial_number
    return None


def find(serial_number: str, *folders: str | os.PathLike[str]) -> str | None:
    """The present path of the port whose device has that serial number.

    Args:
        serial_number: As `serial_number_of` gave it.
        folders: As for `list_ports`; a virtual lab that is not the default one is found by its folder.

    Returns:
        None if it is not plugged in, or if several ports have that number: a guess could move the wrong arm.
    """
    paths = [port.path for port in list_ports(*folders) if port.serial_number == serial_number]
    return paths[0] if len({os.path.realpath(path) for path in paths}) == 1 else None


def _root(folder: Path) -> Path:
    """`folder`, or the one above `serial/by-id` if it is that."""
    return folder.parents[1] if folder.parts[-2:] == BY_ID.parts else folder


def _lab() -> Path:
    return Path(os.environ.get("LEROBOT_LAB_DIR") or "/tmp/lerobot_lab").absolute()


def _linked(folder: Path) -> list[SerialPort]:
    """Ports that `serial/by-id` in `folder` names; a link whose port has gone does not count."""
    ports = []
    try:
        links = sorted((folder / BY_ID).iterdir())
    except OSError:
        return []
    for link in links:
        name = LINK.fullmatch(link.name)
        if name is None or not link.is_symlink() or not link.exists():
            continue
        path = os.path.normpath(link.parent / os.readlink(link))
        ports.append(SerialPort(path, name["serial"], None, None, name["what"].replace("_", " ")))
    return ports
