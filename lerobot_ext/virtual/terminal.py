"""A pseudo-terminal under a stable name: the lab's end of what a driver opens as a serial port.

Bytes only; who speaks which protocol over it is elsewhere. A reader that is slow or absent never blocks the lab:
what does not fit is dropped, as on a real bus.
"""

from __future__ import annotations

import os
import pty
import select
import termios
import tty
from pathlib import Path


class Terminal:
    """One pseudo-terminal in raw mode without echo, and the link to it.

    Args:
        link: Where the link is made; an older one is replaced.
        keep_open: Hold the far end open too, so that reading never fails when a driver leaves. Without it
            `listening` tells whether a driver has the port open.
    """

    def __init__(self, link: Path, *, keep_open: bool = True) -> None:
        self.link = link
        self.fd, self._far = pty.openpty()
        tty.setraw(self._far)
        os.set_blocking(self.fd, False)
        self.name = os.ttyname(self._far)
        if not keep_open:
            os.close(self._far)
            self._far = -1
        link.unlink(missing_ok=True)
        link.symlink_to(self.name)

    def fileno(self) -> int:
        """For selectors."""
        return self.fd

    @property
    def listening(self) -> bool:
        """Whether a driver has the port open (always True with `keep_open`)."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in poller.poll(0))

    def read(self) -> bytes:
        """What has arrived, possibly nothing."""
        try:
            return os.read(self.fd, 4096)
        except (BlockingIOError, OSError):
            return b""

    def write(self, data: bytes) -> bool:
        """Send `data`; False if there was no room for all of it, in which case part of it may be lost."""
        try:
            return os.write(self.fd, data) == len(data)
        except (BlockingIOError, OSError):
            return False

    def forget(self) -> None:
        """Throw away what was sent and not yet read."""
        far = os.open(self.name, os.O_RDWR | os.O_NOCTTY)
        try:
            termios.tcflush(far, termios.TCIFLUSH)
        finally:
            os.close(far)

    def close(self) -> None:
        """Close both ends and remove the link, if it is still ours."""
        os.close(self.fd)
        if self._far >= 0:
            os.close(self._far)
        if self.link.is_symlink() and os.readlink(self.link) == self.name:
            self.link.unlink()
