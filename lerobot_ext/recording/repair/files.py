"""Takes files over into a repaired copy: shared with the original where nobody writes to them, else copied.

Also the small files that are named or counted by episode, which follow the episodes' new numbers.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from pathlib import Path

from lerobot_ext.recording.files import TEMP_SUFFIX

FICLONE = 0x40049409  # linux/fs.h: share the other file's blocks until one of the two is written
SHARED = (".mp4", ".bag", ".rrd")  # written once and never again
REBUILT = (
    "data",
    "videos",
    "images",
    "meta/episodes",
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
)
TEMP_FOLDER = re.compile(r"tmp[a-z0-9_]{8}")  # as Python's tempfile names what LeRobot encodes into
NUMBERED = re.compile(r"^(episode_)(\d{6})(\..+)$")


def take_over(source: Path, target: Path) -> None:
    """Make `target` the same as `source` without using space, if the file system can; else copy it.

    Raises:
        OSError: Reading or writing failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
        shutil.copystat(source, target)
        return
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
    if source.suffix in SHARED:
        target.unlink()
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def copy_rest(root: Path, out: Path, numbers: dict[int, int]) -> None:
    """Take over everything that is not made again and not left over from the recording.

    Args:
        root: The damaged folder.
        out: The repaired one.
        numbers: New number of each episode that is kept, by its old one.
    """
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        skipped = (
            name.startswith(".cache/")
            or name.endswith(TEMP_SUFFIX)
            or TEMP_FOLDER.fullmatch(name.partition("/")[0])
            or any(name == part or name.startswith(f"{part}/") for part in REBUILT)
        )
        if skipped or not path.is_file() or path.is_symlink():
            continue
        target = out / name
        found = NUMBERED.match(path.name)
        if found:
            if int(found[2]) not in numbers:
                continue
            target = target.with_name(f"{found[1]}{numbers[int(found[2])]:06d}{found[3]}")
        if name == "meta/lerobot_ext/episodes.jsonl":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renumber_lines(path.read_text(encoding="utf-8"), numbers), encoding="utf-8")
        else:
            take_over(path, target)


def renumber_lines(text: str, numbers: dict[int, int]) -> str:
    """JSON lines with a field "episode": those of episodes that are kept, with their new numbers.

    A line that was cut is left out.
    """
    lines = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            number = numbers.get(entry["episode"])
        except (ValueError, KeyError, TypeError):
            continue
        if number is not None:
            lines.append(json.dumps(entry | {"episode": number}, ensure_ascii=False) + "\n")
    return "".join(lines)


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
