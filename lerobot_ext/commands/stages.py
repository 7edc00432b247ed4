"""Running one command after another, each with its log file and a progress bar read from that log."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.testing import end

POLL_S = 0.5


@dataclass(frozen=True)
class Counter:
    """How far a command is, read from its log.

    Attributes:
        pattern: Its last match's first group is a number.
        total: The number at the end.
        offset: Added to the number (1 where the log counts from 0 at the start of each piece: the piece that has
            begun is not done, so offset 0 counts those finished).
    """

    pattern: str
    total: int
    offset: int = 0

    def read(self, log: Path) -> int:
        """The number now; 0 before the first match."""
        found = re.findall(self.pattern, log.read_text(errors="replace")) if log.exists() else []
        return min(int(found[-1]) + self.offset, self.total) if found else 0


class Stages:
    """Runs stages and remembers how long each took.

    Attributes:
        seconds: Title of each finished stage and its duration.
    """

    def __init__(self, log_dir: Path, console: Console | None = None) -> None:
        """Log files go to `log_dir`, which must exist."""
        self.log_dir = log_dir
        self.console = console or Console()
        self.seconds: dict[str, float] = {}

    def run(
        self,
        title: str,
        name: str,
        command: Sequence[str],
        counter: Counter,
        env: dict[str, str] | None = None,
    ) -> Path:
        """Run `command` to its end.

        Args:
            title: What the progress bar says.
            name: Stem of the log file.
            command: Words of the command; its output goes to the log.
            counter: Reads the progress from the log.
            env: The command's whole environment; this process's if None.

        Returns:
            The log file.

        Raises:
            UserError: If the command fails; with the end of its log.
        """
        log = self.log_dir / f"{name}.log"
        start = time.monotonic()
        with log.open("w") as out, self._bar(title, counter.total) as advance:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
            try:
                while process.poll() is None:
                    advance(counter.read(log))
                    time.sleep(POLL_S)
                advance(counter.total if process.returncode == 0 else counter.read(log))
            finally:
                end(process)
        self.seconds[title] = time.monotonic() - start
        if process.returncode != 0:
            raise UserError(
                f"'{title}' failed with status {process.returncode}; the end of {log}:\n{tail(log)}"
            )
        return log

    @contextmanager
    def _bar(self, title: str, total: int):
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total)
            return
        columns = (TextColumn(f"{title:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.update(task, completed=done)


class _Lines:
    """Progress for a pipe or a log: a line whenever another tenth is done, and one every half minute."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.start = self.said_at = time.monotonic()
        self.said = -1

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        tenth = 10 * done // max(self.total, 1)
        if tenth > self.said or now - self.said_at > 30:
            self.said, self.said_at = max(tenth, self.said), now
            self.console.print(f"{self.title:<44} {done:>4}/{self.total} {now - self.start:6.0f} s")


def command(name: str, *options: str) -> list[str]:
    """The words that run `lerobot-ext NAME …` with this Python, wherever it is installed."""
    return [sys.executable, "-m", "lerobot_ext", name, *options]


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
