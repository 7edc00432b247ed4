"""One opened RealSense: a librealsense pipeline and the single thread that reads it.

A session is never reopened; `keeper` opens the next one. Everything of librealsense that runs lives here, so that
closing it is one ordered procedure.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras.configs import ColorMode

from lerobot_ext.cameras import bag
from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.counts import FrameCounter, Stamp
from lerobot_ext.cameras.depth import MetricDepth
from lerobot_ext.cameras.filters import FilterChain
from lerobot_ext.cameras.frameset import Frameset
from lerobot_ext.cameras.intrinsics import Extrinsics, Intrinsics
from lerobot_ext.cameras.librealsense import Source, check_offered, load, open_source

logger = logging.getLogger(__name__)

POLL_MS = 100  # how long the reading thread may take to notice that it shall stop
JOIN_S = 2.0
THRESHOLD_MAX_M = 16.0  # the farthest that librealsense's threshold filter knows


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
        depth_to_color: Where the depth camera is, where depth was left in its pixels; None if aligned or alone.
        filters: What is done to depth before it is aligned, in order, with all settings.
    """

    serial: str
    name: str
    firmware: str
    fps: int
    color: Intrinsics | None
    depth: Intrinsics | None
    depth_unit_m: float | None
    depth_to_color: Extrinsics | None = None
    filters: tuple[dict[str, Any], ...] = field(default=())


