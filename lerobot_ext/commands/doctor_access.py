"""May this user open a device, and if not, which line mends it? Nothing is changed here."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass

UDEV_ADVICE = "install the rules that `lerobot-ext doctor --udev` prints"


@dataclass(frozen=True)
class Obstacle:
    """A device node that this user may not open.

    Attributes:
        path: The node.
        owners: `crw-rw---- root:dialout`.
        group: The group that may open it; empty if none may.
    """

    path: str
    owners: str
    group: str


def obstacles(paths: Iterable[str]) -> list[Obstacle]:
    """Those of `paths` that exist and may not be read and written."""
    found = []
    for path in dict.fromkeys(paths):
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            status = os.stat(path)
            group = _name(grp.getgrgid, status.st_gid)
            owners = f"{stat.filemode(status.st_mode)} {_name(pwd.getpwuid, status.st_uid)}:{group}"
            opens = status.st_mode & 0o060 == 0o060 and group != "root"
            found.append(Obstacle(path, owners, group if opens else ""))
    return found


def remedy(found: Iterable[Obstacle]) -> str:
    """What to do about all of them, in one sentence."""
    found = list(found)
    groups = sorted({each.group for each in found if each.group})
    waiting = [group for group in groups if _is_member(group)]
    missing = [group for group in groups if group not in waiting]
    steps = []
    if any(not each.group for each in found):
        steps.append(UDEV_ADVICE)
    if missing:
        steps.append(f"run `sudo usermod -aG {','.join(missing)} $USER`, then log out and in again")
    elif waiting:
        steps.append(f"log out and in again: you were added to {', '.join(waiting)} after you logged in")
    return ", and ".join(steps)


def _is_member(group: str) -> bool:
    """Whether the user has been put into `group`, which counts from the next login on."""
    try:
        return _name(pwd.getpwuid, os.getuid()) in grp.getgrnam(group).gr_mem
    except KeyError:
        return False


def _name(look_up: object, number: int) -> str:
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)
