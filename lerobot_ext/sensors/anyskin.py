"""Driver of magnetic skins on a serial port: AnySkin, ReSkin, WowSkin.

Written anew because the usual reader hangs on a wrong port, returns zeros before the first sample and hides the
errors of its process. Frames are found by `anyskin_frames`, the reading is `stream`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.sensors.anyskin_frames import LIMIT, FrameFinder
from lerobot_ext.sensors.config_anyskin import AnySkinConfig
from lerobot_ext.sensors.frames import Frame
from lerobot_ext.sensors.serial_stream import SerialDevice, SerialStream
from lerobot_ext.sensors.spec import ForceSensorSpec, display_unit
from lerobot_ext.sensors.stream import StreamSensor

RATE_HZ = 100.0
TEMPERATURE_LIMIT_C = 200.0

# Where the five magnetometers of the AnySkin board (that of ReSkin) are, seen from above: centre, left, right, up,
# down, x to the right and y up. Order and directions: `chip_locations` and `chip_xy_rotations` of AnySkin's own
# visualisation (raunaqbhirangi/anyskin, anyskin/visualizations/anyskin_viz.py). Their distance is not published in
# words; 7 mm is what fits the board, which is 20 mm wide (circuits/README.md there). `layout_mm` overrides it.
PITCH_MM = 7.0
LAYOUT_MM = ((0.0, 0.0), (-PITCH_MM, 0.0), (PITCH_MM, 0.0), (0.0, PITCH_MM), (0.0, -PITCH_MM))
# For each of them the matrix that turns its (Bx, By) into the layout's (x, y); the chips are soldered turned.
LAYOUT_AXES = (
    ((0, 1), (1, 0)),
    ((0, 1), (1, 0)),
    ((-1, 0), (0, 1)),
    ((0, -1), (-1, 0)),
    ((1, 0), (0, -1)),
)


class SkinStream(SerialStream):
    """The frames of an open port: fields first, then the temperatures if they are wanted."""

    powered = "board"
    hint = ", and is num_magnetometers right"

    def __init__(self, device: SerialDevice, config: AnySkinConfig):
        """Open the port.

        Raises:
            ConnectionError: It cannot be opened.
        """
        super().__init__(device, device.open(), FrameFinder(config.num_magnetometers))
        self.what = f"{config.num_magnetometers} magnetometers"
        self.temperatures: NDArray[np.float32] | None = None
        self._with_temperature = config.temperature
        self.finder: FrameFinder

    def samples(self, frames: Sequence[Frame]) -> list[NDArray[np.float32]]:
        """See `SerialStream.samples`."""
        samples = []
        for frame in frames:
            field, self.temperatures = frame.values[:, 1:].reshape(-1), frame.values[:, 0]
            samples.append(np.concatenate([field, self.temperatures]) if self._with_temperature else field)
        return samples


class AnySkin(StreamSensor):
    """A magnetic skin: x, y, z of each magnetometer, in microtesla; temperatures beside them, or as channels.

    The board streams without being asked. A sample's time is the host's when the chunk with the frame's first
    byte was read: late by the USB packet's delay, not by the wait of whoever reads. Temperatures are not tared.
    """

    config: AnySkinConfig

    def __init__(self, config: AnySkinConfig):
        """Prepare to read `config.port`; opens nothing."""
        super().__init__(config)
        self._device = self._new_device()
        self._skin: SkinStream | None = None

    def _new_device(self) -> SerialDevice:
        return SerialDevice("skin", self.config.port, self.config.baudrate)

    def __str__(self) -> str:
        return f"skin on {self._device.port if self.is_connected else self.config.port}"

    @cached_property
    def raw_spec(self) -> ForceSensorSpec:
        """15 channels `m0_x … m4_z` in uT for five magnetometers, then `m0_t … m4_t` in °C if they are wanted."""
        count, with_temperature = self.config.num_magnetometers, self.config.temperature
        channels = [f"m{m}_{axis}" for m in range(count) for axis in "xyz"]
        units, limits = ["uT"] * len(channels), [LIMIT] * len(channels)
        if with_temperature:
            channels += [f"m{m}_t" for m in range(count)]
            units += ["°C"] * count
            limits += [TEMPERATURE_LIMIT_C] * count
        return ForceSensorSpec(
            tuple(channels), display_unit(tuple(units)), RATE_HZ, LIMIT, tuple(units), tuple(limits)
        )

    @property
    def tare_limits(self) -> NDArray[np.float64]:
        """See `ForceSensor.tare_limits`; temperatures are not tared."""
        return np.where(np.array(self.raw_spec.units) == "uT", self.config.tare_max_std, np.inf)

    @property
    def temperatures(self) -> NDArray[np.float32] | None:
        """(magnetometers,) degrees Celsius of the newest sample; None before the first."""
        found = self._skin.temperatures if self._skin is not None else None
        return None if found is None else found.copy()

    @property
    def finder(self) -> FrameFinder:
        """What cuts the frames out of the stream, with its own counts."""
        return self._skin.finder if self._skin is not None else FrameFinder(self.config.num_magnetometers)

    def metadata(self) -> dict[str, Any]:
        """As `StreamSensor.metadata`, with where the magnetometers are and how each is turned, if that is known.

        `layout_mm`: (x, y) of each magnetometer in mm; `layout_axes`: for each the 2x2 matrix that turns its
        (Bx, By) into the layout's (x, y).
        """
        given = self.config.layout_mm
        usual = self.config.num_magnetometers == len(LAYOUT_MM)
        layout = given if given is not None else LAYOUT_MM if usual else None
        return super().metadata() | {
            "layout_mm": None if layout is None else [[float(x), float(y)] for x, y in layout],
            "layout_axes": [[list(row) for row in axes] for axes in LAYOUT_AXES]
            if usual and not given
            else None,
        }

    def connect(self, warmup: bool = True) -> None:
        """As `StreamSensor.connect`, on the port that the configuration has now."""
        if not self.is_connected:
            self._device = self._new_device()
        super().connect(warmup)

    def open_stream(self) -> SkinStream:
        """See `StreamSensor.open_stream`."""
        self._skin = SkinStream(self._device, self.config)
        return self._skin
