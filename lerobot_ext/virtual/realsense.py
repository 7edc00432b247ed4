"""The virtual lab's RealSense, opened in the driver's process.

Frames come from the lab over ZeroMQ and enter an `rs.software_device`, so that the driver runs on librealsense's
own pipeline, matching and alignment. No physics here, and nothing of the driver's conversions. While the camera
is open, the episodes of this process are announced to the lab, which then resets its world and judges them. Whether
the camera is plugged in, the lab's status says: a software device has no cable to pull.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from lerobot_ext.cameras.librealsense import load
from lerobot_ext.recording.episodes import EpisodeListener, add_listener, remove_listener
from lerobot_ext.virtual.client import LabClient
from lerobot_ext.virtual.link import CameraInfo, Intrinsics, SideFrame, Status, lab_dir
from lerobot_ext.virtual.trouble import UNPLUGGED

logger = logging.getLogger(__name__)

LISTENER = "virtual_lab"
POLL_MS = 100
DEPTH_UID, COLOR_UID = 1, 2


class VirtualRealSense:
    """A `lerobot_ext.cameras.librealsense.Source` fed by a running lab.

    Args:
        side: Path of the lab's `side` socket; empty for the default lab's.

    Raises:
        ConnectionError: No lab runs there, or its camera is unplugged.
    """

    live = True

    def __init__(self, side: str = ""):
        self._side = (Path(side) if side else lab_dir() / "side").absolute()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        status = self._status()
        if reason := _unplugged(status):
            raise ConnectionError(reason)
        self.info: CameraInfo = status.camera
        self.device, self._feeds = software_device(self.info)

    def _status(self) -> Status:
        with LabClient(self._side.parent) as lab:
            return lab.status()

    def attach(self, pipeline: Any, config: Any) -> None:
        """See Source; `device.add_to(context)` would not do: the pipeline does not find such a device."""
        pipeline.set_device(self.device)

    def started(self, profile: Any) -> None:
        """See Source: frames flow from now on, and the lab hears of episodes."""
        self._thread = threading.Thread(target=self._feed, name="virtual-realsense", daemon=True)
        self._thread.start()
        add_listener(
            EpisodeListener(
                name=LISTENER,
                on_start=lambda robot: _start_episode(self._side.parent),
                on_end=lambda robot: _end_episode(self._side.parent),
                order=0,
            )
        )

    def ended(self) -> str:
        """See Source: the lab may always go on."""
        return ""

    def missing(self) -> str:
        """See Source: the lab is asked."""
        try:
            return _unplugged(self._status())
        except ConnectionError as error:
            return str(error)

    def close(self) -> None:
        """See Source."""
        if self._thread is not None:
            remove_listener(LISTENER)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _feed(self) -> None:
        """Lab to librealsense, until stopped. Sockets belong to one thread, so it is opened and closed here."""
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.rcvhwm = 4  # a camera that is not read drops frames, it does not queue them up
            socket.subscribe(b"")
            socket.connect(f"ipc://{self._side}")
            while not self._stop.is_set():
                if socket.poll(POLL_MS):
                    self._inject(socket.recv_multipart(copy=False))

    def _inject(self, parts: list[zmq.Frame]) -> None:
        try:
            header, images = self._decode(parts)
        except (ValueError, msgspec.MsgspecError) as error:
            logger.warning("virtual camera at %s: frame dropped: %s", self._side, error)
            return
        for feed, pixels in zip(self._feeds, images, strict=True):
            feed.push(header, pixels)

    def _decode(self, parts: list[zmq.Frame]) -> tuple[SideFrame, tuple[np.ndarray, np.ndarray]]:
        """Header, then depth and colour as flat uint8 views on the message; sizes are checked first."""
        c, d = self.info.color, self.info.depth
        expected = [c.width * c.height * 3, d.width * d.height * 2]
        sizes = [len(part) for part in parts]
        if len(parts) != 3 or sizes[1:] != expected:
            raise ValueError(f"message of {sizes} bytes, expected a header and {expected}")
        header = msgspec.json.decode(parts[0].buffer, type=SideFrame)
        color, depth = (np.frombuffer(part.buffer, np.uint8) for part in parts[1:])
        return header, (depth, color)


def _unplugged(status: Status) -> str:
    """What there is to say if the camera is not plugged in; empty if it is."""
    if status.faults.get("side") != UNPLUGGED:
        return ""
    return (
        f"the virtual camera {status.camera.serial} is unplugged (lerobot-ext lab --fault=side= plugs it in)"
    )


def _start_episode(directory: Path) -> None:
    with LabClient(directory) as lab:
        lab.start_episode(operate=True)


def _end_episode(directory: Path) -> None:
    """A lab that has gone is told by the frames that stop; the end of an episode must not hide that."""
    try:
        with LabClient(directory) as lab:
            verdict = lab.end_episode()
    except (ConnectionError, RuntimeError) as error:
        logger.warning("the episode was not judged: %s", error)
        return
    word = "success" if verdict.success else "no success"
    logger.info("lab's verdict on its episode %d: %s (%s)", verdict.index, word, verdict.reason)


def find_virtual() -> tuple[Path, CameraInfo] | None:
    """The default lab's `side` socket and its camera, or None if that lab does not run."""
    with LabClient() as lab:
        try:
            return lab.directory / "side", lab.status().camera
        except ConnectionError:
            return None