class Session:
    """Opens the device, reads it in a thread, hands on what is new, and closes it again.

    Args:
        config: What is wanted.
        counter: Counts and judges the framesets; it outlives the session.
        publish: Called with each new frameset, in the reading thread.
        serial: The camera that it must be; empty: whichever has the configured name.
        record_to: A file to record into; None: none.
        settle_s: Framesets of so long after the first one are kept back: the exposure settles.

    Raises:
        ConnectionError: The device is not there, is in use, or does not offer what is asked for. Everything
            that was opened is closed again.
    """

    def __init__(
        self,
        config: RealSenseRGBDCameraConfig,
        counter: FrameCounter,
        publish: Callable[[Frameset], None],
        *,
        serial: str = "",
        record_to: Path | None = None,
        settle_s: float = 0.0,
    ):
        self._config, self._counter, self._publish = config, counter, publish
        self._record_to, self._settle_s = record_to, settle_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pipeline: Any = None
        self._source: Source | None = None
        self._align: Any = None
        self._filters: FilterChain | None = None
        self._metric: MetricDepth | None = None
        self._settled_s: float | None = None
        self.clock = ""  # whose time the newest frame has
        self.new_s = time.perf_counter()  # when the newest frameset that was new arrived
        self.failure = ""  # why the reading thread has ended by itself
        self.ended = ""  # why no frame will ever come again
        try:
            self._open(serial)
        except BaseException:
            self.close()
            raise

    def _open(self, serial: str) -> None:
        rs, config = load(), self._config
        self._source = open_source(config.serial_number_or_name, serial=serial, bag_repeat=config.bag_repeat)
        self.live = self._source.live
        device = self._source.device
        aligned = config.use_depth and config.align == "color"
        wanted = []
        if config.use_rgb or aligned:
            wanted.append((rs.stream.color, rs.format.rgb8))
        if config.use_depth:
            wanted.append((rs.stream.depth, rs.format.z16))
        rs_config = rs.config()
        for stream, form in wanted:
            check_offered(device, stream, form, config.width, config.height, config.fps)
            # librealsense takes 0 for "whatever is the default".
            rs_config.enable_stream(stream, config.width or 0, config.height or 0, form, config.fps or 0)
        info = [rs.camera_info.serial_number, rs.camera_info.name, rs.camera_info.firmware_version]
        found, name, firmware = (device.get_info(i) if device.supports(i) else "" for i in info)
        if serial and found != serial:
            raise ConnectionError(f"{name} (serial {found}) is there now, the camera was serial {serial}")
        if config.use_depth:
            # Asked now: a device that is being recorded does not own up to being a depth camera.
            sensor = device.first_depth_sensor()
            scale, stereo = sensor.get_depth_scale(), sensor.supports(rs.option.stereo_baseline)
            del sensor
        if self._record_to is not None:
            self._record_to.parent.mkdir(parents=True, exist_ok=True)
            rs_config.enable_record_to_file(str(self._record_to))

        pipeline = rs.pipeline()
        self._source.attach(pipeline, rs_config)
        del device
        try:
            profile = pipeline.start(rs_config)
        except RuntimeError as error:
            raise ConnectionError(
                f"{name} (serial {found}) is there but does not start: {error}; is another program using it?"
            ) from error
        self._pipeline = pipeline

        streams = {stream: profile.get_stream(stream) for stream, _ in wanted}
        color = Intrinsics.of(streams[rs.stream.color]) if rs.stream.color in streams else None
        depth = depth_to_color = None
        if config.use_depth:
            depth = color if aligned else Intrinsics.of(streams[rs.stream.depth])
            if not aligned and color is not None:
                depth_to_color = Extrinsics.between(streams[rs.stream.depth], streams[rs.stream.color])
            near, far = config.depth_range_m
            self._metric = MetricDepth(scale, config.depth_dtype, near, far)
            self._filters = FilterChain(
                rs,
                config.filter_chain,
                stereo=stereo,
                range_m=(near, min(far, THRESHOLD_MAX_M)),
            )
        if config.use_rgb and config.use_depth and (color.width, color.height) != (depth.width, depth.height):
            raise ConnectionError(
                f"{name} (serial {found}): color is {color.width}x{color.height} and depth "
                f"{depth.width}x{depth.height} by default; give width, height and fps, or align: color"
            )
        self.facts = DeviceFacts(
            serial=found,
            name=name,
            firmware=firmware,
            fps=streams[wanted[0][0]].fps(),
            color=color,
            depth=depth,
            depth_unit_m=self._metric.unit_m if self._metric else None,
            depth_to_color=depth_to_color,
            filters=tuple(self._filters.applied) if self._filters else (),
        )
        self._streams = tuple(stream.name for stream, _ in wanted)
        self._counter.begin()
        self._align = rs.align(rs.stream.color) if aligned else None
        self._host_clocks = (
            (rs.timestamp_domain.system_time, rs.timestamp_domain.global_time) if self.live else ()
        )
        self._thread = threading.Thread(
            target=self._read, args=(pipeline, self._source), name=f"realsense-{found}", daemon=True
        )
        self._thread.start()
        self._source.started(profile)

    def _read(self, pipeline: Any, source: Source) -> None:
        """The reading thread: the only one that touches frames of librealsense."""
        received = False
        try:
            while not self._stop.is_set():
                arrived, frames = pipeline.try_wait_for_frames(POLL_MS)
                if arrived:
                    received = True
                    self._take(frames)
                elif received and (reason := source.ended()):
                    self.ended = reason
                    return
        except Exception as error:
            # Its words only: its traceback would keep librealsense's frames alive beyond the pipeline.
            self.failure = f"librealsense says: {error}"

    def _take(self, frames: Any) -> None:
        """Hand on the frameset if it is new and of one instant."""
        now_s, now_wall_ms = time.perf_counter(), time.time() * 1e3
        originals = {name: getattr(frames, f"get_{name}_frame")() for name in self._streams}
        if not all(originals.values()):
            return  # half a frameset; the next whole one tells by its numbers what is missing
        stamps = {
            name: Stamp(f.get_frame_number(), f.get_timestamp(), f.get_frame_timestamp_domain().name)
            for name, f in originals.items()
        }
        if not self._counter.accept(stamps, self.facts.fps):
            return
        self.new_s = now_s
        # Of two images of one frameset the age is that of the older one.
        ages_ms = [
            max(now_wall_ms - frame.get_timestamp(), 0.0)
            for frame in originals.values()
            if frame.get_frame_timestamp_domain() in self._host_clocks
        ]
        captured_s = now_s - max(ages_ms, default=0.0) / 1e3
        if self._settled_s is None:
            self._settled_s = now_s + self._settle_s
        if now_s < self._settled_s:
            return
        if self._filters:
            frames = self._filters.process(frames)
        if self._align is not None:
            frames = self._align.process(frames)
        color = depth = None
        if self._config.use_depth:
            depth = self._metric(np.asanyarray(frames.get_depth_frame().get_data()))
        if self._config.use_rgb:
            view = np.asanyarray(frames.get_color_frame().get_data())
            # The view lies in librealsense's memory, which is reused: this is the one copy it takes.
            color = view.copy() if self._config.color_mode == ColorMode.RGB else view[..., ::-1].copy()
        stamp = stamps["color" if self._config.use_rgb else "depth"]
        self.clock = stamp.clock
        self._publish(Frameset(color, depth, stamp.timestamp_ms, stamp.number, captured_s, stamp.clock))

    def missing(self) -> str:
        """Why the device cannot be there any more, as far as its bus knows; empty if it is there."""
        return self._source.missing() if self._source is not None else "it was closed"

    def pause_recording(self) -> None:
        """Write no more into the recording; the camera goes on."""
        if self._pipeline is not None and self._record_to is not None:
            _pause_recorder(self._pipeline)

    def close(self) -> None:
        """Stop everything; takes about a frame's time. Idempotent, never raises."""
        self._stop.set()
        thread, pipeline, source = self._thread, self._pipeline, self._source
        self._thread = self._pipeline = self._source = None
        # First the reader, then the feeder of a virtual device, and only then librealsense's own threads: none
        # of ours may touch its objects any more when they go.
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(JOIN_S)
        try:
            if source is not None:
                source.close()
            if pipeline is not None:
                if self._record_to is not None:
                    _pause_recorder(pipeline)
                pipeline.stop()
        except Exception as error:
            logger.warning("camera '%s' did not stop cleanly: %s", self._config.serial_number_or_name, error)
        if thread is not None and thread.is_alive():
            logger.warning("%s: the reading thread is stuck in librealsense", thread.name)
            return
        # The last references to librealsense's objects; a recording gets its index as they go.
        del source, pipeline
        self._align = self._filters = None
        if self._record_to is not None and self._record_to.exists():
            self._check_recording(self._record_to)

    def _check_recording(self, path: Path) -> None:
        try:
            bag.check_whole(path)
        except ConnectionError as error:
            logger.error("camera '%s': %s", self._config.serial_number_or_name, error)
        else:
            size = path.stat().st_size / 1e6
            logger.info("camera '%s': recorded %s (%.0f MB)", self._config.serial_number_or_name, path, size)


def _pause_recorder(pipeline: Any) -> None:
    # Its thread must not write any more when the file is closed.
    pipeline.get_active_profile().get_device().as_recorder().pause()
