"""A magnetic skin's board on a pseudo-terminal, fed by the test."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lerobot_ext.virtual.terminal import Terminal


class Board:
    """Streams frames of `field` plus noise at 100 Hz until told otherwise."""

    def __init__(self, folder: Path, magnetometers: int = 5) -> None:
        by_id = folder / "serial/by-id/usb-Virtual_skin_S1-if00"
        self.terminal = Terminal(folder / "skin", keep_open=False, by_id=by_id)
        self.port = str(self.terminal.link)
        self.field = np.arange(4 * magnetometers, dtype="<f4").reshape(-1, 4) * 10 + 20
        self.noise = 0.1
        self.streaming = threading.Event()
        self.streaming.set()
        self._stop = threading.Event()
        self._rng = np.random.default_rng(0)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def frame(self) -> bytes:
        values = self.field + self._rng.normal(0, self.noise, self.field.shape)
        return values.astype("<f4").tobytes() + b"\r\n"

    def send(self, data: bytes) -> None:
        with self._lock:
            if self.terminal.plugged:
                self.terminal.write(data)  # nobody reads: a real board drops it, too

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            if self.streaming.is_set():
                self.send(self.frame())

    def pause(self) -> None:
        self.streaming.clear()
        time.sleep(0.05)

    def unplug(self) -> None:
        with self._lock:
            self.terminal.unplug()

    def plug(self) -> None:
        with self._lock:
            self.terminal.plug()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.terminal.close()


@contextmanager
def running_board(magnetometers: int = 5) -> Iterator[Board]:
    with tempfile.TemporaryDirectory(prefix="skin") as folder:
        board = Board(Path(folder), magnetometers)
        try:
            yield board
        finally:
            board.close()
