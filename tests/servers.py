"""`lerobot-ext serve` in a second process, for the tests."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

ENV = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class ServerProcess:
    """A server that is ready when this returns, and gone when the `with` block ends."""

    def __init__(
        self, checkpoint: Path, port: int = 0, wait_s: float = 120, options: tuple[str, ...] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "lerobot_ext", "serve"),
                *(f"--policy.path={checkpoint}", f"--port={port}", "--device=cpu", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | ENV,
        )
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self._wait_for("ready:", wait_s)
        self.address = re.search(r"(tcp|ipc)://\S+", self.ready).group()
        self.port = int(self.address.rpartition(":")[2]) if self.address.startswith("tcp") else None

    def _read(self) -> None:
        for line in self.process.stdout:
            self.output.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def _wait_for(self, start: str, wait_s: float) -> str:
        while (line := self._lines.get(timeout=wait_s)) is not None:
            if line.startswith(start):
                return line
        raise RuntimeError(f"the server ended with {self.process.wait()}:\n{''.join(self.output)}")

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Let it live and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, wait_s: float = 20) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(wait_s)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()
