"""Configuration of the camera type `realsense_rgbd`.

The module's name matters: LeRobot's `make_device_from_device_class` drops `config_` from it to find the driver.
"""

from dataclasses import dataclass

from lerobot.cameras.configs import CameraConfig, ColorMode

ALIGNMENTS = ("color", "none")
DEPTH_DTYPES = ("uint16", "float32")


@CameraConfig.register_subclass("realsense_rgbd")
@dataclass(kw_only=True)
class RealSenseRGBDCameraConfig(CameraConfig):
    """An Intel RealSense that gives colour and metric depth of one instant.

    Attributes:
        serial_number_or_name: Serial number or unique name of the device; `virtual:SIDE` is the virtual lab's
            camera, where SIDE is the path of the lab's `side` socket; `virtual:` alone means the default lab.
        fps: Frames per second of both streams; given together with width and height, or none of the three.
        width: Width in pixels of both streams.
        height: Height in pixels of both streams.
        color_mode: Order of the colour channels that the reads return.
        use_rgb: Whether colour is read.
        use_depth: Whether depth is read.
        align: `color` moves depth into the colour camera's pixels (the colour stream then runs even when
            `use_rgb` is false); `none` leaves it as the depth camera sees it.
        depth_dtype: `uint16` for millimetres, `float32` for metres (keeps a D405's tenths of a millimetre).
        warmup_s: How long `connect` lets the automatic exposure settle after the first frame.
        max_age_ms: A frame captured longer ago than this is an error, never passed as new.
    """

    serial_number_or_name: str
    color_mode: ColorMode = ColorMode.RGB
    use_rgb: bool = True
    use_depth: bool = True
    align: str = "color"
    depth_dtype: str = "uint16"
    warmup_s: float = 1.0
    max_age_ms: float = 500.0

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
        for key, allowed in (("align", ALIGNMENTS), ("depth_dtype", DEPTH_DTYPES)):
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
        for key in ("warmup_s", "max_age_ms"):
            if getattr(self, key) < 0:
                raise ValueError(f"{name}: {key} is {getattr(self, key)}; expected 0 or more.")
