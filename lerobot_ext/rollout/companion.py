"""The inference process of a run on one machine: `lerobot-ext serve` as a child, watched, told of, ended with the run.

Only the process lives here: what it serves is in its command line, who waits for it in `start`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from simplify_work.wire import shared
from simplify_work.wire.private import PrivateFolder

logger = logging.getLogger(__name__)

PREFIX = "inference: "
LAST_LINES = 8
_LOOK_S = 0.05
# As `lerobot-ext serve` sets its log up: date, time, level, message.
_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>[A-Z]+) (?P<text>.*)")
_LEVELS = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}
_OUT_OF_MEMORY = "; if nobody did that, the machine was out of memory (`dmesg` tells)"


class InferenceProcess:
    """A policy server in a process of its own, which no other run can reach.

    Attributes:
        log: The file that gets all that it says.
        started: `monotonic` time of its last start.
        loading_s: Seconds from its last start to its being ready; None until it is.

    Args:
        command: Words that start it; `--address=…` and `--end_with=…` are put to them.
        folder: Of its socket.
        log: See above; it is appended to.
        environment: Variables to set for it.
        restarts: How often it is started again after it died, if it was ready before.
        stop_s: How long it may take to end.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: PrivateFolder,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        restarts: int = 0,
        stop_s: float = 10.0,
    ) -> None:
        self.log = log
        self.started = time.monotonic()
        self.loading_s: float | None = None
        self._command = [*command, f"--address={folder.address}", f"--end_with={os.getpid()}"]
        self._environment = dict(environment or {})
        self._restarts, self._restarted, self._stop_s = restarts, 0, stop_s
        self._ready, self._stopping = threading.Event(), threading.Event()
        self._doing = "starting"
        self._death: str | None = None
        self._lock = threading.Lock()  # of the process and what follows its death
        self._on_death: Callable[[], None] | None = None
        self._tail: deque[str] = deque(maxlen=LAST_LINES)
        self._level: int | None = None  # of the log's last entry, for the lines that go on with it
        self._process: subprocess.Popen | None = None
        self._watcher = threading.Thread(target=self._watch, name="inference-process", daemon=True)

    @property
    def pid(self) -> int:
        """Of the process; of the last one if it was started again."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """True once it has said that its policy is loaded and warm."""
        return self._ready.is_set()

    @property
    def doing(self) -> str:
        """What it does now, in a few words."""
        return self._doing

    @property
    def death(self) -> str | None:
        """What became of it, in a sentence, if it ended and will not be started again; None as long as all is well."""
        return self._death

    def start(self) -> None:
        """Start it; it loads its policy in the background."""
        shared.remove_abandoned()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.log.open("ab")
        self._reader = self.log.open("rb")
        self._reader.seek(0, os.SEEK_END)
        self._spawn()
        self._watcher.start()

    def stop(self) -> None:
        """End it, in time or by force, and remove what it left."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(self._stop_s)
            except subprocess.TimeoutExpired:
                logger.warning("the inference process did not end within %g s; it is killed", self._stop_s)
                process.kill()
                process.wait()
        self._watcher.join()
        self._file.close()
        self._reader.close()
        shared.remove_abandoned()

    def when_dead(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in a thread, as soon as it is dead for good; at once if it is."""
        with self._lock:
            self._on_death = callback
            dead = self._death is not None
        if dead:
            callback()

    def last_lines(self) -> str:
        """The end of what it said."""
        return "\n".join(f"  | {line}" for line in self._tail) or "  | (nothing)"

    def _spawn(self) -> None:
        self._ready.clear()
        self._doing, self.started, self.loading_s = "starting", time.monotonic(), None
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=os.environ | self._environment,
            # Ctrl-C in the terminal is for the robot's process, which ends this one when the arm is at rest.
            start_new_session=True,
        )

    # --- the watcher's thread ---

    def _watch(self) -> None:
        rest = b""
        while True:
            ended = self._process.poll() is not None
            rest = self._read(rest)
            if ended:
                if rest:
                    self._take(rest.decode(errors="replace"))
                    rest = b""
                if not self._goes_on():
                    return
            time.sleep(_LOOK_S)

    def _read(self, rest: bytes) -> bytes:
        """Take in what the log has more; returns the beginning of a line that is not complete."""
        *lines, rest = (rest + self._reader.read()).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace").rstrip())
        return rest

    def _take(self, line: str) -> None:
        if not line:
            return
        self._tail.append(line)
        entry = _LOGGED.match(line)
        if line.startswith("ready"):
            self._level = None
            self._doing = "ready"
            logger.info("%s%s", PREFIX, line)
            self.loading_s = time.monotonic() - self.started
            self._ready.set()
        elif line.startswith("loading"):
            self._level = None
            self._doing = line
        elif entry is not None:
            self._level = _LEVELS.get(entry["level"])
            line = entry["text"]
        elif line.startswith("error:"):
            self._level = logging.ERROR
        if self._level is not None:
            logger.log(self._level, "%s%s", PREFIX, line)

    def _goes_on(self) -> bool:
        """What follows its end: nothing, another start, or the end of the run; False if nobody needs to watch any more."""
        with self._lock:
            if self._stopping.is_set():
                return False
            said = f"the inference process (pid {self._process.pid}) {ending(self._process.returncode)}"
            if self._ready.is_set() and self._restarted < self._restarts:
                self._restarted += 1
                logger.warning(
                    "%s; it is started again (%d of %d), the arm executes what it has and then holds. Its log ends (%s):\n%s",
                    *(said, self._restarted, self._restarts, self.log, self.last_lines()),
                )
                self._spawn()
                return True
            self._death = f"{said}; its log: {self.log}"
            logger.error("%s. It ends:\n%s", self._death, self.last_lines())
            callback = self._on_death
        if callback is not None:
            callback()
        return False


def ending(status: int) -> str:
    """How a process ended, in words, by its `returncode`."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}{_OUT_OF_MEMORY if -status == signal.SIGKILL else ''}"
