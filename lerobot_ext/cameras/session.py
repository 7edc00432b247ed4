"""One opened RealSense: a librealsense pipeline and the single thread that reads it.

The camera class owns at most one session; a session is never reopened. Everything of librealsense that runs
lives here, so that closing it is one ordered procedure.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.cameras.configs import ColorMode

from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.depth import MetricDepth
from lerobot_ext.cameras.frameset import Frameset, FramesetSlot
from lerobot_ext.cameras.librealsense import Intrinsics, Source, check_offered, load, open_source

logger = logging.getLogger(__name__)

POLL_MS = 100  # how long the reading thread may take to notice that it shall stop
JOIN_S = 2.0


@dataclass(frozen=True)
class DeviceFacts:
    """Who the device is and how its images are to be understood.

    Attributes:
        serial: Serial number.
        name: Product name.
        firmware: Firmware version.
        fps: Rate of the streams.
        color: Camera behind the colour image; None if the colour stream is off.
        depth: Camera behind the depth image (the colour camera once aligned); None if depth is off.
        depth_unit_m: Metres per raw depth count; None if depth is off.
    """

    serial: str
    name: str
    firmware: str
    fps: int
    color: Intrinsics | None
    depth: Intrinsics | None
    depth_unit_m: float | None


class Session:
    """Opens the device, reads it in a thread into `slot`, and closes it again.

    Raises:
        ConnectionError: The device is not there, is in use, or does not offer what is asked for. Everything
            that was opened is closed again.
    """

    def __init__(self, config: RealSenseRGBDCameraConfig):
        self.slot = FramesetSlot()
        self._config = config
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pipeline: Any = None
        self._source: Source | None = None
        self._align: Any = None
        self._metric: MetricDepth | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        rs, config = load(), self._config
        self._source = open_source(config.serial_number_or_name)
        device = self._source.device
        aligned = config.use_depth and config.align == "color"
        wanted = []
        if config.use_rgb or aligned:
            wanted.append((rs.stream.color, rs.format.rgb8))
        if config.use_depth:
            wanted.append((rs.stream.depth, rs.format.z16))
        rs_config = rs.config()
        for stream, form in wanted:
            if config.width is not None:
                check_offered(device, stream, form, config.width, config.height, config.fps)
            # librealsense takes 0 for "whatever is the default".
            rs_config.enable_stream(stream, config.width or 0, config.height or 0, form, config.fps or 0)
        info = [rs.camera_info.serial_number, rs.camera_info.name, rs.camera_info.firmware_version]
        serial, name, firmware = (device.get_info(i) if device.supports(i) else "" for i in info)

        pipeline = rs.pipeline()
        self._source.attach(pipeline, rs_config)
        try:
            profile = pipeline.start(rs_config)
        except RuntimeError as error:
            raise ConnectionError(
                f"{name} (serial {serial}) is there but does not start: {error}; is another program using it?"
            ) from error
        self._pipeline = pipeline

        streams = {stream: profile.get_stream(stream) for stream, _ in wanted}
        color = Intrinsics.of(streams[rs.stream.color]) if rs.stream.color in streams else None
        depth = None
        if config.use_depth:
            depth = color if aligned else Intrinsics.of(streams[rs.stream.depth])
            scale = profile.get_device().first_depth_sensor().get_depth_scale()
            self._metric = MetricDepth(scale, config.depth_dtype)
        if config.use_rgb and config.use_depth and (color.width, color.height) != (depth.width, depth.height):
            raise ConnectionError(
                f"{name} (serial {serial}): color is {color.width}x{color.height} and depth "
                f"{depth.width}x{depth.height} by default; give width, height and fps, or align: color"
            )
        fps = streams[wanted[0][0]].fps()
        unit_m = self._metric.unit_m if self._metric else None
        self.facts = DeviceFacts(serial, name, firmware, fps, color, depth, unit_m)

        self._align = rs.align(rs.stream.color) if aligned else None
        self._host_clocks = (rs.timestamp_domain.system_time, rs.timestamp_domain.global_time)
        self._thread = threading.Thread(
            target=self._read, args=(pipeline,), name=f"realsense-{serial}", daemon=True
        )
        self._thread.start()
        self._source.started()

    def _read(self, pipeline: Any) -> None:
        """The reading thread: the only one that touches frames of librealsense."""
        try:
            while not self._stop.is_set():
                arrived, frames = pipeline.try_wait_for_frames(POLL_MS)
                if arrived:
                    self.slot.publish(self._frameset(frames))
        except Exception as error:
            logger.error("camera '%s' stops reading: %s", self._config.serial_number_or_name, error)
            # Not `error` itself: its traceback would keep librealsense's frames alive beyond the pipeline.
            self.slot.fail(ConnectionError(str(error)))

    def _frameset(self, frames: Any) -> Frameset:
        now_s, now_wall_ms = time.perf_counter(), time.time() * 1e3
        if self._align is not None:
            frames = self._align.process(frames)
        color = depth = None
        first = None
        if self._config.use_depth:
            first = frames.get_depth_frame()
            depth = self._metric(np.asanyarray(first.get_data()))
        if self._config.use_rgb:
            first = frames.get_color_frame()
            view = np.asanyarray(first.get_data())
            # The view lies in librealsense's memory, which is reused: this is the one copy it takes.
            color = view.copy() if self._config.color_mode == ColorMode.RGB else view[..., ::-1].copy()
        timestamp_ms = first.get_timestamp()
        captured_s = now_s
        if first.get_frame_timestamp_domain() in self._host_clocks:
            captured_s -= max(now_wall_ms - timestamp_ms, 0.0) / 1e3
        return Frameset(color, depth, timestamp_ms, first.get_frame_number(), captured_s)

    def close(self) -> None:
        """Stop everything; takes about a frame's time. Idempotent, never raises."""
        self._stop.set()
        thread, pipeline, source = self._thread, self._pipeline, self._source
        self._thread = self._pipeline = self._source = None
        self.slot.fail(ConnectionError("the camera was disconnected"))
        # First the reader, then the feeder of a virtual device, and only then librealsense's own threads: none
        # of ours may touch its objects any more when they go.
        if thread is not None and thread.is_alive():
            thread.join(JOIN_S)
        try:
            if source is not None:
                source.close()
            if pipeline is not None:
                pipeline.stop()
        except Exception as error:
            logger.warning("camera '%s' did not stop cleanly: %s", self._config.serial_number_or_name, error)
        if thread is not None and thread.is_alive():
            logger.warning("%s: the reading thread is stuck in librealsense", thread.name)
        else:
            self._align = None
