"""What the doctor knows of this machine's devices: serial ports and what answers there, cameras, virtual labs.

`survey` looks at everything once; the checks in `doctor_devices` and `doctor_yaml` tell of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lerobot_ext import serial_ports
from lerobot_ext.commands import config as config_files
from lerobot_ext.commands import doctor_arms, doctor_cameras, doctor_ports, doctor_usb
from lerobot_ext.commands.doctor_arms import Calibration, Role
from lerobot_ext.commands.doctor_cameras import FoundCamera
from lerobot_ext.commands.doctor_config import NamedCamera, NamedPort, named_cameras, named_ports
from lerobot_ext.commands.doctor_ports import ARM, BUILT_IN, Answer

AT_ONCE = 8  # ports that are looked at side by side
OWN_NAMES = "lerobot_*"  # links that our udev rules make
# udev's own links: by maker and serial number, which two of a kind may share, and by USB socket.
BY_ID, BY_PATH = Path("/dev/serial/by-id"), Path("/dev/serial/by-path")


@dataclass
class Port:
    """One serial port.

    Attributes:
        path: Its name now.
        lasting: A name that stays when it is plugged in anew; `path` if there is none.
        serial_number, vendor_id, product_id, description: Of the USB device.
        place: Where it sits on USB; None if it does not.
        answer: What was found there.
        role: Of an arm.
        has_own_name: Whether a udev rule of ours named it.
    """

    path: str
    lasting: str
    serial_number: str | None = None
    vendor_id: int | None = None
    product_id: int | None = None
    description: str = ""
    place: doctor_usb.SerialPlace | None = None
    answer: Answer = field(default_factory=lambda: Answer(BUILT_IN))
    role: Role | None = None
    has_own_name: bool = False

    @property
    def real(self) -> str:
        """Without links, to compare."""
        return os.path.realpath(self.path)

    @property
    def what(self) -> str:
        """In a word or two: what answers there."""
        if self.answer.kind == ARM:
            return f"the {self.role.name}" if self.role and self.role.name else "an arm"
        return {"skin": "a magnetic skin", "ft300": "a Robotiq FT 300"}.get(self.answer.kind, "")

    def figures(self) -> dict[str, Any]:
        """For programs."""
        role = self.role
        told = {
            "name": role.name,
            "sureness": role.sureness,
            "why": role.why,
            "id": role.id,
        } if role else None  # fmt: skip
        return {
            "path": self.path,
            "lasting": self.lasting,
            "serial_number": self.serial_number,
            "vendor_id": self.vendor_id,
            "product_id": self.product_id,
            "description": self.description,
            **asdict(self.answer),
            "role": told,
        }


@dataclass
class Survey:
    """Everything that was found.

    Attributes:
        ports: Serial ports.
        cameras: Cameras.
        camera_problem: Why librealsense could not be asked; empty if it could.
        labs: Status of each running virtual lab that was looked for, by its directory.
        calibration_root: Where LeRobot keeps calibration files.
        calibrations: Those there, and others that are known.
        config_path, data: The YAML; empty if none was given.
        named_ports, named_cameras: What the YAML names.
        corrections: What the YAML should say instead, by key.
    """

    ports: list[Port] = field(default_factory=list)
    cameras: list[FoundCamera] = field(default_factory=list)
    camera_problem: str = ""
    labs: dict[Path, Any] = field(default_factory=dict)
    calibration_root: Path = Path()
    calibrations: list[Calibration] = field(default_factory=list)
    config_path: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    named_ports: list[NamedPort] = field(default_factory=list)
    named_cameras: list[NamedCamera] = field(default_factory=list)
    corrections: dict[str, Any] = field(default_factory=dict)

    def port_at(self, path: str) -> Port | None:
        """The port of that name, whatever link is used for it."""
        real = os.path.realpath(path)
        return next((port for port in self.ports if port.real == real), None)

    def that_is(self, wanted: str) -> list[Port]:
        """Ports where `wanted` answers: "follower", "leader", "skin" or "ft300"."""
        return [
            port
            for port in self.ports
            if (port.role.name if port.role and port.answer.kind == ARM else port.answer.kind) == wanted
        ]

    def nodes(self) -> list[str]:
        """Every device node that somebody who records must be able to open."""
        serial = [port.path for port in self.ports if port.answer.kind != BUILT_IN]
        return [*serial, *(node for camera in self.cameras for node in camera.nodes if node)]


def survey(config_path: str | None = None) -> Survey:
    """Look at everything; takes some seconds, most of them for importing LeRobot and librealsense.

    Args:
        config_path: A YAML whose ports are looked at, too.

    Raises:
        UserError: If the YAML cannot be read.
    """
    from lerobot.utils.constants import HF_LEROBOT_CALIBRATION

    found = Survey(config_path=config_path, calibration_root=HF_LEROBOT_CALIBRATION)
    if config_path:
        found.data = config_files.load_yaml(config_path)
        found.named_ports, found.named_cameras = named_ports(found.data), named_cameras(found.data)
    lab_cameras = []
    for directory in _lab_directories(found.named_cameras):
        status, cameras = doctor_cameras.find_lab(directory)
        if status is not None:
            found.labs[directory] = status
            lab_cameras += cameras
    found.ports = _ports(found)
    found.calibrations = doctor_arms.calibrations(found.calibration_root, *_known_files(found))
    _look_at_ports(found)
    realsense, found.camera_problem = doctor_cameras.find_realsense()
    found.cameras = [*realsense, *doctor_cameras.find_video(), *lab_cameras]
    return found


def _lab_directories(named: list[NamedCamera]) -> list[Path]:
    from lerobot_ext.virtual.link import lab_dir

    virtual = [camera.virtual_side for camera in named if camera.virtual_side]
    return list(dict.fromkeys([lab_dir().absolute(), *(Path(side).absolute().parent for side in virtual)]))


def _ports(found: Survey) -> list[Port]:
    """Ports that are listed, and those that the YAML names, each once."""
    ports: dict[str, Port] = {}
    first_names = _first_names(found.labs)
    listed = serial_ports.list_ports(*found.labs)
    twins = Counter((each.vendor_id, each.product_id, each.serial_number) for each in listed)
    for each in listed:
        real = os.path.realpath(each.path)
        path = first_names.get(real, each.path)
        has_twin = twins[each.vendor_id, each.product_id, each.serial_number] > 1
        lasting, own = _lasting_name(path, (BY_PATH,) if has_twin else (BY_ID, BY_PATH))
        ports[real] = Port(
            path,
            lasting,
            each.serial_number,
            each.vendor_id,
            each.product_id,
            "" if each.description == "n/a" else each.description,
            doctor_usb.serial_place(real),
            has_own_name=own,
        )
    for named in found.named_ports:
        real = os.path.realpath(named.path)
        if os.path.exists(real) and real not in ports:
            ports[real] = Port(named.path, named.path)
    return sorted(ports.values(), key=lambda port: port.path)


def _first_names(directories: Iterable[Path]) -> dict[str, str]:
    """The labs' ports by what they lead to: `skin`, also when it was unplugged and came back as `skin1`, too."""
    names: dict[str, str] = {}
    for directory in directories:
        links = sorted(filter(Path.is_symlink, directory.iterdir()), key=lambda link: len(link.name))
        for link in links:
            names.setdefault(os.path.realpath(link), str(link))
    return names


