"""The lab's directory: who holds it, what lies in it, and that nothing stays behind.

One lab a directory, by `flock` on `lock`. Files of a lab that was killed are recognised by their names and replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

from lerobot_ext.errors import UserError
from lerobot_ext.serial_ports import BY_ID

SOCKETS = ("side", "control")
ONE_ARM = ("follower", "leader", "skin", "ft300")
TWO_ARMS = ("follower_right", "follower_left", "leader_right", "leader_left", "skin_right", "skin_left")
LINKS = (*ONE_ARM, *TWO_ARMS)  # a by-id link has its device's place in here as the end of its serial number
CALIBRATIONS = tuple(f"{name}.json" for name in LINKS if name.startswith(("follower", "leader")))
LOG = "lab.log"
MAX_SOCKET_PATH = 107  # bytes: sockaddr_un holds 108 with the terminating zero


class LabDirectory:
    """The directory of one running lab, from construction to `close`.

    Raises:
        UserError: If a lab runs there already, or the directory cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        longest = max(len(os.fsencode(self.path / name)) for name in SOCKETS)
        if longest > MAX_SOCKET_PATH:
            raise UserError(
                f"the lab's directory {self.path} is too long: its sockets would have paths of {longest} bytes, "
                f"and Linux allows {MAX_SOCKET_PATH}; choose a shorter one with --dir."
            )
        made = self._make()
        try:
            self._lock = self._take_lock()
        except UserError:
            if made:  # nobody else can have put anything there
                self._remove_if_empty(self.path)
            raise
        # a lab that was killed made the directory: then it is ours to remove as well
        self._made = made or self._said_made()
        self._remove_files()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps({"pid": os.getpid(), "made_directory": self._made}).encode(), 0)
        self.calibration.mkdir(exist_ok=True)

    @property
    def calibration(self) -> Path:
        """Where the arms' calibration files lie."""
        return self.path / "calibration"

    def by_id(self, device: str) -> Path:
        """A link to the port of `device` that is named as udev does it, with a serial number of this directory."""
        number = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:8].upper()
        return self.path / BY_ID / f"usb-Virtual_{device}_{number}{LINKS.index(device)}-if00"

    def close(self) -> None:
        """Remove what the lab put here, and the directory if the lab made it and nobody else uses it."""
        self._remove_files()
        (self.path / LOG).unlink(missing_ok=True)
        (self.path / "lock").unlink(missing_ok=True)
        if self._made:
            self._remove_if_empty(self.path)
        os.close(self._lock)

    def _make(self) -> bool:
        try:
            self.path.mkdir(mode=0o700, parents=True)
            return True
        except FileExistsError:
            if not self.path.is_dir():
                raise UserError(
                    f"{self.path} is a file; the lab needs a directory there or another --dir."
                ) from None
            return False
        except OSError as error:
            raise UserError(f"the lab's directory {self.path} cannot be made: {error.strerror}.") from error

    def _take_lock(self) -> int:
        path = self.path / "lock"
        while True:
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise UserError(
                    f"the lab's directory {self.path} cannot be used: {error.strerror}."
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = read_lock(lock)
                os.close(lock)
                raise UserError(
                    f"a lab runs already in {self.path} (pid {said.get('pid', 'unknown')}); "
                    f"stop it with `lerobot-ext lab --stop --dir={self.path}` or choose another --dir."
                ) from None
            if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
                return lock
            os.close(lock)  # the lab that held it has just removed it: this one locks nobody out

    def _said_made(self) -> bool:
        return bool(read_lock(self._lock).get("made_directory", False))

    def _remove_files(self) -> None:
        for name in SOCKETS:
            (self.path / name).unlink(missing_ok=True)
        for name in LINKS:
            self.by_id(name).unlink(missing_ok=True)
            (self.path / name).unlink(missing_ok=True)
            for path in self.path.glob(f"{name}[0-9]*"):  # where it came back after it was unplugged
                if path.is_symlink():
                    path.unlink()
        for folder in (self.path / BY_ID, (self.path / BY_ID).parent):
            self._remove_if_empty(folder)
        for name in CALIBRATIONS:
            (self.calibration / name).unlink(missing_ok=True)
        self._remove_if_empty(self.calibration)

    @staticmethod
    def _remove_if_empty(path: Path) -> None:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def read_lock(lock: int) -> dict:
    """What the lab that held the lock file wrote into it; empty if that is not readable."""
    try:
        said = json.loads(os.pread(lock, 4096, 0))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
