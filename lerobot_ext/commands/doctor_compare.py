"""The doctor compares a YAML with the devices that are there, and says which lines should read otherwise.

What is there comes from `doctor_survey`, what the YAML names from `doctor_config`. Each function is a check's look.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lerobot_ext.commands import doctor_arms, doctor_usb
from lerobot_ext.commands.doctor_cameras import REALSENSE, VIDEO
from lerobot_ext.commands.doctor_checks import FAILED, OK, WARNING, Check, Finding
from lerobot_ext.commands.doctor_config import NamedCamera, NamedPort, calibration_file
from lerobot_ext.commands.doctor_ports import ARM, BROKEN, BUILT_IN, BUSY, FORBIDDEN, SKIN
from lerobot_ext.commands.doctor_survey import Port, Survey

WANDERING = re.compile(r"/dev/tty(ACM|USB)\d+")
CALLED = {
    "follower": "the follower",
    "leader": "the leader",
    "skin": "a magnetic skin",
    "ft300": "a Robotiq FT 300",
}
CONNECT_S = 1.0
USUAL = 640, 480, 30  # of a camera whose size the YAML leaves open
EPISODES, EPISODE_S = 50, 60  # LeRobot's own


def checks(survey: Survey) -> list[Check[Survey]]:
    """What of the YAML is compared, a check for each device it names."""
    arms = [named for named in survey.named_ports if named.expects in doctor_arms.OTHER]
    disk = [Check("dataset.root", look_at_disk)] if isinstance(survey.data.get("dataset"), dict) else []
    return [
        *(Check(named.key, partial(look_at_port, named=named)) for named in survey.named_ports),
        *(
            Check(f"{named.key.removesuffix('port')}id", partial(look_at_calibration, named=named))
            for named in arms
        ),
        *(Check(named.key, partial(look_at_camera, named=named)) for named in survey.named_cameras),
        *disk,
    ]


def look_at_port(survey: Survey, named: NamedPort) -> Finding:
    """Does at that port answer what the YAML expects?"""
    sharing = [
        other.key
        for other in survey.named_ports
        if other.key != named.key and os.path.realpath(other.path) == os.path.realpath(named.path)
    ]
    port, place = survey.port_at(named.path), named.path
    if port is None:
        return _elsewhere(survey, named, f"{place} is not there")
    if not named.expects:
        return Finding(OK, f"{place} is there; the doctor does not know type '{named.type}'")
    answer, wanted = port.answer, CALLED[named.expects]
    if sharing:
        keys = ", ".join(sharing)
        if port in survey.that_is(named.expects):
            return Finding(
                FAILED, f"{place}: {keys} is the same port", f"{wanted} answers there: change {keys}"
            )
        return _elsewhere(survey, named, f"{place}: {keys} is the same port")
    if answer.kind == BUSY:
        return Finding(
            WARNING, f"{place} is in use, so it was not asked", "stop the other program and look again"
        )
    if answer.kind in (FORBIDDEN, BROKEN, BUILT_IN):
        return Finding(FAILED, f"{place} cannot be opened", "see the line of the port above")
    if answer.kind == ARM and named.expects in doctor_arms.OTHER:
        return _look_at_arm(survey, named, port)
    if answer.kind != named.expects:
        there = port.what or ("nothing" if answer.kind == "silent" else "something else")
        return _elsewhere(survey, named, f"{place}: {there} answers there, expected {wanted}")
    if answer.kind == SKIN:
        count = int(named.section.get("num_magnetometers") or 5)
        if count != answer.magnetometers:
            survey.corrections[f"{named.key.removesuffix('port')}num_magnetometers"] = answer.magnetometers
            return Finding(
                FAILED,
                f"{place}: the skin has {answer.magnetometers} magnetometers, the YAML says {count}",
                f"set num_magnetometers: {answer.magnetometers}",
            )
    return _lasting(survey, named, port, f"{wanted} answers at {named.path}")


def _look_at_arm(survey: Survey, named: NamedPort, port: Port) -> Finding:
    role = port.role
    if role.name and role.name != named.expects:
        found = f"{named.path}: the {role.name} answers there, expected the {named.expects} ({role.sureness}: {role.why})"
        finding = _elsewhere(survey, named, found)
        return finding if role.sureness == doctor_arms.SURE else replace(finding, status=WARNING)
    if not role.name:
        found = f"{named.path}: an arm answers; whether it is the {named.expects} is not known ({role.why})"
        return Finding(WARNING, found, doctor_arms.SILENCE_ADVICE)
    return _lasting(
        survey, named, port, f"the {role.name} answers at {named.path} ({role.sureness}: {role.why})"
    )


def _elsewhere(survey: Survey, named: NamedPort, found: str) -> Finding:
    """A failure, and where the device is if it is somewhere."""
    others = [port for port in survey.that_is(named.expects) if port.real != os.path.realpath(named.path)]
    if len(others) == 1:
        survey.corrections[named.key] = others[0].lasting
        answers = f"{CALLED[named.expects]} answers at {others[0].path}"
        return Finding(FAILED, found, f"{answers}: set {named.key}: {others[0].lasting}")
    if others:
        return Finding(FAILED, found, f"choose one of {', '.join(port.lasting for port in others)}")
    if named.expects in ("skin", "ft300"):
        return Finding(FAILED, found, "plug it in and look again")
    unknown = [port.path for port in survey.ports if port.answer.kind == ARM and not port.role.name]
    if unknown:
        return Finding(FAILED, found, f"it may be the arm at {' or '.join(unknown)}")
    return Finding(FAILED, found, "plug it in, switch its power supply on and look again")


def _lasting(survey: Survey, named: NamedPort, port: Port, found: str) -> Finding:
    """All is well, but the name may be another one tomorrow."""
    if WANDERING.fullmatch(named.path) and port.lasting != named.path:
        survey.corrections[named.key] = port.lasting
        return Finding(
            WARNING,
            f"{found}; that name can change when it is plugged in anew",
            f"set {named.key}: {port.lasting}",
        )
    return Finding(OK, found)


def look_at_calibration(survey: Survey, named: NamedPort) -> Finding:
    """Is there a calibration file for the arm's id, and do the motors hold it?"""
    section = named.key.partition(".")[0]
    path = calibration_file(named, survey.calibration_root)
    redo = (
        f"run `lerobot-calibrate --{section}.type={named.arm_type} --{section}.port={named.path} "
        f"--{section}.id={named.id}`"
    )
    if not named.id:
        known = sorted(file.id for file in survey.calibrations if file.role == named.expects)
        advice = f"give the id that the arm was calibrated under: {', '.join(known) or 'none is there yet'}"
        return Finding(WARNING, "no id, so each arm of this kind would share one calibration", advice)
    file = doctor_arms.read(named.expects, path)
    if file is None:
        known = sorted(other.id for other in survey.calibrations if other.role == named.expects)
        also = f"; there are files for {', '.join(known)}" if known else ""
        found = "holds no calibration" if path.exists() else "is not there"
        return Finding(FAILED, f"'{named.id}': {path} {found}{also}", redo)
    port = survey.port_at(named.path)
    if port is None or port.answer.kind != ARM:
        return Finding(OK, f"'{named.id}' has the calibration {path}; its motors were not asked")
    if port.role.name not in ("", named.expects):
        return Finding(OK, f"'{named.id}' has the calibration {path}; at {named.path} is another arm")
    differing = file.differing(port.answer.servos)
    if not differing:
        return Finding(OK, f"'{named.id}': the motors hold the calibration {path}")
    if port.role.sureness == doctor_arms.SURE and port.role.name == named.expects:
        if named.side:
            return _other_side(survey, named, port)
        survey.corrections[f"{named.key.removesuffix('port')}id"] = port.role.id
        found = f"'{named.id}': the motors hold the calibration of '{port.role.id}'"
        return Finding(FAILED, found, f"set {named.key.removesuffix('port')}id: {port.role.id}")
    names = ", ".join(port.answer.servos[number].name for number in differing)
    found = f"'{named.id}': motors {names} hold other numbers than {path}"
    return Finding(WARNING, found, f"if it is that arm, {redo}; LeRobot asks for it when it connects")


