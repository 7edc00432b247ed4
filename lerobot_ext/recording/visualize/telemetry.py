"""The telemetry of an episode, as the inference engine `async` wrote it, and its summary; draws nothing itself.

A telemetry file is JSON lines, one event a line. Whoever wrote it may have died in the middle of a line, or be of
another version: what cannot be read is left out and counted, what is missing is NaN, unknown events are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.errors import UserError

FOLDER = "telemetry"  # in the dataset's root
INCIDENTS = ("fault", "refused", "resumed")
MAX_VALUE = 1e9  # neither seconds nor steps nor joints get there
SERVER_PARTS = ("queue_s", "preprocess_s", "infer_s", "postprocess_s")


@dataclass(frozen=True)
class Ticks:
    """Control ticks, all (n,): time, actions in the queue, and whether the queue had none to give."""

    time_s: NDArray[np.float64]
    queue: NDArray[np.float64]
    starved: NDArray[np.bool_]


@dataclass(frozen=True)
class Chunks:
    """Chunks that were merged, all (n,) with NaN where the file does not say.

    Attributes:
        time_s: When it was merged.
        delay: Steps executed between its observation and its arrival.
        forecast: What `delay` was expected to be when it was asked for.
        jump: Largest difference of a joint at the merge, in the action's units.
        round_trip_s: From the question to the answer, by the robot's clock.
        server_s: Of it, what the server says that it spent, by SERVER_PARTS.
    """

    time_s: NDArray[np.float64]
    delay: NDArray[np.float64]
    forecast: NDArray[np.float64]
    jump: NDArray[np.float64]
    round_trip_s: NDArray[np.float64]
    server_s: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Incident:
    """Something that a reader should see: `kind` is one of INCIDENTS, `text` a sentence."""

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True)
class Telemetry:
    """One episode's telemetry.

    Attributes:
        ticks: The control ticks.
        chunks: The chunks.
        incidents: In the order of the file.
        merge: Name of the merge rule; empty if the file does not say.
        complete: Whether the file has its last line; a process that died left none.
        unread: Lines that could not be read.
    """

    ticks: Ticks
    chunks: Chunks
    incidents: tuple[Incident, ...]
    merge: str
    complete: bool
    unread: int

    def end_s(self) -> float:
        """The last time in it; 0 if there is none."""
        times = [self.ticks.time_s, self.chunks.time_s, np.array([i.time_s for i in self.incidents])]
        known = np.concatenate(times)
        known = known[np.isfinite(known)]
        return float(known.max()) if known.size else 0.0

    def notes(self) -> list[str]:
        """What the reader should know about the file itself; empty if it is whole."""
        notes = []
        if not self.complete:
            notes.append("the file has no last line: the process ended before the episode did")
        if self.unread:
            notes.append(f"{self.unread} of its lines could not be read")
        return notes


@dataclass(frozen=True)
class Summary:
    """Figures of one or several episodes; NaN where nothing is known.

    Attributes:
        episodes: How many.
        ticks: Control ticks, and `starved` those without an action.
        chunks: That were merged; `refused` were not.
        faults: Outages.
        round_trip_s: Median and 95th percentile.
        infer_s: Median of the policy's part of it.
        delay: Median and largest, in steps.
        jump: Median and largest, in the action's units.
    """

    episodes: int
    ticks: int
    starved: int
    chunks: int
    refused: int
    faults: int
    round_trip_s: tuple[float, float]
    infer_s: float
    delay: tuple[float, float]
    jump: tuple[float, float]

    @property
    def starved_share(self) -> float:
        """Share of the ticks without an action, 0 to 1; NaN without ticks."""
        return self.starved / self.ticks if self.ticks else math.nan

    def sentence(self) -> str:
        """One line."""
        trip, late = self.round_trip_s
        parts = [
            f"{self.ticks} ticks, {_number(100 * self.starved_share, 1)} % without an action",
            f"{self.chunks} chunks",
            f"round trip median {_number(1e3 * trip, 1)} ms ({_number(1e3 * self.infer_s, 1)} inference), "
            f"95 % below {_number(1e3 * late, 1)} ms",
            f"delay median {_number(self.delay[0], 0)}, largest {_number(self.delay[1], 0)} steps",
            f"jump median {_number(self.jump[0], 2)}, largest {_number(self.jump[1], 2)}",
            f"{self.refused} refused, {self.faults} faults",
        ]
        return "; ".join(parts)


def path_of(root: str | Path, episode_index: int) -> Path:
    """Where the telemetry of an episode of the dataset in `root` lies, if it has one."""
    return Path(root) / FOLDER / f"episode_{episode_index:06d}.jsonl"


def load_if_there(path: Path) -> Telemetry | None:
    """The telemetry in a file; None if it is not there or holds no event."""
    if not path.is_file():
        return None
    try:
        return load_telemetry(path)
    except UserError:
        return None


def load_telemetry(path: Path) -> Telemetry:
    """The telemetry in a file.

    Raises:
        UserError: The file cannot be read, or holds no event.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"telemetry file '{path}' cannot be read: {error.strerror}; evaluate with --inference.type=async writes one "
            f"for each episode into DATASET/{FOLDER}."
        ) from error
    events, unread = [], 0
    for line in text.splitlines():
        event = _event(line)
        if event is not None:
            events.append(event)
        elif line.strip():
            unread += 1
    if not events:
        raise UserError(
            f"'{path}' holds no telemetry: none of its {unread} lines is a JSON object with an `event`."
        )
    return _telemetry(events, unread)