@dataclass(frozen=True)
class Feed:
    """One stream of a software device, and how a frame gets into it."""

    sensor: Any  # rs.software_sensor
    profile: Any  # rs.stream_profile
    width: int
    bytes_per_pixel: int
    unit_m: float  # metres per count; 0 for colour

    def push(self, header: SideFrame, pixels: np.ndarray) -> None:
        """Give librealsense one frame (it copies the pixels); `pixels` is a flat uint8 array."""
        rs = load()
        frame = rs.software_video_frame()
        frame.pixels = pixels
        frame.bpp = self.bytes_per_pixel
        frame.stride = self.width * self.bytes_per_pixel
        frame.timestamp = header.timestamp_ms
        frame.domain = rs.timestamp_domain.system_time  # the lab stamps with this host's clock
        frame.frame_number = header.frame_number
        frame.profile = self.profile.as_video_stream_profile()
        frame.depth_units = self.unit_m
        self.sensor.on_video_frame(frame)


def software_device(info: CameraInfo) -> tuple[Any, tuple[Feed, Feed]]:
    """A librealsense device that offers what `info` says.

    Returns:
        The rs.software_device, and the feeds of depth and colour.
    """
    rs = load()
    device = rs.software_device()
    for field, value in (
        (rs.camera_info.serial_number, info.serial),
        (rs.camera_info.name, info.name),
        (rs.camera_info.firmware_version, info.firmware),
        (rs.camera_info.product_line, "D400"),
    ):
        device.register_info(field, value)

    def add(name: str, stream: Any, form: Any, uid: int, bpp: int, camera: Intrinsics, unit_m: float) -> Feed:
        video = rs.video_stream()
        video.type, video.fmt, video.bpp, video.uid, video.index = stream, form, bpp, uid, 0
        video.width, video.height, video.fps = camera.width, camera.height, info.fps
        video.intrinsics = _intrinsics(rs, camera)
        sensor = device.add_sensor(name)
        if unit_m:
            sensor.add_read_only_option(rs.option.depth_units, unit_m)
            # Without it librealsense would not turn this device's depth into disparity, as it does a D4xx's.
            sensor.add_read_only_option(rs.option.stereo_baseline, info.stereo_baseline_m * 1e3)
        return Feed(sensor, sensor.add_video_stream(video, True), camera.width, bpp, unit_m)

    unit_m = info.depth_units_m
    depth = add("Stereo Module", rs.stream.depth, rs.format.z16, DEPTH_UID, 2, info.depth, unit_m)
    color = add("RGB Camera", rs.stream.color, rs.format.rgb8, COLOR_UID, 3, info.color, 0.0)
    for source, target, sign in ((depth, color, 1), (color, depth, -1)):
        extrinsics = rs.extrinsics()
        extrinsics.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1]
        extrinsics.translation = [sign * t for t in info.depth_to_color_m]
        source.profile.register_extrinsics_to(target.profile, extrinsics)
    # By timestamp: the lab stamps both images of one instant with the same time.
    device.create_matcher(rs.matchers.default)
    return device, (depth, color)


def _intrinsics(rs: Any, camera: Intrinsics) -> Any:
    result = rs.intrinsics()
    result.width, result.height = camera.width, camera.height
    result.fx, result.fy, result.ppx, result.ppy = camera.fx, camera.fy, camera.ppx, camera.ppy
    result.model, result.coeffs = rs.distortion.none, [0.0] * 5
    return result