def _other_side(survey: Survey, named: NamedPort, port: Port) -> Finding:
    """An arm of two whose port is another arm's: the two were swapped, most likely."""
    found = f"'{named.id}': at {named.path} is '{port.role.id}', by the calibration that its motors hold"
    right = [each for each in survey.that_is(named.expects) if each.role.id == named.id]
    if not right:
        return Finding(FAILED, found, f"set {named.key} to the port of '{named.id}', or the robot's id")
    survey.corrections[named.key] = right[0].lasting
    return Finding(FAILED, found, f"set {named.key}: {right[0].lasting}")


def look_at_camera(survey: Survey, named: NamedCamera) -> Finding:
    """Is the camera there, and does it offer the size and rate?"""
    if named.virtual_side:
        return _look_at_lab_camera(survey, named)
    if named.type in ("realsense_rgbd", "intelrealsense"):
        return _look_at_realsense(survey, named)
    if named.type == "opencv":
        return _look_at_video(survey, named)
    if named.type == "zmq":
        address = named.settings.get("server_address"), named.settings.get("port") or 5555
        try:
            socket.create_connection(address, CONNECT_S).close()
        except OSError as error:
            found = f"nobody takes connections at {address[0]}:{address[1]} ({error.strerror or error})"
            return Finding(FAILED, found, "start the camera's program, or the lab: lerobot-ext lab --detach")
        return Finding(OK, f"somebody takes connections at {address[0]}:{address[1]}")
    return Finding(OK, f"not looked at: the doctor does not know cameras of type '{named.type}'")


