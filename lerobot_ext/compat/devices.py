"""Devices: what would take the process down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext.extension import Extension


def _stop_read_thread(original: Callable) -> Callable:
    def _stop_read_thread(self: Any) -> None:
        if self.stop_event is not None and self.thread is not None:
            self.stop_event.set()
            self.thread.join(self.timeout_ms / 1e3 + 1)
        original(self)

    return _stop_read_thread


def _cleanup(original: Callable) -> Callable:
    def _cleanup(self: Any) -> None:
        if self.thread is not None:
            self._stop_read_thread()
        original(self)

    return _cleanup


EXTENSIONS = (
    Extension(
        "lerobot.cameras.zmq.camera_zmq",
        "ZMQCamera._stop_read_thread",
        "Gives up on a thread that waits for a frame longer than two seconds: the thread is waited for.",
        "self",
        _stop_read_thread,
    ),
    Extension(
        "lerobot.cameras.zmq.camera_zmq",
        "ZMQCamera._cleanup",
        "Closes the socket under the thread that reads it when connecting fails, which aborts the process.",
        "self",
        _cleanup,
    ),
)
