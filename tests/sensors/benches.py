"""An FT 300 on a pseudo-terminal and a Net F/T on a UDP port, each fed by a thread of the test."""

import abc
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lerobot_ext.virtual.ft300 import FT300Port
from lerobot_ext.virtual.netft import NetFTServer
from lerobot_ext.virtual.terminal import Terminal


class Bench(abc.ABC):
    """Ticks a virtual device a hundred times a second.

    Attributes:
        force: What presses it, N: normal, then two tangential.
        tremble: Standard deviation of what is added to it.
    """

    def __init__(self) -> None:
        self.force = np.zeros(3)
        self.tremble = 0.0
        self.lock = threading.Lock()
        self._stop = threading.Event()
        self._rng = np.random.default_rng(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @abc.abstractmethod
    def tick(self, force: np.ndarray) -> None:
        """Let the device go on by a hundredth of a second under `force`."""

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            with self.lock:
                self.tick(self.force + self._rng.normal(0, self.tremble, 3))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class FT300Bench(Bench):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        by_id = folder / "serial/by-id/usb-Virtual_ft300_F1-if00"
        self.terminal = Terminal(folder / "ft300", keep_open=False, by_id=by_id)
        self.port = str(self.terminal.link)
        self.device = FT300Port(self.terminal)
        self.start()

    def tick(self, force: np.ndarray) -> None:
        self.device.tick(force)

    def unplug(self) -> None:
        with self.lock:
            self.terminal.unplug()
            self.device.sensor.streaming = False  # it has no power then

    def plug(self) -> None:
        with self.lock:
            self.terminal.plug()

    def send(self, data: bytes) -> None:
        with self.lock:
            self.terminal.write(data)

    def close(self) -> None:
        super().close()
        self.terminal.close()


class NetFTBench(Bench):
    def __init__(self) -> None:
        super().__init__()
        self.server: NetFTServer | None = NetFTServer(0)
        self.port = self.server.port
        self.start()

    def tick(self, force: np.ndarray) -> None:
        if self.server is not None:
            self.server.tick(0.01, force)

    def unplug(self) -> None:
        with self.lock:
            self.server.close()
            self.server = None

    def plug(self) -> None:
        with self.lock:
            self.server = NetFTServer(self.port)

    def close(self) -> None:
        super().close()
        if self.server is not None:
            self.server.close()


@contextmanager
def running_ft300() -> Iterator[FT300Bench]:
    with tempfile.TemporaryDirectory(prefix="ft300") as folder:
        bench = FT300Bench(Path(folder))
        try:
            yield bench
        finally:
            bench.close()


@contextmanager
def running_netft() -> Iterator[NetFTBench]:
    bench = NetFTBench()
    try:
        yield bench
    finally:
        bench.close()


@contextmanager
def chatter(send) -> Iterator[None]:
    """Something else than a force sensor that sends."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.02):
            send(b"hello, I am a thermometer: 21.5\r\n")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def eventually(condition, within_s: float = 10.0) -> bool:
    deadline = time.perf_counter() + within_s
    while time.perf_counter() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