def _wish(named: NamedCamera) -> tuple[int, int, int] | None:
    """Width, height, frames a second; None if the YAML leaves them to the camera."""
    found = tuple(named.settings.get(key) for key in ("width", "height", "fps"))
    return None if None in found else tuple(map(int, found))


def _look_at_lab_camera(survey: Survey, named: NamedCamera) -> Finding:
    directory = Path(named.virtual_side).absolute().parent
    status = survey.labs.get(directory)
    if status is None:
        running = [f"virtual:{each / 'side'}" for each in survey.labs]
        if running:
            survey.corrections[f"{named.key}.serial_number_or_name"] = running[0]
        advice = (
            f"one runs elsewhere: {running[0]}" if running else f"lerobot-ext lab --detach --dir={directory}"
        )
        return Finding(FAILED, f"no virtual lab runs in {directory}", advice)
    camera = status.camera
    there = camera.color.width, camera.color.height, camera.fps
    wish = _wish(named)
    if wish is not None and wish != there:
        both = zip(("width", "height", "fps"), wish, there, strict=True)
        survey.corrections |= {f"{named.key}.{key}": new for key, old, new in both if old != new}
        found = f"{_told(wish)} is not offered by the lab's {camera.name}; it gives {_told(there)}"
        return Finding(FAILED, found, "change the YAML, or start the lab with --width, --height, --fps")
    return Finding(OK, f"the lab's {camera.name} gives {_told(there)}")


def _look_at_realsense(survey: Survey, named: NamedCamera) -> Finding:
    name = str(named.settings.get("serial_number_or_name") or "")
    if name.lower().endswith(".bag"):
        from lerobot_ext.cameras import bag

        bag.check_whole(bag.path_of(name))
        return Finding(OK, f"the recording {name} stands for it")
    there = [camera for camera in survey.cameras if camera.kind == REALSENSE]
    fitting = [camera for camera in there if name in (camera.id, camera.name) and name]
    if len(fitting) == 1:
        return _offered(named, fitting[0])
    listed = ", ".join(f"'{camera.id}' ({camera.name})" for camera in there if camera.id)
    if len(fitting) > 1:
        return Finding(
            FAILED, f"{len(fitting)} cameras are called '{name}'", f"use a serial number: {listed}"
        )
    if survey.camera_problem:
        return Finding(FAILED, f"'{name}' was not looked for", survey.camera_problem)
    key = f"{named.key}.serial_number_or_name"
    if len(there) == 1 and there[0].id:
        survey.corrections[key] = there[0].id
        return Finding(
            FAILED, f"no RealSense '{name}' is there", f'set {key}: "{there[0].id}" ({there[0].name})'
        )
    return Finding(
        FAILED, f"no RealSense '{name}' is there", f"there are: {listed}" if listed else "plug it in"
    )


def _offered(named: NamedCamera, camera: Any) -> Finding:
    wish = _wish(named)
    if wish is None:
        return Finding(OK, f"{camera.name} is there; size and rate are left to it")
    from lerobot_ext.cameras import librealsense

    rs = librealsense.load()
    color, depth = (
        named.settings.get("use_rgb", True),
        named.settings.get("use_depth", named.type != "intelrealsense"),
    )
    streams = [(rs.stream.color, rs.format.rgb8)] * bool(color) + [(rs.stream.depth, rs.format.z16)] * bool(
        depth
    )
    for stream, form in streams:
        librealsense.check_offered(camera.device, stream, form, *wish)
    return Finding(OK, f"{camera.name} offers {_told(wish)}")


