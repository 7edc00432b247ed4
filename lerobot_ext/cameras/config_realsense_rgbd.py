"""Configuration of the camera type `realsense_rgbd`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the driver.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lerobot.cameras.configs import CameraConfig, ColorMode

from lerobot_ext.cameras.filters import Filter, parse

ALIGNMENTS = ("color", "none")
DEPTH_DTYPES = ("uint16", "float32")
ON_ERROR = ("stop", "skip_frame")


@CameraConfig.register_subclass("realsense_rgbd")
@dataclass(kw_only=True)
class RealSenseRGBDCameraConfig(CameraConfig):
    """An Intel RealSense that gives colour and metric depth of one instant.

    Attributes:
        serial_number_or_name: Serial number or unique name of the device; `virtual:SIDE` is the virtual lab's
            camera, where SIDE is the path of the lab's `side` socket; `virtual:` alone means the default lab; a path
            that ends in `.bag` is a recording, played in real time.
        fps: Frames per second of both streams; given together with width and height, or none of the three.
        width: Width in pixels of both streams.
        height: Height in pixels of both streams.
        color_mode: Order of the colour channels that the reads return.
        use_rgb: Whether colour is read.
        use_depth: Whether depth is read.
        align: `color` moves depth into the colour camera's pixels (the colour stream then runs even when
            `use_rgb` is false); `none` leaves it as the depth camera sees it.
        depth_dtype: `uint16` for millimetres, `float32` for metres (keeps a D405's tenths of a millimetre).
        warmup_s: How long `connect` lets the automatic exposure settle after the first frame; a recording is not
            waited for.
        max_age_ms: A frame captured longer ago than this is an error, never passed as new.
        filters: librealsense's post-processing of depth, before it is aligned: names, or `name: {setting: number}`;
            see `filters.FILTERS`. They are done in librealsense's recommended order, whatever the order here.
        depth_min_m: Depth nearer than this is no depth (0); None: all that the device gives.
        depth_max_m: Depth farther than this likewise. A recording spends its 12 bits on the range between the two.
        record_bag: A file to record what the device sends into, beside everything else; a path ending in `.bag`.
        bag_repeat: Whether a recording that is played begins anew at its end; else the camera fails there.
        reconnect_s: How long a camera that was lost is tried to be opened again; 0: not at all; inf: until
            `disconnect`.
        on_error: What a robot does when the camera fails: `stop`, or `skip_frame` (hold still until it is back).
    """

    serial_number_or_name: str
    color_mode: ColorMode = ColorMode.RGB
    use_rgb: bool = True
    use_depth: bool = True
    align: str = "color"
    depth_dtype: str = "uint16"
    warmup_s: float = 1.0
    max_age_ms: float = 500.0
    filters: list[Any] = field(default_factory=list)
    depth_min_m: float | None = None
    depth_max_m: float | None = None
    record_bag: str | None = None
    bag_repeat: bool = False
    reconnect_s: float = 30.0
    on_error: str = "stop"

    @cached_property
    def filter_chain(self) -> tuple[Filter, ...]:
        """`filters` in the order in which they are done."""
        return parse(self.filters)

    @property
    def depth_range_m(self) -> tuple[float, float]:
        """Nearest and farthest depth that counts, in metres; 0 and infinity where there is no limit."""
        return self.depth_min_m or 0.0, math.inf if self.depth_max_m is None else self.depth_max_m

    def __post_init__(self) -> None:
        self.color_mode = ColorMode(self.color_mode)
        name = f"camera '{self.serial_number_or_name}'"
        if not self.serial_number_or_name:
            raise ValueError(
                "serial_number_or_name of a realsense_rgbd camera is empty; give its serial number, its name or "
                "'virtual:' for the virtual lab's camera."
            )
        if not self.use_rgb and not self.use_depth:
            raise ValueError(f"{name}: use_rgb and use_depth are both false; switch on at least one.")
        choices = (("align", ALIGNMENTS), ("depth_dtype", DEPTH_DTYPES), ("on_error", ON_ERROR))
        for key, allowed in choices:
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"{name}: {key} is '{getattr(self, key)}'; expected one of {', '.join(allowed)}."
                )
        given = {key: getattr(self, key) for key in ("fps", "width", "height")}
        missing = [key for key, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(
                f"{name}: {', '.join(missing)} not given; give fps, width and height together, or none of them."
            )
        for key, value in given.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}: {key} is {value}; expected a positive number.")
        for key in ("warmup_s", "max_age_ms", "reconnect_s"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{name}: {key} is {getattr(self, key)}; expected 0 or more.")
        self._check_depth(name)
        self._check_bags(name)

    def _check_depth(self, name: str) -> None:
        near, far = self.depth_range_m
        if not 0 <= near < far:
            raise ValueError(
                f"{name}: depth_min_m is {self.depth_min_m} and depth_max_m is {self.depth_max_m}; expected metres, "
                "0 or more, the first smaller than the second."
            )
        try:
            names = {wanted.name for wanted in self.filter_chain}
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from None
        limited = self.depth_min_m is not None or self.depth_max_m is not None
        if not self.use_depth and (names or limited):
            raise ValueError(
                f"{name}: filters, depth_min_m and depth_max_m are about depth; use_depth is false."
            )
        if "threshold" in names and not limited:
            raise ValueError(
                f"{name}: the filter threshold cuts at depth_min_m and depth_max_m; give one of them."
            )
        if "decimation" in names and self.align != "color":
            raise ValueError(
                f"{name}: the filter decimation makes depth smaller, and with align: {self.align} it would stay so; "
                "use align: color, which brings it to the colour image's size, or leave decimation out."
            )

    def _check_bags(self, name: str) -> None:
        played = self.serial_number_or_name.lower().endswith(".bag")
        if self.record_bag is not None and not self.record_bag.lower().endswith(".bag"):
            raise ValueError(f"{name}: record_bag is '{self.record_bag}'; expected a file that ends in .bag.")
        if self.record_bag is not None and played:
            raise ValueError(f"{name}: record_bag cannot record what is a recording already; leave it out.")
        if self.bag_repeat and not played:
            raise ValueError(
                f"{name}: bag_repeat is about a recording; serial_number_or_name is no .bag file."
            )
