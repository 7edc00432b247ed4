r"""Frames of a magnetic skin in a stream of bytes; no port and no time here.

A frame is, for each magnetometer, temperature, Bx, By, Bz as little-endian float32, then `\r\n`: 82 bytes for
five. There is no header, checksum or number, and a float may contain the two bytes of the end.
Source: the Arduino sketches of AnySkin and ReSkin (raunaqbhirangi/reskin_sensor).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.sensors.frames import Frame

END = b"\r\n"
LIMIT = 1e6  # microtesla; the magnetometers saturate at 5e4
TINY = 1e-12  # no reading but zero is smaller; misread bytes often are


class FrameFinder:
    """Cuts frames out of a stream that may begin anywhere, lose bytes and contain garbage.

    A frame counts only if one end stands right before it and one right after it. The boundary is believed when
    two such frames follow each other, and then kept until an end is missing where it should be. So the first frame
    after garbage is given up (what stands before it is unknown), and no frame is made of pieces of others.

    Attributes:
        lost_boundary: How often the boundary had to be searched again.
        rejected: Frames within the boundary whose numbers are not finite or absurd.
    """

    def __init__(self, num_magnetometers: int = 5):
        """Look for frames of that many magnetometers."""
        self.num_magnetometers = num_magnetometers
        self.size = 16 * num_magnetometers + len(END)
        self.lost_boundary = 0
        self.rejected = 0
        self._buffer = bytearray()
        self._before = 0  # bytes of the stream before the buffer
        self._locked = False  # the buffer then begins with the end of the frame before

    @property
    def counts(self) -> dict[str, int]:
        """`dropped`: frames that were cut or whose numbers cannot be; `resynced`: boundaries searched again."""
        return {"dropped": self.rejected + self.lost_boundary, "resynced": self.lost_boundary}

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes of the stream; return the frames that are complete and believed by now."""
        self._buffer += data
        frames: list[Frame] = []
        while self._lock():
            if len(self._buffer) < self.size + len(END):
                break
            if not self._ends_at(self.size):
                self._locked = False
                self.lost_boundary += 1
                self._drop(1)
                continue
            values = self._values(len(END))
            if _plausible(values):
                frames.append(Frame(self._before + len(END), values))
            else:
                self.rejected += 1
            self._drop(self.size)
        return frames

    def _lock(self) -> bool:
        """Whether the boundary is known; searches it if not, and drops what cannot belong to a frame."""
        while not self._locked:
            at = self._buffer.find(END)
            if at < 0:
                self._drop(max(0, len(self._buffer) - 1))
                return False
            self._drop(at)
            if len(self._buffer) < 2 * self.size + len(END):
                if len(self._buffer) >= self.size + len(END) and not self._ends_at(self.size):
                    self._drop(1)
                    continue
                return False
            self._locked = all(
                self._ends_at(k * self.size) and _plausible(self._values(len(END) + (k - 1) * self.size))
                for k in (1, 2)
            )
            if not self._locked:
                self._drop(1)
        return True

    def _ends_at(self, at: int) -> bool:
        return self._buffer[at : at + len(END)] == END

    def _values(self, at: int) -> NDArray[np.float32]:
        numbers = np.frombuffer(bytes(self._buffer[at : at + 16 * self.num_magnetometers]), dtype="<f4")
        return numbers.reshape(self.num_magnetometers, 4)

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._before += count


def _plausible(values: NDArray[np.float32]) -> bool:
    with np.errstate(invalid="ignore"):
        size = np.abs(values)
        return bool(((size == 0) | ((size >= TINY) & (size <= LIMIT))).all())