def _look_at_ports(found: Survey) -> None:
    named = {os.path.realpath(each.path) for each in found.named_ports}
    # What is soldered to the mainboard is none of ours, and may be a console.
    asked = [port for port in found.ports if not _is_built_in(port) or port.real in named]
    holders = doctor_ports.find_holders([port.path for port in asked])
    if asked:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(lambda port: doctor_ports.look(port.path, holders.get(port.path, ())), asked)
            for port, answer in zip(asked, answers, strict=True):
                port.answer = answer
    arms = {port.path: port.answer.servos for port in found.ports if port.answer.kind == ARM}
    roles = doctor_arms.judge(arms, found.calibrations)
    for port in found.ports:
        port.role = roles.get(port.path)


def _is_built_in(port: Port) -> bool:
    return port.path.startswith("/dev/tty") and port.vendor_id is None and port.place is None


def _lasting_name(path: str, folders: Iterable[Path]) -> tuple[str, bool]:
    """A name of the port in one of `folders` of udev's links, and whether it is one that our own rules gave."""
    if not path.startswith("/dev/"):
        return path, False
    real = os.path.realpath(path)
    for link in sorted(Path("/dev").glob(OWN_NAMES)):
        if os.path.realpath(link) == real:
            return str(link), True
    names = (doctor_cameras.lasting_name(path, folder) for folder in folders)
    return next((name for name in names if name != path), path), False


def _known_files(found: Survey) -> list[tuple[str, Path]]:
    """Calibration files outside LeRobot's folders: those of labs, and those in the YAML's calibration_dir."""
    labs = [
        (role, file)
        for directory in found.labs
        for role in (doctor_arms.FOLLOWER, doctor_arms.LEADER)
        for file in sorted((directory / "calibration").glob(f"{role}*.json"))
    ]
    named = [
        (port.expects, Path(port.calibration_dir) / f"{port.id}.json")
        for port in found.named_ports
        if port.calibration_dir and port.id and port.expects in doctor_arms.OTHER
    ]
    return [*labs, *named]
