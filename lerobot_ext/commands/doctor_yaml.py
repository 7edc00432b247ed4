"""Lines for a YAML of `lerobot-ext record`, to paste: the devices that were found, or what a given YAML should say.

Text only; what was found comes from `doctor_survey`, what should be corrected from `doctor_compare`.
"""

from __future__ import annotations

import yaml

from lerobot_ext.commands.doctor_cameras import LAB, REALSENSE
from lerobot_ext.commands.doctor_config import nested
from lerobot_ext.commands.doctor_ports import ARM, FT300, SKIN
from lerobot_ext.commands.doctor_survey import Port, Survey

LEFT, RIGHT = "_left", "_right"  # how LeRobot's robots of two arms end their arms' ids


def snippet(survey: Survey) -> str:
    """Lines for a YAML: what it should say instead if one was given, else what was found. Empty: nothing to say."""
    if survey.config_path:
        if not survey.corrections:
            return ""
        return yaml.safe_dump(nested(survey.corrections), sort_keys=False)
    return _fresh(survey)


def _fresh(survey: Survey) -> str:
    """A YAML's device part for what was found."""
    followers, leaders = survey.that_is("follower"), survey.that_is("leader")
    unknown = [port for port in survey.ports if port.answer.kind == ARM and not port.role.name]
    remarks = {}
    for role, ports in (("follower", followers), ("leader", leaders)):
        if not ports and unknown:
            ports.append(unknown.pop(0))
            remarks[role] = "   # a guess: it may be the other arm"
    lines = []
    cameras, sensors = _camera_lines(survey), _sensor_lines(survey)
    if followers or cameras or sensors:
        lines += ["robot:"]
        lines += _pair_lines(followers, "bi_so101_follower_ext   # or bi_so100_follower_ext") or [
            "  type: so101_follower_ext   # or so100_follower_ext",
            *_arm_lines(followers, "follower", remarks),
        ]
        lines += ["  cameras:", *cameras] if cameras else []
        lines += ["  force_sensors:", *sensors] if sensors else []
    if leaders:
        lines += ["teleop:"]
        lines += _pair_lines(leaders, "bi_so_leader") or [
            "  type: so101_leader   # or so100_leader",
            *_arm_lines(leaders, "leader", remarks),
        ]
    return "\n".join([*lines, ""]) if lines else ""


def _pair_lines(ports: list[Port], kind: str) -> list[str]:
    """For two arms that were calibrated as a left and a right one of the same robot; empty if they were not."""
    ids = {port.role.id: port for port in ports}
    stem = next((id_.removesuffix(LEFT) for id_ in ids if id_.endswith(LEFT)), None)
    if stem is None or set(ids) != {stem + LEFT, stem + RIGHT}:
        return []
    lines = [f"  type: {kind}", f"  id: {_quoted(stem)}", *_calibration_lines(ids[stem + LEFT])]
    for side in (LEFT, RIGHT):
        lines += [f"  {side[1:]}_arm_config:", f"    port: {_quoted(ids[stem + side].lasting)}"]
    return lines


def _calibration_lines(port: Port) -> list[str]:
    """Where the arm's calibration is, if LeRobot would not look there."""
    folder = port.role.calibration.path.parent
    return [] if "so_" in folder.name else [f"  calibration_dir: {_quoted(str(folder))}"]


def _arm_lines(ports: list[Port], role: str, remarks: dict[str, str]) -> list[str]:
    lines = []
    for number, port in enumerate(ports):
        mark = "  # another one: " if number else "  "
        if port.role.calibration is not None and not number:
            lines += [f"  id: {_quoted(port.role.id)}", *_calibration_lines(port)]
        elif not number:
            lines.append(f"  id: {role}   # the name you calibrate it under")
        lines.append(f"{mark}port: {_quoted(port.lasting)}{remarks.get(role, '')}")
    return lines


def _camera_lines(survey: Survey) -> list[str]:
    lines = []
    for number, camera in enumerate(survey.cameras, 1):
        if camera.kind == REALSENSE and camera.id:
            key = "serial_number_or_name"
            lines += [
                f"    camera{number}:   # {camera.name}",
                "      type: realsense_rgbd",
                f'      {key}: "{camera.id}"',
            ]
        elif camera.kind == LAB and camera.id.startswith("virtual:"):
            value = _quoted(camera.id)
            lines += ["    side:", "      type: realsense_rgbd", f"      serial_number_or_name: {value}"]
        elif camera.kind == LAB:
            host, _, port = camera.id.partition(":")
            name = camera.camera_name
            lines += [
                f"    {name}:",
                "      type: zmq",
                f"      server_address: {host}",
                f"      port: {port}",
            ]
            lines += [f"      camera_name: {name}"]
        elif camera.kind != REALSENSE:
            value = _quoted(camera.id)
            lines += [
                f"    camera{number}:   # {camera.name}",
                "      type: opencv",
                f"      index_or_path: {value}",
            ]
    return lines


def _sensor_lines(survey: Survey) -> list[str]:
    lines = []
    for kind, type_ in ((SKIN, "anyskin"), (FT300, "robotiq_ft300")):
        for number, port in enumerate(survey.that_is(kind), 1):
            lines += [f"    {kind}{'' if number == 1 else number}:", f"      type: {type_}"]
            lines += [f"      port: {_quoted(port.lasting)}"]
            if kind == SKIN and port.answer.magnetometers != 5:
                lines.append(f"      num_magnetometers: {port.answer.magnetometers}")
    return lines


def _quoted(text: str) -> str:
    """`text` as a YAML scalar."""
    return yaml.safe_dump(text, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
