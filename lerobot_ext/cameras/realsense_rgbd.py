"""The camera `realsense_rgbd`: colour and metric depth of one instant, in one picture geometry.

LeRobot's camera interface over a `Keeper`; every read is served from the keeper's newest frameset.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from numpy.typing import NDArray

from lerobot_ext.cameras import librealsense
from lerobot_ext.cameras.bag import is_bag
from lerobot_ext.cameras.config_realsense_rgbd import RealSenseRGBDCameraConfig
from lerobot_ext.cameras.frameset import Frameset
from lerobot_ext.cameras.intrinsics import Intrinsics
from lerobot_ext.cameras.keeper import Keeper
from lerobot_ext.cameras.session import DeviceFacts

logger = logging.getLogger(__name__)

FIRST_FRAME_S = 5.0  # a D4xx on a slow hub needs up to two seconds
READ_S = 5.0

Color = NDArray[np.uint8]
Depth = NDArray[np.uint16] | NDArray[np.float32]


class RealSenseRGBDCamera(Camera):
    """An Intel RealSense (D4xx), real, of the virtual lab or of a recording.

    Depth is metric by the device's own unit: uint16 millimetres or float32 metres (`depth_dtype`), (H, W, 1),
    0 where there is none. A depth beyond 65.535 m is 0 in millimetres. With `align: color`, pixel (v, u) of
    depth and of colour look at the same point. Every array returned belongs to the caller.

    A camera that is unplugged, or stands still, is opened again by itself for `reconnect_s`; until it is back every
    read fails and says so, and no frame older than `max_age_ms` is ever returned.

    Example:
        >>> config = RealSenseRGBDCameraConfig(serial_number_or_name="virtual:", fps=30, width=424, height=240)
        >>> with RealSenseRGBDCamera(config) as camera:
        ...     color, depth = camera.async_read_combined()
    """

    def __init__(self, config: RealSenseRGBDCameraConfig):
        super().__init__(config)
        self.config = config
        self.use_rgb = config.use_rgb
        self.use_depth = config.use_depth
        self.color_mode = config.color_mode
        self._keeper: Keeper | None = None
        self._finalizer: weakref.finalize | None = None

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.config.serial_number_or_name})"

    @property
    def is_connected(self) -> bool:
        """Whether `connect` succeeded and `disconnect` was not called since; a camera that is lost stays so."""
        return self._keeper is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """Every RealSense on USB and that of a running virtual lab; see `librealsense.find_cameras`."""
        return librealsense.find_cameras()

    @check_if_already_connected
    def connect(self, warmup: bool = True) -> None:
        """Open the device and start reading it.

        Args:
            warmup: Wait for the first frame, then `warmup_s` more for the automatic exposure.

        Raises:
            ConnectionError: pyrealsense2 or libusb is missing; the camera is not there; it does not offer the
                size and rate asked for; no frame came. Nothing stays open then.
        """
        with self._errors_named():
            keeper = Keeper(self.config)
            try:
                if warmup:
                    self._warm_up(keeper)
            except BaseException:
                keeper.close()
                raise
        self._keeper = keeper
        # Runs at the interpreter's exit too, so that a forgotten disconnect does not crash in librealsense.
        self._finalizer = weakref.finalize(self, keeper.close)
        facts = keeper.facts
        size = facts.color or facts.depth
        self.width, self.height, self.fps = size.width, size.height, facts.fps
        logger.info(
            "%s connected: %s, serial %s, %dx%d@%d, depth unit %s m, align %s, filters %s, clock %s",
            self,
            facts.name,
            facts.serial,
            self.width,
            self.height,
            self.fps,
            facts.depth_unit_m,
            self.config.align,
            ", ".join(step["name"] for step in facts.filters) or "none",
            keeper.clock or "not known yet",
        )

    def _warm_up(self, keeper: Keeper) -> None:
        try:
            keeper.slot.next(FIRST_FRAME_S)
        except TimeoutError as error:
            raise ConnectionError(
                f"it is there ({keeper.facts.name}) but gave no frame within {FIRST_FRAME_S:.0f} s; plug it in "
                "again, into a USB 3 port"
            ) from error
        if is_bag(self.config.serial_number_or_name):
            return  # its exposure settled when it was recorded, and its first seconds are wanted
        settled = time.perf_counter() + self.config.warmup_s
        while (left_s := settled - time.perf_counter()) > 0:
            time.sleep(min(left_s, 0.1))
        keeper.slot.next(FIRST_FRAME_S)

    def disconnect(self) -> None:
        """Stop reading and release the device, within about a tenth of a second; again does nothing."""
        if self._keeper is None:
            return
        self._keeper = None
        self._finalizer()
        self.width, self.height, self.fps = self.config.width, self.config.height, self.config.fps
        logger.info("%s disconnected.", self)

    # What is known of the device once connected.

    @property
    @check_if_not_connected
    def facts(self) -> DeviceFacts:
        """Serial, name, firmware, intrinsics and depth unit."""
        return self._keeper.facts

    @property
    def serial(self) -> str:
        """Serial number of the connected device."""
        return self.facts.serial

    @property
    def firmware(self) -> str:
        """Firmware version of the connected device."""
        return self.facts.firmware

    @property
    def depth_unit_m(self) -> float | None:
        """Metres per raw depth count of the device (already applied); None without depth."""
        return self.facts.depth_unit_m

    @property
    def intrinsics(self) -> Intrinsics:
        """The pinhole camera behind the images: colour's (and aligned depth's), depth's if there is no colour."""
        return self.facts.color or self.facts.depth

    @property
    @check_if_not_connected
    def counts(self) -> dict[str, int]:
        """Since `connect`, by name: `received`, `dropped`, `repeated`, `reconnects`; see `counts.FrameCounter`."""
        return self._keeper.counter.as_dict()

    @check_if_not_connected
    def metadata(self) -> dict[str, dict[str, Any]]:
        """All that is needed to understand the recorded pictures years later, as JSON can hold it.

        Returns:
            `color` and `depth`, as far as they are switched on. Both: `serial`, `name`, `firmware`, `fps`, `clock`,
            `source` and `intrinsics` (see `Intrinsics.from_metadata`). Depth also: `dtype`, `depth_unit` (`mm` or
            `m`, of the recorded numbers), `depth_unit_m` (of the device's counts), `align`, `depth_to_color` (where
            depth is not aligned), `filters` (in the order they were done), `depth_min_m` and `depth_max_m`.
        """
        facts, config = self.facts, self.config
        common = {
            "serial": facts.serial,
            "name": facts.name,
            "firmware": facts.firmware,
            "source": config.serial_number_or_name,
            "fps": facts.fps,
            "clock": self._keeper.clock,
        }
        found: dict[str, dict[str, Any]] = {}
        if self.use_rgb:
            found["color"] = common | {"intrinsics": facts.color.to_metadata()}
        if self.use_depth:
            found["depth"] = common | {
                "intrinsics": facts.depth.to_metadata(),
                "dtype": config.depth_dtype,
                "depth_unit": "mm" if config.depth_dtype == "uint16" else "m",
                "depth_unit_m": facts.depth_unit_m,
                "align": config.align,
                "depth_to_color": facts.depth_to_color.to_metadata() if facts.depth_to_color else None,
                "filters": list(facts.filters),
                "depth_min_m": config.depth_min_m,
                "depth_max_m": config.depth_max_m,
            }
        return found

    # Reads. All of them end in one frameset.

    def async_read_frameset(self, timeout_ms: float = 200) -> Frameset:
        """What `async_read_combined` returns, with its timestamp and number; its arrays are shared and read-only.

        A reader of this method and one of `async_read_combined` do not take each other's framesets away.
        """
        return self._unseen("frameset", timeout_ms)

    @check_if_not_connected
    def read_latest_frameset(self, max_age_ms: float | None = None) -> Frameset:
        """The newest frameset with its times and number, at once; its arrays are shared and read-only.

        Args:
            max_age_ms: Largest age since the capture; the configuration's if None.

        Raises:
            TimeoutError: The newest frame is older: the camera hangs.
            RuntimeError: Nothing was captured yet.
            ConnectionError: The camera is not connected, or was lost.
        """
        with self._errors_named():
            return self._keeper.slot.newest(self.config.max_age_ms if max_age_ms is None else max_age_ms)

    def read_latest_combined(self, max_age_ms: float | None = None) -> tuple[Color | None, Depth | None]:
        """Colour (H, W, 3) and depth (H, W, 1) of the newest frameset; None for what is switched off.

        Args and errors are those of `read_latest_frameset`.
        """
        frameset = self.read_latest_frameset(max_age_ms)
        return _own(frameset.color), _own(frameset.depth)

    def read_latest(self, max_age_ms: float | None = None) -> Color:
        """Colour (H, W, 3) uint8 of the newest frameset; errors as `read_latest_frameset`."""
        self._require_color()
        return _own(self.read_latest_frameset(max_age_ms).color)

    def read_latest_depth(self, max_age_ms: float | None = None) -> Depth:
        """Depth (H, W, 1) of the newest frameset; errors as `read_latest_frameset`."""
        self._require_depth()
        return _own(self.read_latest_frameset(max_age_ms).depth)

    def async_read_combined(self, timeout_ms: float = 200) -> tuple[Color | None, Depth | None]:
        """Colour and depth of one frameset that this method has not returned yet, waiting for it if need be.

        Args:
            timeout_ms: How long to wait for a new frameset.

        Returns:
            (H, W, 3) uint8 and (H, W, 1) uint16 millimetres or float32 metres; None for what is switched off.

        Raises:
            TimeoutError: No new frameset came in time.
            ConnectionError: None came, and the camera is not connected, is lost or was given up.
        """
        frameset = self._unseen("combined", timeout_ms)
        return _own(frameset.color), _own(frameset.depth)

    def async_read(self, timeout_ms: float = 200) -> Color:
        """Colour of a frameset whose colour was not returned yet; see `async_read_combined`."""
        self._require_color()
        return _own(self._unseen("color", timeout_ms).color)

    def async_read_depth(self, timeout_ms: float = 200) -> Depth:
        """Depth of a frameset whose depth was not returned yet; see `async_read_combined`."""
        self._require_depth()
        return _own(self._unseen("depth", timeout_ms).depth)

    def read(self) -> Color:
        """Colour of the next frameset that arrives after this call."""
        self._require_color()
        return _own(self._next().color)

    def read_depth(self) -> Depth:
        """Depth of the next frameset that arrives after this call."""
        self._require_depth()
        return _own(self._next().depth)

    @check_if_not_connected
    def _unseen(self, reader: str, timeout_ms: float) -> Frameset:
        with self._errors_named():
            return self._keeper.slot.unseen(reader, timeout_ms / 1e3, self.config.max_age_ms)

    @check_if_not_connected
    def _next(self) -> Frameset:
        with self._errors_named():
            return self._keeper.slot.next(READ_S)

    def _require_color(self) -> None:
        if not self.use_rgb:
            raise RuntimeError(f"{self}: colour is switched off (use_rgb: false).")

    def _require_depth(self) -> None:
        if not self.use_depth:
            raise RuntimeError(f"{self}: depth is switched off (use_depth: false).")

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Errors from below say which camera they are about."""
        label = f"camera '{self.config.serial_number_or_name}'"
        try:
            yield
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            if str(error).startswith(label):
                raise
            kind = next(t for t in (ConnectionError, TimeoutError, RuntimeError) if isinstance(error, t))
            raise kind(f"{label}: {error}") from error


def _own(image: NDArray | None) -> NDArray | None:
    return None if image is None else image.copy()
