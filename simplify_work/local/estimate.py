"""How fast the link to the server is, and which codec is therefore the quickest.

All times are of this machine's clock. Nothing here sends anything: `client` reports what it measured.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Codec = Literal["raw", "jpeg", "lossless"]

_WINDOW = 3  # measurements; the median of so few follows a change after two

# What is expected of a codec before it was used: encoded size over raw size, and seconds for a raw byte, the
# server's decoding included. Three 480x640 pictures of a real scene, two cores.
_EXPECTED: dict[Codec, tuple[float, float]] = {
    "raw": (1.0, 0.0),
    "jpeg": (0.09, 3e-9),
    "lossless": (0.6, 12e-9),
}
# Decoding is seen together with the transfer and cannot be told from it; it costs about this much of the encoding.
_DECODE_SHARE = 0.7

# Another codec must promise to save this much of the time to be switched to, and this many seconds.
_WORTH_SHARE = 0.25
_WORTH_S = 0.002
# To a loopback address pictures travel raw unless a link that is slow beyond doubt (`ssh -L`) is behind it: this
# machine's own load looks like a slow link, and encoding would suffer from it, too. So there must be more to gain, and
# two raw observations that took long, unless it is foreseen that they would take longer than this.
_WORTH_S_ON_LOOPBACK = 0.030
_TRIALS = 2
_NO_TRIAL_S = 0.5

# Below this a codec has nothing to save.
SMALL_BYTES = 64 * 1024

_PROBE_S = 0.005
_PROBE_BYTES = (16 * 1024, 256 * 1024)


class LinkEstimate:
    """Time of a round trip as `latency_s + bytes * seconds_per_byte`, from those that were measured."""

    def __init__(self) -> None:
        self._small: deque[float] = deque(maxlen=2 * _WINDOW)
        self._large: deque[float] = deque(maxlen=_WINDOW)
        self._sizes: deque[int] = deque(maxlen=_WINDOW)

    def forget(self) -> None:
        """Begin anew: there is a new connection."""
        self._small.clear()
        self._large.clear()
        self._sizes.clear()

    def add_small(self, seconds: float) -> None:
        """A round trip of a message of no size."""
        self._small.append(seconds)

    def add(self, nbytes: int, seconds: float, small_s: float | None = None) -> None:
        """A round trip, less what the server and the encoding took.

        Args:
            nbytes: Of the message, tens of thousands or more.
            seconds: At least 0.
            small_s: What a message of no size took at the same time; if None, the latency that is known.
        """
        if seconds < self.latency_s:
            self._small.append(seconds)
        self._large.append(max(0.0, seconds - (self.latency_s if small_s is None else small_s)) / nbytes)
        self._sizes.append(nbytes)

    def measured_with(self, nbytes: float) -> int:
        """How many of the last measurements were made with messages of that size or larger."""
        return sum(size >= nbytes for size in self._sizes)

    @property
    def measured(self) -> bool:
        """True if there is something to rely on."""
        return bool(self._large)

    @property
    def latency_s(self) -> float:
        """Seconds of a round trip of a message of no size."""
        return min(self._small, default=0.0)

    @property
    def seconds_per_byte(self) -> float:
        """Seconds that each byte adds, usually."""
        return statistics.median(self._large) if self._large else 0.0

    def seconds(self, nbytes: float, at_best: bool = False) -> float:
        """Expected time of a round trip; `at_best` believes the quickest of the measurements."""
        rate = min(self._large, default=0.0) if at_best else self.seconds_per_byte
        return self.latency_s + nbytes * rate

    def probe_bytes(self) -> int:
        """Size of a message that tells the bandwidth, and takes no longer than 5 ms if that is possible."""
        least, most = _PROBE_BYTES
        rate = self.seconds_per_byte
        return int(min(most, max(least, _PROBE_S / rate))) if rate else most

    def __str__(self) -> str:
        """`40.2 ms, 98 Mbit/s`."""
        rate = self.seconds_per_byte
        speed = f"{8e-6 / rate:.3g} Mbit/s" if rate else "too fast to tell"
        return f"{1e3 * self.latency_s:.1f} ms, {speed}"


@dataclass
class CodecChoice:
    """Which codec is the quickest over a link, with some inertia.

    Attributes:
        link: What is known of the link.
        on_loopback: The address is one of this machine.
        current: The choice.
    """

    link: LinkEstimate
    on_loopback: bool = False
    current: Codec = "raw"
    _ratio: dict[Codec, float] = field(
        default_factory=lambda: {name: each[0] for name, each in _EXPECTED.items()}
    )
    _work: dict[Codec, float] = field(
        default_factory=lambda: {name: each[1] for name, each in _EXPECTED.items()}
    )

    def sent(self, codec: Codec, raw_bytes: int, sent_bytes: int, encode_s: float) -> None:
        """Learn what a codec did to an observation.

        Args:
            codec: That was used.
            raw_bytes: Of the observation.
            sent_bytes: Of the message.
            encode_s: What the encoding took.
        """
        if codec != "raw" and raw_bytes:
            for known, found in (
                (self._ratio, sent_bytes / raw_bytes),
                (self._work, encode_s * (1 + _DECODE_SHARE) / raw_bytes),
            ):
                known[codec] += 0.3 * (found - known[codec])

    def expected_s(self, codec: Codec, raw_bytes: int) -> float:
        """From the observation to the chunk, the policy's own time apart."""
        transfer = self.link.seconds(raw_bytes * self._ratio[codec], at_best=self.on_loopback)
        return raw_bytes * self._work[codec] + transfer

    def decide(self, raw_bytes: int) -> bool:
        """Choose for observations of that size; True if the choice changed."""
        before, self.current = self.current, self._best(raw_bytes)
        return self.current != before

    def _best(self, raw_bytes: int) -> Codec:
        if raw_bytes < SMALL_BYTES:
            return "raw"
        if not self.link.measured:
            return self.current
        now = self.expected_s(self.current, raw_bytes)
        if self.current == "raw":
            if now - self.link.latency_s < _WORTH_S:
                return "raw"
            tried = self.link.measured_with(raw_bytes / 2) >= _TRIALS
            if self.on_loopback and not tried and now < _NO_TRIAL_S:
                return "raw"
        best = min(_EXPECTED, key=lambda codec: self.expected_s(codec, raw_bytes))
        saved = now - self.expected_s(best, raw_bytes)
        if self.on_loopback:
            enough = saved > (_WORTH_S_ON_LOOPBACK if self.current == "raw" else 0.0)
        else:
            enough = saved > max(_WORTH_S, _WORTH_SHARE * now)
        return best if enough else self.current

    def __str__(self) -> str:
        """The choice with the reason."""
        return f"{self.current} (round trip {self.link})"
