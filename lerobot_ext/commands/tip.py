"""`lerobot-ext tip ROOT`: lists the language tips of recorded episodes, or changes them in place."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording import tips
from lerobot_ext.recording.set_tips import info_of, set_tips

EPILOG = """\
  lerobot-ext tip outputs/press                                     lists them
  lerobot-ext tip outputs/press --episodes=3 --set="press slowly"
  lerobot-ext tip outputs/press --episodes=0-9,12 --set="press until it clicks"
  lerobot-ext tip outputs/press --all --set=""                      none; adds the column if there is none

The tables of frames are written anew beside their places and then renamed, so the dataset opens whenever this is cut
off; run it again then. Videos are not touched.
"""


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Options(
        "tip",
        description="Lists the language tips of recorded episodes (how the task is to be done), or changes them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    parser.add_argument(
        "--episodes", "--episode", metavar="LIST", help="which ones: numbers and ranges, 0-9,12 for example"
    )
    parser.add_argument("--all", action="store_true", help="all episodes")
    parser.add_argument("--set", metavar="TEXT", help="their new tip; empty for none")
    return parser


def main(argv: list[str]) -> None:
    """List the tips, or change some and list them."""
    args = arguments().parse_args(argv)
    if (args.set is not None) != (args.all or args.episodes is not None) or (args.all and args.episodes):
        raise UserError(
            "tip: a change needs --set=TEXT and either --all or --episodes=LIST; without all of them the tips are "
            "listed."
        )
    info = info_of(args.root)
    if args.set is not None:
        from lerobot_ext.recording.recover import (
            recover,
        )  # LeRobot takes seconds to import, which a list can do without

        for line in recover(args.root):
            print(line)
        info = info_of(args.root)
        chosen = range(info["total_episodes"]) if args.all else numbers(args.episodes)
        set_tips(args.root, dict.fromkeys(chosen, tips.clean(args.set)))
        info = info_of(args.root)
    print("\n".join(lines(info, tips.read(args.root))))


def numbers(text: str) -> list[int]:
    """The episodes of `0-9,12`.

    Raises:
        UserError: It is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(
                f"tip: --episodes={text}: '{part}' is no episode; expected numbers and ranges, such as 0-9,12."
            )
        found += range(int(first), int(last or first) + 1)
    return found


def lines(info: dict, found: dict[int, str]) -> list[str]:
    """The tips as text, episodes in a row with the same one in one line."""
    total = info["total_episodes"]
    if TIP not in info["features"]:
        return [f"{total} episodes without language tips: the dataset has no column '{TIP}'."]
    text = []
    for tip, run in itertools.groupby(range(total), lambda index: found.get(index, "")):
        run = list(run)
        which = f"episode {run[0]}" if len(run) == 1 else f"episodes {run[0]} to {run[-1]}"
        text.append(f"{which}: {tip or 'no tip'}")
    return text or ["no episodes yet."]
