"""A magnetic skin's board on a pseudo-terminal, fed by the test."""

import os
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np


class Board:
    """Streams frames of `field` plus noise at 100 Hz until told otherwise."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave
        os.set_blocking(self.master, False)
        self.field = np.arange(20, dtype="<f4").reshape(5, 4) * 10 + 20
        self.noise = 0.1
        self.streaming = threading.Event()
        self.streaming.set()
        self._stop = threading.Event()
        self._rng = np.random.default_rng(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def frame(self) -> bytes:
        values = self.field + self._rng.normal(0, self.noise, (5, 4))
        return values.astype("<f4").tobytes() + b"\r\n"

    def send(self, data: bytes) -> None:
        with suppress(BlockingIOError):  # nobody reads: a real board drops it, too
            os.write(self.master, data)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            if self.streaming.is_set():
                self.send(self.frame())

    def pause(self) -> None:
        self.streaming.clear()
        time.sleep(0.05)

    def vanish(self) -> None:
        """As if its cable were pulled."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            os.close(self._slave)
            os.close(self.master)


@contextmanager
def running_board() -> Iterator[Board]:
    board = Board()
    try:
        yield board
    finally:
        board.vanish()
