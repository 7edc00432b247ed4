"""Mends a dataset that a crash left behind: reads, decides, writes a copy, checks it, and reports what became of it.

The damaged folder is never written to; the copy shares the videos' blocks with it where the file system can.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lerobot_ext.errors import UserError
from lerobot_ext.recording.repair.check import check
from lerobot_ext.recording.repair.files import size, take_over
from lerobot_ext.recording.repair.plan import LOST, Plan, decide
from lerobot_ext.recording.repair.read import Found, Track, read
from lerobot_ext.recording.repair.write import write
from lerobot_ext.recording.tables import LOOSE_CHUNK


@dataclass(frozen=True)
class Fate:
    """What became of one episode.

    Attributes:
        index: Its number in the damaged folder.
        new_index: Its number in the repaired one; None if it is lost.
        frames: How many it has, or had; 0 if nothing tells.
        status: "kept", "rebuilt" or "lost".
        reasons: Why it is lost, or what was made again.
    """

    index: int
    new_index: int | None
    frames: int
    status: str
    reasons: tuple[str, ...]


@dataclass
class Report:
    """What was found and done.

    Attributes:
        root: The damaged folder.
        out: The repaired one; None if nothing was written.
        before: Where the damaged folder is now, if the repaired one took its place.
        healthy: Whether there was nothing to do.
        episodes: What became of each.
        faults: What was wrong with the folder.
        notes: What else there is to know.
        bytes_before: Size of the damaged folder.
        bytes_after: Size of the repaired one, 0 if there is none.
        checked: Whether LeRobot opened the result.
        failures: What it said about it.
    """

    root: Path
    out: Path | None = None
    before: Path | None = None
    healthy: bool = False
    episodes: list[Fate] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    checked: bool = False
    failures: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is lost."""
        lost = any(fate.status == LOST for fate in self.episodes)
        return not lost and not self.failures and (self.healthy or bool(self.episodes))

    def frames(self, *statuses: str) -> int:
        """Frames of the episodes with one of `statuses`."""
        return sum(fate.frames for fate in self.episodes if fate.status in statuses)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self) | {"complete": self.complete}
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


@dataclass(frozen=True)
class Options:
    """How to repair.

    Attributes:
        out: The repaired folder; None for `<root>_repaired` beside the damaged one.
        in_place: The repaired folder takes the damaged one's place.
        dry_run: Only say what would be done.
        check: Open the result with LeRobot.
        tasks: Texts of tasks that are lost, in the order of their numbers.
        info: info.json of another recording of the same robot, for one that is lost.
    """

    out: Path | None = None
    in_place: bool = False
    dry_run: bool = False
    check: bool = True
    tasks: tuple[str, ...] = ()
    info: Path | None = None


def repair(root: Path, options: Options | None = None, track: Track = lambda items, _: items) -> Report:
    """Mend the dataset in `root`.

    Args:
        root: Its folder. Nobody must be recording to it.
        options: How.
        track: Wraps what takes long, to show how far it is.

    Returns:
        What became of it. Nothing was written if it is healthy, or nothing can be kept, or it is a dry run.

    Raises:
        UserError: It is no dataset, what is lost has to be given, or the result's folder exists.
        OSError: Reading or writing failed; what was written is removed.
    """
    options = options or Options()
    root = root.absolute()
    out = root if options.in_place else (options.out or root.with_name(f"{root.name}_repaired")).absolute()
    if not options.dry_run and not options.in_place and out.exists():
        raise UserError(f"'{out}' exists; remove it, or choose another folder with --out=DIR.")
    work = _work_folder(out.parent, root.name, options.dry_run)
    try:
        found, plan = _look(root, work, options, track)
        report = _report(found, plan, root)
        if report.healthy or not plan.kept or options.dry_run:
            return report
        result = work / "result"
        write(found, plan, result, track)
        if options.check:
            report.failures = check(result, work / "cache", track)
            report.checked = True
        report.bytes_after = size(result)
        if report.failures and options.in_place:
            out = _free_name(root, "repaired")
            report.notes.append("the check failed, so the damaged folder stayed in its place")
        elif options.in_place:
            report.before = _free_name(root, "before_repair")
            os.rename(root, report.before)
        os.rename(result, out)
        report.out = out
        return report
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _look(root: Path, work: Path, options: Options, track: Track) -> tuple[Found, Plan]:
    """Read the folder and decide; our own writer's unfinished business is brought to its end first, in a copy."""
    rebuilt = work / "rebuilt"
    rebuilt.mkdir()
    found = read(root, rebuilt, options.info, track)
    plan = decide(found, list(options.tasks))
    if not plan.lost or not _ours(found):
        return found, plan
    from lerobot_ext.recording.recover import recover

    copied = work / "copied"
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            take_over(path, copied / path.relative_to(root))
    lines = recover(copied)
    found_now = read(copied, rebuilt, options.info, track)
    plan_now = decide(found_now, list(options.tasks))
    if len(plan_now.lost) >= len(plan.lost):
        return found, plan
    plan_now.faults += [line.replace(f"{copied}", f"{root}") for line in lines]
    return found_now, plan_now


def _ours(found: Found) -> bool:
    """Whether our writer was at work here, and left every table readable."""
    loose = any(video.chunk >= LOOSE_CHUNK for videos in found.videos.values() for video in videos)
    readable = not (found.info_why or found.rows_why or any(file.why for file in found.data))
    return readable and (loose or (found.root / "meta" / "lerobot_ext").is_dir())


def _report(found: Found, plan: Plan, root: Path) -> Report:
    fates = [
        Fate(
            episode.index,
            None if episode.status == LOST else episode.new_index,
            episode.frames,
            episode.status,
            tuple(episode.reasons),
        )
        for episode in plan.episodes
    ]
    return Report(
        root,
        healthy=plan.healthy,
        episodes=fates,
        faults=plan.faults,
        notes=plan.notes,
        bytes_before=size(root),
    )


def _work_folder(parent: Path, name: str, anywhere: bool) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}-repair-", dir=parent))
    except OSError as error:
        if anywhere:
            return Path(tempfile.mkdtemp(prefix=f"{name}-repair-"))
        raise UserError(
            f"cannot write to '{parent}': {error.strerror}; choose a folder with --out=DIR."
        ) from error


def _free_name(root: Path, suffix: str) -> Path:
    """`<root>_<suffix>`, with a number behind it if that exists."""
    path, number = root.with_name(f"{root.name}_{suffix}"), 1
    while path.exists():
        number += 1
        path = root.with_name(f"{root.name}_{suffix}_{number}")
    return path
