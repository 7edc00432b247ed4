"""A lab for tests: started as its own process in a directory of the test's, ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lerobot_ext.virtual.client import LabClient
from lerobot_ext.virtual.directory import MAX_SOCKET_PATH

PATIENCE_S = 10.0  # with a running lab's answer: a test machine may stand still


@dataclass(frozen=True)
class RunningLab:
    """A lab that answers.

    Attributes:
        directory: Its directory, also in `LEROBOT_LAB_DIR` as long as it runs.
        wrist_port: TCP port of its wrist camera.
        process: Its process.
        client: Connected to it.
    """

    directory: Path
    wrist_port: int
    process: subprocess.Popen
    client: LabClient

    @property
    def follower(self) -> Path:
        """The follower's port."""
        return self.port("follower")

    @property
    def leader(self) -> Path:
        """The leader's port."""
        return self.port("leader")

    @property
    def skin(self) -> Path:
        """The skin's port."""
        return self.port("skin")

    def port(self, device: str) -> Path:
        """The port of a device; with two arms they are called follower_right, follower_left and so on."""
        return self.directory / device

    @property
    def calibration(self) -> Path:
        """What `calibration_dir` must be for `id: follower` and `id: leader`."""
        return self.directory / "calibration"


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running_lab(tmp_path: Path, *, start_timeout_s: float = 60.0, **options: object) -> Iterator[RunningLab]:
    """Start `lerobot-ext lab` in `tmp_path/lab` and end it on exit; it also ends when this process dies.

    Args:
        tmp_path: The test's directory; where its path is too long for a socket, one in /tmp is taken instead.
        start_timeout_s: How long it may take to get ready.
        options: The command's options by name: `seed=3`, `fps=15`, `arms=2`, `no_operator=True`.

    Raises:
        RuntimeError: If it does not start; with what it printed.
    """
    with contextlib.ExitStack() as stack:
        directory = tmp_path / "lab"
        if len(os.fsencode(directory / "control")) > MAX_SOCKET_PATH:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab"))) / "lab"
        wrist_port = int(options.pop("wrist_port", 0) or free_port())
        command = [
            sys.executable,
            "-m",
            "lerobot_ext",
            "lab",
            f"--dir={directory}",
            f"--wrist_port={wrist_port}",
        ]
        command.append("--end_with_parent")
        for name, value in options.items():
            if value is True:
                command.append(f"--{name}")
            elif value is not False:
                command.append(f"--{name}={value}")
        output = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        stack.callback(end, process)
        client = stack.enter_context(LabClient(directory))
        for _ in range(int(start_timeout_s / 0.2)):
            with contextlib.suppress(ConnectionError):
                client.wait_ready(0.2)
                break
            if process.poll() is not None:
                break
        if process.poll() is not None or not (directory / "control").is_socket():
            output.seek(0)
            raise RuntimeError(f"the lab did not start (exit status {process.poll()}): {output.read()}")
        client.timeout_s = PATIENCE_S
        before = os.environ.get("LEROBOT_LAB_DIR")
        os.environ["LEROBOT_LAB_DIR"] = str(directory)
        try:
            yield RunningLab(directory, wrist_port, process, client)
        finally:
            if before is None:
                del os.environ["LEROBOT_LAB_DIR"]
            else:
                os.environ["LEROBOT_LAB_DIR"] = before


def end(process: subprocess.Popen, patience_s: float = 10.0) -> None:
    """Ask a process to end, then make it."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
