"""Ctrl-C that waits for the disk.

An episode is saved in several steps (videos, Parquet, metadata); an interrupt between two of them leaves a folder
that LeRobot cannot open. Inside `deferred_interrupts()` SIGINT and SIGTERM take effect when the block has ended.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_interrupts(doing: str) -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while the block runs, then deliver them to the handlers that were there.

    Outside the main thread, where Python delivers no signals, this does nothing.

    Args:
        doing: What is being done, for the log line that tells the user why nothing happens yet.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(signum: int, frame: object) -> None:
        logger.warning("stopping after %s is done; the data is safe then", doing)
        held.append(signum)

    before = {signum: signal.signal(signum, hold) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for signum in dict.fromkeys(held):
            signal.raise_signal(signum)
