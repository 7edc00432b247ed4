"""Waiting inside an observation: for a device that has failed, for a port that comes back; Ctrl-C ends it at once.

LeRobot's rollout turns Ctrl-C into a note that its loop reads between two observations, so that a long wait inside
one would not hear it. What is waited for is known elsewhere.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Self

from lerobot_ext.robots.devices import STOP, Device, DeviceError

logger = logging.getLogger(__name__)

POLL_S = 0.02

WAITS = "%s. The arm holds and no frame is made until it is back, for at most %g s (on_error: skip_frame)."
GAVE_UP = "it has not come back within {limit_s:g} s (skip_limit_s): {error}"
BACK = "%s is back after %.1f s."


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in this block, after whoever handles it usually has heard of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if callable(before):
            before(signum, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def patiently[Observed](observe: Callable[[], Observed], limit_s: float) -> Observed:
    """What `observe` returns, once no device fails any more that may be waited for.

    Args:
        observe: Makes one observation, anew each time.
        limit_s: How long a device may keep it waiting.

    Raises:
        DeviceError: A device's policy is to stop, or it has been waited for long enough.
        KeyboardInterrupt: On Ctrl-C while something is waited for.
    """
    with Patience(limit_s) as patience:
        while True:
            try:
                return observe()
            except DeviceError as failure:
                patience.wait(failure)


class Patience:
    """The waits of one observation; a context manager that ends them.

    Args:
        limit_s: How long a device may keep the observation waiting.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: dict[str, tuple[Device, float]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stack.close()
        if kind is None:
            for device, since_s in self._since_s.values():
                logger.info(BACK, device.label, time.monotonic() - since_s)

    def wait(self, failure: DeviceError) -> None:
        """Wait a moment before the device is read again, if its policy says so.

        Raises:
            DeviceError: Its policy is to stop, or it has been waited for long enough.
            KeyboardInterrupt: On Ctrl-C.
        """
        device = failure.device
        if device.on_error == STOP:
            raise failure
        now_s = time.monotonic()
        if not self._since_s:
            self._stack.enter_context(interruptible())
        if device.name not in self._since_s:
            self._since_s[device.name] = device, now_s
            device.skipped += 1
            logger.warning(WAITS, failure, self._limit_s)
        elif now_s - self._since_s[device.name][1] > self._limit_s:
            text = str(failure).removeprefix(f"{device.label}: ")
            raise DeviceError(device, ConnectionError(GAVE_UP.format(limit_s=self._limit_s, error=text)))
        device.revive()
        time.sleep(POLL_S)
