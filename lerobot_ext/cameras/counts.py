"""Which framesets are new and whole, and how many were not: told from frame numbers alone.

No device and no picture here; what is counted since connecting is shown to whoever records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Two streams of one frameset lie up to a frame apart. What is farther apart than this was not seen at one instant:
# a file that begins anew, a stream that hangs.
APART_MS, APART_FRAMES = 100.0, 3.0


@dataclass(frozen=True)
class Stamp:
    """What a device says of one frame of one stream."""

    number: int
    timestamp_ms: float
    clock: str


class FrameCounter:
    """Judges the framesets of one camera in the order in which they arrive.

    Attributes:
        received: Framesets that were new and whole.
        dropped: Frames that are missing between two numbers, and framesets whose streams do not belong together.
        repeated: Framesets of which a stream is the one that was received before.
        reconnects: How often the camera was lost and came back.
    """

    def __init__(self) -> None:
        self.received = self.dropped = self.repeated = self.reconnects = 0
        self._last: dict[str, Stamp] = {}  # of the last one that was received
        self._seen: dict[str, int] = {}  # the last number of each stream, whether it was received or not

    def accept(self, stamps: Mapping[str, Stamp], fps: float) -> bool:
        """Count one frameset.

        Args:
            stamps: By stream.
            fps: Rate of the streams.

        Returns:
            Whether it is new and of one instant.
        """
        gaps = [stamp.number - self._seen.get(name, stamp.number - 1) - 1 for name, stamp in stamps.items()]
        self._seen = {name: stamp.number for name, stamp in stamps.items()}
        # Numbers that go backwards are a device or a file that has begun anew: nothing is known to be missing.
        self.dropped += max(max(gaps), 0)
        if any(self._last.get(name) == stamp for name, stamp in stamps.items()):
            self.repeated += 1
            return False
        times = [stamp.timestamp_ms for stamp in stamps.values()]
        one_clock = len({stamp.clock for stamp in stamps.values()}) == 1
        if one_clock and max(times) - min(times) > max(APART_MS, APART_FRAMES * 1e3 / max(fps, 1)):
            self.dropped += 1
            return False
        self._last = dict(stamps)
        self.received += 1
        return True

    def begin(self) -> None:
        """The camera was opened, perhaps anew: what it did not send before is not counted as dropped."""
        self._seen = {}

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in ("received", "dropped", "repeated", "reconnects")}