def summarize(episodes: Sequence[Telemetry]) -> Summary:
    """The figures of all `episodes` together."""
    chunks = [episode.chunks for episode in episodes]
    kinds = [incident.kind for episode in episodes for incident in episode.incidents]
    return Summary(
        episodes=len(episodes),
        ticks=sum(len(episode.ticks.starved) for episode in episodes),
        starved=sum(int(episode.ticks.starved.sum()) for episode in episodes),
        chunks=sum(len(each.time_s) for each in chunks),
        refused=kinds.count("refused"),
        faults=kinds.count("fault"),
        round_trip_s=(_at(50, [c.round_trip_s for c in chunks]), _at(95, [c.round_trip_s for c in chunks])),
        infer_s=_at(50, [c.server_s["infer_s"] for c in chunks]),
        delay=(_at(50, [c.delay for c in chunks]), _at(100, [c.delay for c in chunks])),
        jump=(_at(50, [c.jump for c in chunks]), _at(100, [c.jump for c in chunks])),
    )


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _telemetry(events: list[dict[str, Any]], unread: int) -> Telemetry:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    ticks, chunks, start = (by_kind.get(kind, []) for kind in ("tick", "chunk", "start"))
    return Telemetry(
        ticks=Ticks(
            _column(ticks, "time_s"),
            _column(ticks, "queue"),
            np.array([tick.get("starved") is True for tick in ticks], dtype=bool),
        ),
        chunks=Chunks(
            **{k: _column(chunks, k) for k in ("time_s", "delay", "forecast", "jump", "round_trip_s")},
            server_s={key: _column(chunks, key) for key in SERVER_PARTS},
        ),
        incidents=tuple(_incident(event) for event in events if event["event"] in INCIDENTS),
        merge=str(start[0].get("merge") or "") if start else "",
        complete="end" in by_kind,
        unread=unread,
    )


def _incident(event: dict[str, Any]) -> Incident:
    kind = event["event"]
    text = str(event.get("text") or "")
    if kind == "resumed":
        after_s = _value(event.get("after_s"))
        text = text or (
            f"chunks come again after {after_s:.1f} s" if math.isfinite(after_s) else "chunks come again"
        )
    elif event.get("kind"):
        text = f"{event['kind']}: {text}" if text else str(event["kind"])
    return Incident(_value(event.get("time_s")), kind, text or kind)


def _column(events: Iterable[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([_value(event.get(key)) for event in events], dtype=np.float64)


def _value(value: Any) -> float:
    """A JSON value as a number; NaN if it is none, or none that any of this can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_VALUE:
        return math.nan
    return float(value)


def _at(percent: float, parts: list[NDArray[np.float64]]) -> float:
    known = np.concatenate([*parts, np.empty(0)])
    known = known[np.isfinite(known)]
    return float(np.percentile(known, percent)) if known.size else math.nan


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "unknown"
