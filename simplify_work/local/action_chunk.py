"""What a policy server answered, and the figures of how it came to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simplify_work.wire.messages import Durations


@dataclass(frozen=True)
class ActionChunk:
    """What came back for one observation.

    Attributes:
        actions: (n, dim) float32, in the robot's units, all finite; the caller's own.
        durations: What the server spent, by its clock.
        round_trip_s: From handing over the observation to having the actions, by this machine's clock.
        model_actions: (n, dim) float32 before postprocessing; None if not asked for.
        sent_bytes: Of the message with the observation; those in shared memory are not sent.
        codec: How its pictures travelled: `raw`, `jpeg`, `lossless` or `shared`.
    """

    actions: np.ndarray
    durations: Durations
    round_trip_s: float
    model_actions: np.ndarray | None = None
    sent_bytes: int = 0
    codec: str = "raw"

    @property
    def figures(self) -> dict[str, float | int | str]:
        """Times in seconds, size and codec, by the names they have in telemetry."""
        return {
            "round_trip_s": self.round_trip_s,
            "queue_s": self.durations.queue_s,
            "preprocess_s": self.durations.preprocess_s,
            "infer_s": self.durations.infer_s,
            "postprocess_s": self.durations.postprocess_s,
            "codec": self.codec,
            "sent_bytes": self.sent_bytes,
        }
