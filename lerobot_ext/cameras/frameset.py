"""One frameset as an immutable record, and the place where the newest one waits for its readers.

Colour and depth travel in one record from the thread that captured them, so no reader can see colour of one
instant with depth of another. Nothing here knows a device.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frameset:
    """Colour and depth of one instant.

    Attributes:
        color: (H, W, 3) uint8, read-only; None if colour is switched off.
        depth: (H, W, 1) uint16 millimetres or float32 metres, 0 where unknown, read-only; None if switched off.
        timestamp_ms: The device's own time of the frame, on the clock `clock`.
        frame_number: The device's own count; a gap means dropped frames.
        captured_s: `time.perf_counter()` of this host at the capture, as well as the device lets us know it.
        clock: librealsense's word for whose time `timestamp_ms` is: `global_time` (device's, converted to the
            host's), `system_time` (host's at arrival) or `hardware_clock` (device's own).
    """

    color: NDArray[np.uint8] | None
    depth: NDArray[np.uint16] | NDArray[np.float32] | None
    timestamp_ms: float
    frame_number: int
    captured_s: float
    clock: str = "system_time"

    def __post_init__(self) -> None:
        for image in (self.color, self.depth):
            if image is not None:
                image.setflags(write=False)

    @property
    def age_ms(self) -> float:
        """Milliseconds since the capture."""
        return (time.perf_counter() - self.captured_s) * 1e3


@dataclass(frozen=True)
class Loss:
    """A camera that is gone for the moment.

    Attributes:
        reason: What was noticed.
        tries_s: How long it is tried to open it again.
        since_s: `time.perf_counter()` when it was noticed.
        since: The same as a time of day, for people.
    """

    reason: str
    tries_s: float
    since_s: float = field(default_factory=time.perf_counter)
    since: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))

    @property
    def left_s(self) -> float:
        """How much longer it is tried."""
        return max(self.since_s + self.tries_s - time.perf_counter(), 0.0)

    def __str__(self) -> str:
        gone_s = time.perf_counter() - self.since_s
        more = "" if math.isinf(self.tries_s) else f", for {self.left_s:.0f} s more"
        return (
            f"lost since {self.since} ({gone_s:.1f} s ago): {self.reason}; check its cable and plug it in again: it is "
            f"opened as soon as it is back{more}"
        )


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
        self._loss: Loss | None = None
        self._failure: BaseException | None = None

    def publish(self, frameset: Frameset) -> None:
        """Replace the newest frameset and wake who waits; a camera that was lost is back."""
        with self._changed:
            self._newest = frameset
            self._count += 1
            self._loss = None
            self._changed.notify_all()

    def lose(self, loss: Loss) -> None:
        """No frameset will come for a while: until the next one is published, every reader is told."""
        with self._changed:
            self._loss = loss

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
            ConnectionError: The camera is lost, or the capture has failed for good.
        """
        with self._changed:
            self._check()
            if self._loss is not None:
                raise ConnectionError(str(self._loss))
            newest = self._newest
        if newest is None:
            raise RuntimeError("no frame has been captured yet")
        age_ms = newest.age_ms
        if age_ms > max_age_ms:
            raise TimeoutError(
                f"newest frame (number {newest.frame_number}) is {age_ms:.0f} ms old, allowed are {max_age_ms:.0f} ms: "
                "the camera stands still, or computer or USB connection are overloaded"
            )
        return newest

    def unseen(self, reader: str, timeout_s: float, max_age_ms: float) -> Frameset:
        """The newest frameset if `reader` has not had it yet and it is not too old, else the next one.

        Raises:
            TimeoutError: None came within `timeout_s`.
            ConnectionError: None came and the camera is lost, or the capture has failed for good.
        """

        def ready() -> bool:
            return self._count > self._seen.get(reader, 0) and self._newest.age_ms <= max_age_ms

        with self._changed:
            self._wait(ready, timeout_s)
            self._seen[reader] = self._count
            return self._newest

    def next(self, timeout_s: float) -> Frameset:
        """The first frameset that is published after this call; raises as `unseen` does."""
        with self._changed:
            before = self._count
            self._wait(lambda: self._count > before, timeout_s)
            return self._newest

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        arrived = self._changed.wait_for(lambda: ready() or self._failure is not None, timeout_s)
        self._check()
        if arrived:
            return
        if self._loss is not None:
            raise ConnectionError(str(self._loss))
        newest = self._newest
        last = (
            "" if newest is None else f" (newest: number {newest.frame_number}, {newest.age_ms:.0f} ms old)"
        )
        raise TimeoutError(f"no new frame within {timeout_s * 1e3:.0f} ms{last}")

    def _check(self) -> None:
        if self._failure is not None:
            raise ConnectionError(f"no more frames: {self._failure}") from self._failure
