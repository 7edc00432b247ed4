"""One frameset as an immutable record, and the place where the newest one waits for its readers.

Colour and depth travel in one record from the thread that captured them, so no reader can see colour of one
instant with depth of another. Nothing here knows a device.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frameset:
    """Colour and depth of one instant.

    Attributes:
        color: (H, W, 3) uint8, read-only; None if colour is switched off.
        depth: (H, W, 1) uint16 millimetres or float32 metres, 0 where unknown, read-only; None if switched off.
        timestamp_ms: The device's own time of the frame.
        frame_number: The device's own count; a gap means dropped frames.
        captured_s: `time.perf_counter()` of this host at the capture, as well as the device lets us know it.
    """

    color: NDArray[np.uint8] | None
    depth: NDArray[np.uint16] | NDArray[np.float32] | None
    timestamp_ms: float
    frame_number: int
    captured_s: float

    def __post_init__(self) -> None:
        for image in (self.color, self.depth):
            if image is not None:
                image.setflags(write=False)

    @property
    def age_ms(self) -> float:
        """Milliseconds since the capture."""
        return (time.perf_counter() - self.captured_s) * 1e3


class FramesetSlot:
    """Holds the newest frameset; one thread publishes, any number read or wait.

    Each `reader` name has its own memory of what it has seen, so that waiting for new colour does not consume
    the depth of the same frameset.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: Frameset | None = None
        self._count = 0
        self._seen: dict[str, int] = {}
        self._failure: BaseException | None = None

    def publish(self, frameset: Frameset) -> None:
        """Replace the newest frameset and wake who waits."""
        with self._changed:
            self._newest = frameset
            self._count += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """No frameset will come any more: every reader gets `error` from now on."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def newest(self, max_age_ms: float) -> Frameset:
        """The newest frameset, at once.

        Raises:
            RuntimeError: Nothing has been captured yet.
            TimeoutError: The newest frameset is older than `max_age_ms`.
            ConnectionError: The capture has failed for good.
        """
        with self._changed:
            self._check()
            newest = self._newest
        if newest is None:
            raise RuntimeError("no frame has been captured yet")
        age_ms = newest.age_ms
        if age_ms > max_age_ms:
            raise TimeoutError(
                f"newest frame (number {newest.frame_number}) is {age_ms:.0f} ms old, allowed are {max_age_ms:.0f} ms"
            )
        return newest

    def unseen(self, reader: str, timeout_s: float) -> Frameset:
        """The newest frameset if `reader` has not had it yet, else the next one.

        Raises:
            TimeoutError: None came within `timeout_s`.
            ConnectionError: The capture has failed for good.
        """
        with self._changed:
            self._wait(lambda: self._count > self._seen.get(reader, 0), timeout_s)
            self._seen[reader] = self._count
            return self._newest

    def next(self, timeout_s: float) -> Frameset:
        """The first frameset that is published after this call; raises as `unseen` does."""
        with self._changed:
            before = self._count
            self._wait(lambda: self._count > before, timeout_s)
            return self._newest

    def _wait(self, ready, timeout_s: float) -> None:
        arrived = self._changed.wait_for(lambda: ready() or self._failure is not None, timeout_s)
        self._check()
        if not arrived:
            raise TimeoutError(f"no new frame within {timeout_s * 1e3:.0f} ms")

    def _check(self) -> None:
        if self._failure is not None:
            raise ConnectionError(f"no more frames: {self._failure}") from self._failure
