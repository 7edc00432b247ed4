"""Devices: what would take the process down, or end a recording for one packet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext.extension import Extension

LEADER_RETRIES = 3


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


def _patient_leader(original: Callable) -> Callable:
    def __init__(self: Any, config: Any) -> None:  # noqa: N807
        from lerobot_ext.robots.patient_bus import PatientBus

        original(self, config)
        self.bus = PatientBus.like(self.bus, LEADER_RETRIES)

    return __init__


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
    Extension(
        "lerobot.teleoperators.so_leader.so_leader",
        "SOLeader.__init__",
        "Lets one lost packet while connecting end the recording: its bus is as patient as the follower's.",
        "self config",
        _patient_leader,
    ),
)
