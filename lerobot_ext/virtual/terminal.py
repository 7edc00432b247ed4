"""A pseudo-terminal under a stable name: the lab's end of what a driver opens as a serial port.

Bytes only; who speaks which protocol over it is elsewhere. A reader that is slow or absent never blocks the lab:
what does not fit is dropped, as on a real bus. A terminal can be unplugged and plugged in again under another name.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import termios
import tty
from pathlib import Path


class Terminal:
    """One pseudo-terminal in raw mode without echo, and the links to it.

    Args:
        link: Where the link is made; an older one is replaced.
        keep_open: Hold the far end open too, so that reading never fails when a driver leaves. Without it
            `listening` tells whether a driver has the port open.
        by_id: A link that always leads to the newest name, as udev makes them in `/dev/serial/by-id`.
    """

    def __init__(self, link: Path, *, keep_open: bool = True, by_id: Path | None = None) -> None:
        self.link = link
        self.fd = self._far = -1
        self.name = ""
        self._keep_open, self._by_id = keep_open, by_id
        self._plugs = 0
        self._open(link)

    def _open(self, newest: Path) -> None:
        self.fd, self._far = pty.openpty()
        tty.setraw(self._far)
        os.set_blocking(self.fd, False)
        self._poller = select.poll()
        self._poller.register(self.fd, select.POLLIN)
        self.name = os.ttyname(self._far)
        if not self._keep_open:
            os.close(self._far)
            self._far = -1
        for link in {self.link, newest}:
            _make_link(link, self.name)
        if self._by_id is not None:
            self._by_id.parent.mkdir(parents=True, exist_ok=True)
            _make_link(self._by_id, os.path.relpath(newest, self._by_id.parent))

    def fileno(self) -> int:
        """For selectors; -1 while unplugged."""
        return self.fd

    @property
    def plugged(self) -> bool:
        """Whether the port is there."""
        return self.fd >= 0

    def unplug(self) -> None:
        """Take the port away from whoever has it open: both ends close, and its names go; again does nothing."""
        if not self.plugged:
            return
        os.close(self.fd)
        if self._far >= 0:
            os.close(self._far)
        self.fd = self._far = -1
        for link in (self.link, self._newest):
            if link.is_symlink() and os.readlink(link) == self.name:
                link.unlink()
        if self._by_id is not None:
            self._by_id.unlink(missing_ok=True)

    def plug(self) -> None:
        """Bring the port back as a new one, under its first name with the next number appended, and its first name.

        The `by_id` link leads to the name with the number. While plugged in this does nothing.
        """
        if not self.plugged:
            self._plugs += 1
            self._open(self._newest)

    @property
    def _newest(self) -> Path:
        return self.link.with_name(f"{self.link.name}{self._plugs or ''}")

    @property
    def listening(self) -> bool:
        """Whether a driver has the port open (always True with `keep_open`, never while unplugged)."""
        return self.plugged and not any(event & select.POLLHUP for _, event in self._poller.poll(0))

    def read(self) -> bytes:
        """What has arrived, possibly nothing."""
        try:
            return os.read(self.fd, 4096)
        except OSError:
            return b""

    def write(self, data: bytes) -> bool:
        """Send `data`; False if there was no room for all of it, in which case part of it may be lost."""
        try:
            return os.write(self.fd, data) == len(data)
        except OSError:
            return False

    def forget(self) -> None:
        """Throw away what was sent and not yet read."""
        far = os.open(self.name, os.O_RDWR | os.O_NOCTTY)
        try:
            termios.tcflush(far, termios.TCIFLUSH)
        finally:
            os.close(far)

    def close(self) -> None:
        """Close both ends and remove the links that are still ours; again does nothing."""
        self.unplug()
        if self._by_id is not None:
            with contextlib.suppress(OSError):  # other terminals' links may still lie there
                self._by_id.parent.rmdir()
                self._by_id.parent.parent.rmdir()


def _make_link(link: Path, target: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)