def _look_at_video(survey: Survey, named: NamedCamera) -> Finding:
    value = named.settings.get("index_or_path")
    path = f"/dev/video{value}" if isinstance(value, int) or str(value).isdigit() else str(value)
    there = [camera for camera in survey.cameras if camera.kind == VIDEO]
    fitting = [camera for camera in there if os.path.realpath(path) in map(os.path.realpath, camera.nodes)]
    listed = ", ".join(f"{camera.id} ({camera.name})" for camera in there)
    key = f"{named.key}.index_or_path"
    nodes = (node for node in doctor_usb.video_nodes() if node.path == os.path.realpath(path))
    if any(node.device is not None and node.device.is_realsense for node in nodes):
        found = f"{path} belongs to a RealSense, which gives no depth that way"
        return Finding(WARNING, found, "use type: realsense_rgbd, with its serial number")
    if not fitting:
        what = "is there, but gives no pictures" if os.path.exists(path) else "is not there"
        if len(there) == 1:
            survey.corrections[key] = there[0].id
        return Finding(FAILED, f"{path} {what}", f"there are: {listed}" if listed else "plug the camera in")
    camera = fitting[0]
    if path != camera.id and not Path(path).is_symlink():
        survey.corrections[key] = camera.id
        return Finding(WARNING, f"{camera.name} is {path}; that number can change", f"set {key}: {camera.id}")
    return Finding(
        OK, f"{camera.name} is there; `v4l2-ctl --list-formats-ext -d {path}` tells what it offers"
    )


def look_at_disk(survey: Survey) -> Finding:
    """May the dataset be written, and is there room for what is planned?"""
    from lerobot_ext.recording import disk

    dataset = survey.data["dataset"]
    root = Path(dataset.get("root") or _default_root(str(dataset.get("repo_id") or ""))).absolute()
    if not os.access(disk.existing(root), os.W_OK):
        return Finding(FAILED, f"{disk.existing(root)} cannot be written", "choose another dataset.root")
    free, episode = disk.free_bytes(root), _episode_bytes(survey)
    planned = episode * int(dataset.get("num_episodes") or EPISODES)
    found = f"{disk.megabytes(free)} are free for {root}; the episodes planned take at most {disk.megabytes(planned)}"
    figures = {"free_bytes": free, "planned_bytes": planned}
    if free < episode + disk.RESERVE_BYTES:
        return Finding(FAILED, found, "make room, or choose a dataset.root on another disk", figures)
    if root.exists() and not survey.data.get("resume"):
        advice = "choose another dataset.root, or add --resume=true to go on with it"
        return Finding(WARNING, f"{root} exists already; {found}", advice, figures)
    if free < planned + disk.RESERVE_BYTES:
        return Finding(WARNING, found, "make room, or choose a dataset.root on another disk", figures)
    return Finding(OK, found, figures=figures)


def _episode_bytes(survey: Survey) -> float:
    """What an episode of this YAML takes at most, by its cameras."""
    from lerobot_ext.recording import disk

    dataset = survey.data["dataset"]
    features: dict[str, dict[str, Any]] = {}
    for named in survey.named_cameras:
        width, height, _ = _wish(named) or USUAL
        settings, dtype = named.settings, "video" if dataset.get("video", True) else "image"
        if settings.get("use_rgb", True):
            features[named.key] = {"dtype": dtype, "shape": (height, width, 3)}
        if settings.get("use_depth", named.type == "realsense_rgbd"):
            info = {"is_depth_map": True}
            features[f"{named.key}_depth"] = {"dtype": dtype, "shape": (height, width, 1), "info": info}
    fps, seconds = int(dataset.get("fps") or USUAL[2]), float(dataset.get("episode_time_s") or EPISODE_S)
    return disk.needed_bytes(features, fps, seconds, bool(dataset.get("streaming_encoding")))


def _default_root(repo_id: str) -> Path:
    from lerobot.utils.constants import HF_LEROBOT_HOME

    return HF_LEROBOT_HOME / repo_id


def _told(wish: tuple[int, int, int]) -> str:
    return f"{wish[0]}x{wish[1]} at {wish[2]} fps"
