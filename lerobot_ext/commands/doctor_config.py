"""Which devices a YAML of `lerobot-ext record` or `evaluate` names; reads the mapping only, looks at no device.

The YAML is not decoded by LeRobot here: that costs seconds, and the doctor shall also read a YAML with a mistake in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLLOWER, LEADER, SKIN, FT300 = "follower", "leader", "skin", "ft300"
SENSORS = {"anyskin": SKIN, "robotiq_ft300": FT300}
VIRTUAL = "virtual:"
SO_TYPES = ("so100", "so101", "so_", "bi_so")
SIDES = {"left_arm_config": "left", "right_arm_config": "right"}


@dataclass(frozen=True)
class NamedPort:
    """A serial port in a YAML.

    Attributes:
        key: `robot.port`.
        path: Its value.
        expects: What should answer: FOLLOWER, LEADER, SKIN, FT300; empty if the doctor does not know that type.
        section: The mapping it stands in, under `key` without its last word.
        type: The device's type.
        side: "left" or "right" for an arm of two.
    """

    key: str
    path: str
    expects: str
    section: dict[str, Any] = field(compare=False)
    type: str
    side: str = ""

    @property
    def arm_type(self) -> str:
        """LeRobot's type of this arm alone, for `lerobot-calibrate`."""
        kind = self.type.removesuffix("_ext").removeprefix("bi_")
        return kind.replace("so_", "so101_") if self.side else kind

    @property
    def id(self) -> str:
        """Of an arm; empty if none is given."""
        return str(self.section.get("id") or "")

    @property
    def calibration_dir(self) -> str:
        """Of an arm; empty: LeRobot's own place."""
        return str(self.section.get("calibration_dir") or "")


@dataclass(frozen=True)
class NamedCamera:
    """A camera in a YAML.

    Attributes:
        key: `robot.cameras.side`.
        type: Its type.
        settings: What the YAML says of it.
    """

    key: str
    type: str
    settings: dict[str, Any] = field(compare=False)

    @property
    def virtual_side(self) -> str:
        """Path of the lab's `side` socket, the default lab's if the YAML says `virtual:`; empty: a real camera."""
        name = str(self.settings.get("serial_number_or_name") or "")
        if not name.startswith(VIRTUAL):
            return ""
        from lerobot_ext.virtual.link import lab_dir

        return name.removeprefix(VIRTUAL) or str(lab_dir() / "side")


def named_ports(data: dict[str, Any]) -> list[NamedPort]:
    """Every serial port of arms and sensors in a YAML, in its order."""
    found = []
    for top, role in (("robot", FOLLOWER), ("teleop", LEADER)):
        root = data.get(top)
        for path, section in _mappings(root, (top,)):
            port = section.get("port")
            if not isinstance(port, str) or "cameras" in path:
                continue
            if "force_sensors" in path:
                kind = str(section.get("type") or "")
                expects = SENSORS.get(kind, "")
            else:
                kind = str(section.get("type") or root.get("type") or "")
                expects = role if kind.startswith(SO_TYPES) else ""
            side = SIDES.get(path[-1], "")
            if side:  # LeRobot makes the arms' ids of the robot's
                id_ = f"{root['id']}_{side}" if root.get("id") else ""
                section = section | {"id": id_, "calibration_dir": root.get("calibration_dir")}
            found.append(NamedPort(".".join((*path, "port")), port, expects, section, kind, side))
    return found


def named_cameras(data: dict[str, Any]) -> list[NamedCamera]:
    """Every camera in a YAML, in its order."""
    return [
        NamedCamera(".".join(path), str(section.get("type") or ""), section)
        for path, section in _mappings(data.get("robot"), ("robot",))
        if len(path) >= 3 and path[-2] == "cameras"
    ]


def calibration_file(named: NamedPort, root: Path) -> Path:
    """Where LeRobot looks for an SO arm's calibration, below `root` unless the YAML says otherwise."""
    if named.calibration_dir:
        return Path(named.calibration_dir).expanduser() / f"{named.id}.json"
    folder = "robots/so_follower" if named.expects == FOLLOWER else "teleoperators/so_leader"
    return root / folder / f"{named.id or None}.json"  # without an id, LeRobot calls it None.json


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def _mappings(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """`node` and every mapping in it, with the way to it."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _mappings(value, (*path, str(key)))
