"""`lerobot-ext repair ROOT`: mends what a crash left of a dataset, on a copy, and says what was kept and what was lost."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError

if TYPE_CHECKING:
    from lerobot_ext.recording.repair import Report

EPILOG = """\
  lerobot-ext repair outputs/press                 writes outputs/press_repaired
  lerobot-ext repair outputs/press --dry_run       only says what would be done
  lerobot-ext repair outputs/press --in_place      the repaired folder takes the place of the damaged one

The exit status is 0 if everything is kept or nothing is wrong, 1 if something is lost, 2 if it cannot be repaired.
"""
SHOWN = 20  # episodes of one kind that are listed one by one


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Options(
        "repair",
        description="Mends a dataset that a crash left behind, ours or of LeRobot's own recorder: tables without their "
        "ends, missing metadata, cut videos. The damaged folder is not changed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the repaired folder (default: ROOT_repaired)"
    )
    parser.add_argument(
        "--in_place",
        action="store_true",
        help="give the repaired folder the name ROOT; the damaged one becomes ROOT_before_repair",
    )
    parser.add_argument("--dry_run", action="store_true", help="write nothing, only say what would be done")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TEXT",
        help="text of a task that is lost (once for each)",
    )
    parser.add_argument(
        "--info", type=Path, metavar="FILE", help="meta/info.json of another recording with the same robot"
    )
    parser.add_argument(
        "--no_check", action="store_true", help="do not open the result with LeRobot at the end"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


def main(argv: list[str]) -> int:
    """Repair, print, and return 0 if nothing was lost."""
    args = arguments().parse_args(argv)
    if args.in_place and args.out:
        raise UserError("repair: --in_place and --out exclude one another; give one of the two.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder on this computer is meant, and nothing else

    from lerobot_ext.recording import repair

    # What LeRobot and its libraries say while they are asked about damaged files is not for the user.
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    options = repair.Options(
        out=args.out,
        in_place=args.in_place,
        dry_run=args.dry_run,
        check=not args.no_check,
        tasks=tuple(args.task),
        info=args.info,
    )
    report = repair.repair(args.root, options, _bar)
    print(json.dumps(report.as_dict(), indent=2) if args.json else "\n".join(lines(report)))
    return 0 if report.complete else 1


def _bar(items: Iterable, what: str) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, desc=what, leave=False, delay=0.5)


def lines(report: Report) -> list[str]:
    """The report as text."""
    count = len(report.episodes)
    if report.healthy:
        text = [
            f"'{report.root}' is healthy: {count} episodes, {report.frames('kept')} frames; nothing was changed."
        ]
        return text + [f"note: {note}" for note in report.notes]
    text = [f"fault: {fault}" for fault in report.faults]
    for status in ("kept", "rebuilt", "lost"):
        fates = [fate for fate in report.episodes if fate.status == status]
        shown = fates if status == "lost" or len(fates) <= SHOWN else fates[:3]
        for fate in shown:
            renamed = f" (now {fate.new_index})" if fate.new_index not in (None, fate.index) else ""
            frames = f"{fate.frames} frames" if fate.frames else "unknown length"
            reasons = f": {'; '.join(fate.reasons)}" if fate.reasons else ""
            text.append(f"episode {fate.index}{renamed}: {status}, {frames}{reasons}")
        if len(shown) < len(fates):
            text.append(f"… and {len(fates) - len(shown)} more episodes up to {fates[-1].index}: {status}")
    text += [f"note: {note}" for note in report.notes]
    kept = sum(fate.status != "lost" for fate in report.episodes)
    text.append(
        f"episodes: {kept} of {count} kept, frames: {report.frames('kept', 'rebuilt')} kept, "
        f"{report.frames('lost')} lost"
    )
    text += [f"check failed: {failure}" for failure in report.failures]
    if report.out is None:
        text.append("nothing can be kept, so nothing was written." if not kept else "nothing was written.")
        return text
    text.append(
        f"bytes: {report.bytes_after:,} in '{report.out}', of {report.bytes_before:,} in the damaged folder"
    )
    if report.checked and not report.failures:
        text.append("LeRobotDataset opens it and shows the first and last frame of every episode.")
    if report.before:
        text.append(f"the damaged folder is '{report.before}' now; delete it when you are content.")
    elif report.root != report.out:
        text.append(f"the damaged folder '{report.root}' is as it was.")
    return text
