"""What happened in an episode, as JSON lines: `<folder>/episode_000000.jsonl`, one event a line.

A thread writes, so that a slow disk never holds the control loop. Every line has `event` and `time_s`, the seconds
since the episode's start by the robot's monotonic clock; the last line is missing if the process died.

start    episode, fps, merge, chunk_size, action_names
tick     timestep (actions executed so far), queue (actions left), starved (nothing was handed out)
request  timestep (of its observation), forecast (steps)
chunk    timestep (of its observation), arrived (timestep), delay (steps), forecast, trimmed, actions, jump, round_trip_s
         and what the source knows of: queue_s, preprocess_s, infer_s, postprocess_s, codec, sent_bytes
fault    kind, text: chunks stopped coming (once an outage)
refused  text: a chunk was refused whole
resumed  after_s: chunks come again
end      ticks, starved, chunks, refused, faults
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

logger = logging.getLogger(__name__)


class TelemetryWriter:
    """Writes one file at a time; without a folder it does nothing.

    Args:
        folder: Made when the first episode starts.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._lines: SimpleQueue[Path | str | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._next = 0

    def start(self, episode: int | None, **fields: Any) -> int:
        """Begin the file of an episode, replacing one of the same number (an episode that is recorded again).

        Args:
            episode: Its number in the dataset; None takes the first that has no file yet.
            fields: Of the `start` line.

        Returns:
            The number.
        """
        if episode is None and self._folder is None:
            episode = self._next
        elif episode is None:
            episode = next(i for i in itertools.count(self._next) if not os.path.exists(self._path(i)))
        self._next = episode + 1  # the thread may not have made the file yet
        if self._folder is None:
            return episode
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="telemetry", daemon=True)
            self._thread.start()
        self._lines.put(self._path(episode))
        self.event("start", 0.0, episode=episode, **fields)
        return episode

    def event(self, name: str, time_s: float, **fields: Any) -> None:
        """Write one line to the file of the episode."""
        if self._thread is not None:
            line = {"event": name, "time_s": round(time_s, 6), **fields}
            # A server may send any float for its durations; JSON has no word for infinity.
            finite = {key: None if _is_endless(value) else value for key, value in line.items()}
            self._lines.put(json.dumps(finite, allow_nan=False))

    def close(self) -> None:
        """Wait until everything is written; a later `start` begins anew."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join()
            self._thread = None

    def _path(self, episode: int) -> Path:
        return self._folder / f"episode_{episode:06d}.jsonl"

    def _write(self) -> None:
        file: TextIO | None = None
        failed = over = False
        while not over:
            item = self._lines.get()
            over = item is None
            try:
                if isinstance(item, str):
                    if file is not None:
                        file.write(item + "\n")
                        if self._lines.empty():
                            file.flush()
                    continue
                before, file = file, None
                if before is not None:
                    before.close()
                if item is not None:
                    item.parent.mkdir(parents=True, exist_ok=True)
                    file = item.open("w")
            except OSError as error:
                if not failed:
                    logger.warning("telemetry cannot be written to %s: %s", self._folder, error)
                failed = True


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
