"""What the server did, as counters and recent durations, and as a Prometheus endpoint for whoever wants to scrape them.

Numbers only: no address and no name of a robot leaves through here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from lerobot_ext.errors import UserError
from simplify_work.wire.messages import Durations

STAGES = ("queue", "preprocess", "infer", "postprocess")

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_RECENT = 2048  # chunks
_WINDOW_S = 10.0


@dataclass(frozen=True)
class Figures:
    """The last seconds, for a person to read.

    Attributes:
        sessions: Robots connected.
        chunks_per_s: Chunks sent.
        batch_size: Mean.
        stages_ms: p50 and p95 of each stage.
    """

    sessions: int
    chunks_per_s: float
    batch_size: float
    stages_ms: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        """`3 sessions, 29.8 Hz, batch 2.4, queue 0.4/2.1 ms, …`."""
        text = f"{self.sessions} sessions, {self.chunks_per_s:.1f} Hz"
        if self.stages_ms:
            stages = ", ".join(f"{name} {p50:.1f}/{p95:.1f}" for name, (p50, p95) in self.stages_ms.items())
            text += f", batch {self.batch_size:.1f}, p50/p95 in ms: {stages}"
        return text


class Metrics:
    """Counters of one server.

    Args:
        sessions: Tells how many there are.
    """

    def __init__(self, sessions: Callable[[], int]) -> None:
        self._sessions = sessions
        self._recent: deque[tuple[float, Durations, int]] = deque(maxlen=_RECENT)
        self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"lerobot_server_{name}", text, registry=self.registry)

        self.requests = counter("requests", "Observations received.")
        self.chunks = counter("chunks", "Chunks of actions sent.")
        self.superseded = counter("superseded", "Observations whose place a newer one took.")
        self.malformed = counter("malformed", "Messages that could not be read.")
        self.refused = counter(
            "refused", "Requests answered with an error, malformed and superseded ones aside."
        )
        gauge = Gauge("lerobot_server_sessions", "Robots connected.", registry=self.registry)
        gauge.set_function(sessions)
        self._stages = Histogram(
            "lerobot_server_stage_seconds", "Time of a chunk's stages.", ["stage"], registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self._by_stage = [self._stages.labels(stage) for stage in STAGES]
        self._batch = Histogram(
            "lerobot_server_batch_size", "Observations inferred at once, for each chunk.", registry=self.registry,
            buckets=_BATCHES,
        )  # fmt: skip

    def chunk_sent(self, durations: Durations, batch_size: int) -> None:
        """Count one chunk."""
        self.chunks.inc()
        self._batch.observe(batch_size)
        for histogram, seconds in zip(self._by_stage, _seconds(durations), strict=True):
            histogram.observe(seconds)
        self._recent.append((time.monotonic(), durations, batch_size))

    def figures(self, window_s: float = _WINDOW_S) -> Figures:
        """What happened in the last seconds."""
        now = time.monotonic()
        recent = [entry for entry in tuple(self._recent) if entry[0] > now - window_s]
        if not recent:
            return Figures(self._sessions(), 0.0, 0.0)
        milliseconds = 1000 * np.array([_seconds(durations) for _, durations, _ in recent])
        p50, p95 = np.percentile(milliseconds, (50, 95), axis=0)
        stages = {stage: (float(a), float(b)) for stage, a, b in zip(STAGES, p50, p95, strict=True)}
        # A full memory may not reach back to the window's beginning.
        span = window_s if len(recent) < _RECENT else max(now - recent[0][0], 1e-3)
        return Figures(
            self._sessions(), len(recent) / span, float(np.mean([size for *_, size in recent])), stages
        )

    def serve(self, port: int, host: str = "127.0.0.1") -> MetricsEndpoint:
        """Answer Prometheus at http://host:port/metrics; port 0 chooses a free one.

        Raises:
            UserError: If the port cannot be had.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise UserError(
                f"--metrics_port={port} cannot be had on {host} ({error}); stop the program that uses it, or give "
                "another port."
            ) from error
        return MetricsEndpoint(server, thread)


class MetricsEndpoint:
    """A running endpoint."""

    def __init__(self, server, thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._server.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def _seconds(durations: Durations) -> tuple[float, float, float, float]:
    return durations.queue_s, durations.preprocess_s, durations.infer_s, durations.postprocess_s
