"""The doctor at this machine's devices: ports and what answers there, cameras, permissions, and a YAML if one is given.

Everything is looked at by `doctor_survey`; here it is told, a check a device. A YAML is compared in `doctor_compare`,
lines to paste are made in `doctor_yaml`, udev rules in `udev`.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from lerobot_ext.commands import doctor_arms, doctor_compare, doctor_yaml, udev
from lerobot_ext.commands.doctor_access import obstacles, remedy
from lerobot_ext.commands.doctor_cameras import LAB, REALSENSE, FoundCamera
from lerobot_ext.commands.doctor_checks import FAILED, OK, WARNING, Check, Finding
from lerobot_ext.commands.doctor_ports import ARM, BROKEN, BUILT_IN, BUSY, FORBIDDEN, FT300, SILENT, SKIN
from lerobot_ext.commands.doctor_servos import MOTORS, STS3215, Servo, motor_name
from lerobot_ext.commands.doctor_survey import Port, Survey
from lerobot_ext.robots.servo_errors import with_remedies

WARM_C = 55  # LeRobot's arms work at 30 to 45 degrees; servos cut off at 70
SLOW_FTDI_MS = 2
BUSY_LOAD = 0.8  # share of the processors that is in use before anything is recorded


def checks(survey: Survey) -> list[Check[Survey]]:
    """What is told, a line each."""
    asked = [port for port in survey.ports if port.answer.kind != BUILT_IN]
    return [
        Check("computer", look_at_computer),
        Check("permissions", look_at_permissions),
        *(Check(short(port.path), partial(look_at_port, port=port)) for port in asked),
        *([] if asked else [Check("serial ports", look_at_no_ports)]),
        *(Check(_camera_name(camera), partial(look_at_camera, camera=camera)) for camera in survey.cameras),
        *([] if survey.cameras and not survey.camera_problem else [Check("cameras", look_at_no_cameras)]),
        Check("udev rules", look_at_rules),
        *doctor_compare.checks(survey),
    ]


def more(survey: Survey) -> dict[str, Any]:
    """What programs are told beside the findings: ports, cameras, a YAML to paste, udev rules."""
    return {
        "ports": [port.figures() for port in survey.ports],
        "cameras": [camera.figures() for camera in survey.cameras],
        "labs": [str(directory) for directory in survey.labs],
        "yaml": doctor_yaml.snippet(survey),
        "udev": udev.rules(survey.ports, survey.cameras),
    }


def look_at_computer(survey: Survey) -> Finding:
    """Is it free to record?"""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    found = f"{processors} processors, {100 * load / processors:.0f} % of them busy in the last minute"
    figures = {"processors": processors, "load": load}
    if load > BUSY_LOAD * processors:
        return Finding(
            WARNING, found, "close other programs before you record, or frames will be late", figures
        )
    return Finding(OK, found, figures=figures)


def look_at_permissions(survey: Survey) -> Finding:
    """May this user open what is there?"""
    nodes = survey.nodes()
    found = obstacles(nodes)
    if not found:
        return Finding(OK, f"this user may open all {len(nodes)} device nodes")
    listed = ", ".join(f"{each.path} ({each.owners})" for each in found)
    figures = {"nodes": [each.path for each in found]}
    return Finding(FAILED, f"this user may not open {listed}", remedy(found), figures)


def look_at_no_ports(survey: Survey) -> Finding:
    """None is there."""
    built_in = f" (but {len(survey.ports)} of the mainboard, not asked)" if survey.ports else ""
    advice = "plug the arms in; without an arm, try the virtual lab: lerobot-ext lab --detach"
    return Finding(WARNING, f"none is there{built_in}", advice)


def look_at_port(survey: Survey, port: Port) -> Finding:
    """What answers at a port?"""
    answer, named = port.answer, _described(port)
    if answer.kind == ARM:
        return _look_at_arm(port)
    if answer.kind == SKIN:
        found = (
            f"magnetic skin, {answer.magnetometers} magnetometers, about {answer.rate_hz:.0f} frames a second"
        )
        return Finding(OK, found)
    if answer.kind == FT300:
        how = (
            f"streams about {answer.rate_hz:.0f} times a second"
            if answer.streaming
            else "does not stream yet"
        )
        return Finding(OK, f"Robotiq FT 300 force sensor, {how}")
    if answer.kind == BUSY:
        who = ", ".join(answer.holders) or "another program, of another user perhaps"
        return Finding(
            WARNING, f"{named}in use by {who}; not asked, so as not to disturb it", "stop it and look again"
        )
    if answer.kind == FORBIDDEN:
        return Finding(
            FAILED, f"{named}not looked at: this user may not open it", remedy(obstacles([port.path]))
        )
    if answer.kind == BROKEN:
        return Finding(
            FAILED, f"{named}cannot be opened: {answer.error}", "unplug it, plug it in again, look again"
        )
    if answer.kind == SILENT:
        advice = "an arm? switch on its own power supply and look again"
        return Finding(WARNING, f"{named}nothing answers: no servo at 1 Mbit/s, no skin, no FT 300", advice)
    found = f"{named}unknown: {answer.received} bytes at {answer.baudrate} baud that are no skin's, first {answer.sample}"
    return Finding(
        WARNING, found, "if it should be a skin or an FT 300, unplug it, plug it in again, look again"
    )


def _look_at_arm(port: Port) -> Finding:
    servos = port.answer.servos
    missing = [number for number in range(1, 7) if number not in servos]
    notes, advice = [_feelings(servos)], _complaints(port)
    strange = [servo for servo in servos.values() if servo.model != STS3215]
    if strange:
        notes.append(f"not STS3215: {', '.join(f'{servo.name} is model {servo.model}' for servo in strange)}")
    found = f"{port.role}; {'; '.join(notes)}"
    if missing:
        names = ", ".join(map(motor_name, missing))
        return Finding(FAILED, f"{found}; motors {names} do not answer", _what_of_missing(missing, servos))
    if not port.role.name:
        advice.append(doctor_arms.SILENCE_ADVICE)
    return Finding(WARNING if advice else OK, found, "; ".join(advice))


def _feelings(servos: dict[int, Servo]) -> str:
    volts = sorted({servo.voltage_v for servo in servos.values() if servo.voltage_v is not None})
    degrees = sorted({servo.temperature_c for servo in servos.values() if servo.temperature_c is not None})
    parts = ["motors 1 to 6" if len(servos) == len(MOTORS) else f"motors {', '.join(map(str, servos))}"]
    if volts:
        parts.append(f"{volts[0]:.1f} V" if volts[0] == volts[-1] else f"{volts[0]:.1f} to {volts[-1]:.1f} V")
    if degrees:
        parts.append(f"{degrees[0]} °C" if degrees[0] == degrees[-1] else f"{degrees[0]} to {degrees[-1]} °C")
    if any(servo.torque for servo in servos.values()):
        parts.append("torque is on")
    return ", ".join(parts)


def _complaints(port: Port) -> list[str]:
    """What is wrong with an arm that answers."""
    found = []
    for servo in port.answer.servos.values():
        if servo.errors:
            found.append(f"motor {servo.name} reports {with_remedies(servo.errors)}")
        volts, least, most = servo.voltage_v, servo.min_voltage_v, servo.max_voltage_v
        if volts is not None and least is not None and not least <= volts <= most:
            found.append(
                f"motor {servo.name} gets {volts:.1f} V and takes {least:.1f} to {most:.1f} V: check the supply"
            )
        if servo.temperature_c is not None and servo.temperature_c >= WARM_C:
            found.append(f"motor {servo.name} has {servo.temperature_c} °C: let it cool down")
    if port.place is not None and (port.place.latency_ms or 0) > SLOW_FTDI_MS:
        found.append(
            f"its adapter holds back what it receives for {port.place.latency_ms} ms: `lerobot-ext doctor --udev` "
            "prints the rule that mends it"
        )
    return found


def _what_of_missing(missing: list[int], servos: dict[int, Servo]) -> str:
    if list(servos) == [1] and len(missing) == 5:
        return "new motors all have id 1: give them theirs with `lerobot-setup-motors`; else check the cable behind motor 1"
    first = missing[0]
    before = motor_name(first - 1) if first > 1 else "the controller"
    return f"check the cable between {before} and {motor_name(first)}, and the ids (`lerobot-setup-motors`)"


def look_at_no_cameras(survey: Survey) -> Finding:
    """None is there, or librealsense could not be asked."""
    there = any(camera.kind == REALSENSE for camera in survey.cameras)
    if survey.camera_problem:
        problem, _, advice = survey.camera_problem.partition("; ")
        return Finding(
            FAILED if there else WARNING, f"RealSense cameras were not looked for: {problem}", advice
        )
    return Finding(WARNING, "none is there", "plug one in; a RealSense belongs in a USB 3 socket")


def look_at_camera(survey: Survey, camera: FoundCamera) -> Finding:
    """Is it well connected?"""
    if camera.kind == LAB:
        return Finding(OK, f"{camera.name}: {camera.id}")
    closed = obstacles(node for node in camera.nodes if node)
    if closed:
        return Finding(FAILED, f"{camera.name}: this user may not open {closed[0].path}", remedy(closed))
    if camera.kind != REALSENSE:
        return Finding(OK, f"{camera.name}: {camera.id}")
    speed = f", USB {camera.usb}" if camera.usb else ""
    firmware = f", firmware {camera.firmware}" if camera.firmware else ""
    found = f"{camera.name}, serial {camera.id or 'not known'}{speed}{firmware}"
    if not camera.id and not survey.camera_problem:
        return Finding(
            WARNING, f"{found}; librealsense does not see it", "unplug it, plug it in again, look again"
        )
    advice = []
    if camera.on_usb2:
        advice.append(
            "it is on USB 2, too slow for colour and depth at 640x480: use a USB 3 socket and cable"
        )
    if camera.newer_firmware:
        advice.append(f"firmware {camera.newer_firmware} is recommended: update it with `rs-fw-update`")
    return Finding(WARNING if advice else OK, found, "; ".join(advice))


def look_at_rules(survey: Survey) -> Finding:
    """Would udev rules help?"""
    known = [port for port in survey.ports if port.place is not None and port.what]
    nameless = [port.path for port in known if not port.has_own_name]
    realsense = any(camera.kind == REALSENSE and camera.usb_device for camera in survey.cameras)
    printing = "`lerobot-ext doctor --udev` prints rules and how to install them"
    if realsense and not udev.has_realsense_rules():
        return Finding(WARNING, "there are none for RealSense cameras", printing)
    if nameless:
        return Finding(OK, f"{', '.join(nameless)} have no name of their own", printing)
    return Finding(OK, "none is needed")


def short(path: str) -> str:
    """A port's name in the first column."""
    return path.removeprefix("/dev/")


def _described(port: Port) -> str:
    return f"{port.description}: " if port.description else ""


def _camera_name(camera: FoundCamera) -> str:
    if camera.kind == LAB:
        return f"lab's {camera.camera_name or 'side'} camera"
    return (
        f"camera {camera.id}"
        if camera.kind == REALSENSE and camera.id
        else f"camera {short((*camera.nodes, '')[0])}"
    )
