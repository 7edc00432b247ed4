"""`lerobot-ext visualize`: an episode as a page, a picture and a Rerun recording."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lerobot_ext.commands.options import Options
from lerobot_ext.errors import UserError


def arguments() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Options(
        "visualize",
        description="Shows one episode of a dataset on this computer. Writes episode_NNNNNN.html (a page that needs "
        "only a browser: a player, key frames of every camera, depth with a metric colour bar, force as curves and, of "
        "tactile pads, as arrows and discs, the age of each device's data and what was dropped, joint curves, and, "
        "where the episode was run by --inference.type=async, how its chunks became motion), the same as "
        "episode_NNNNNN.png (pads at the peak of force), and episode_NNNNNN.rrd for the Rerun viewer. The dataset may "
        "be one of stock LeRobot, and one that is being recorded: episodes that are saved are shown.",
        epilog="example: lerobot-ext visualize --root=outputs/press --episode_index=0 --spawn",
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--repo_id", help="name of the dataset (default: that of the folder)")
    parser.add_argument("--episode_index", type=int, default=0, help="which episode (default: %(default)s)")
    parser.add_argument(
        "--telemetry",
        type=Path,
        metavar="FILE",
        help="telemetry of the episode (default: ROOT/telemetry/episode_NNNNNN.jsonl, if it is there)",
    )
    parser.add_argument(
        "--output", type=Path, help="where to write (default: ROOT_pages, beside the dataset)"
    )
    parser.add_argument(
        "--force",
        choices=("both", "norms", "channels"),
        default="both",
        help="force curves: each channel, the norm of a sensor's change since the episode's start, or both; the page "
        "has buttons for it (default: %(default)s)",
    )
    parser.add_argument(
        "--depth_range",
        default="auto",
        metavar="auto|recorded|NEAR,FAR",
        help="ends of the depth's colour bar: the pictures' 1st and 99th percentile, the range that the encoder was "
        "given, or two distances in metres (default: %(default)s)",
    )
    parser.add_argument(
        "--film",
        type=int,
        default=40,
        metavar="N",
        help="pictures of each camera in the page's player, evenly spread; each adds some 4 kB to the page; 0 leaves "
        "them out (default: %(default)s)",
    )
    parser.add_argument("--spawn", action="store_true", help="open the Rerun viewer on the recording")
    parser.add_argument("--no-rrd", "--no_rrd", action="store_true", help="leave the Rerun recording out")
    return parser


def main(argv: list[str]) -> int | None:
    """Write the files and say where they are."""
    args = arguments().parse_args(argv)
    if args.spawn and args.no_rrd:
        raise UserError("--spawn shows the Rerun recording, which --no-rrd leaves out; give one of the two.")
    if args.film < 0:
        raise UserError(f"--film is {args.film}; expected a number of pictures, 0 for none.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder on this computer is meant, and nothing else

    from tqdm import tqdm

    from lerobot_ext.recording.visualize.depth import parse_range
    from lerobot_ext.recording.visualize.episode import open_dataset
    from lerobot_ext.recording.visualize.page import render_page
    from lerobot_ext.recording.visualize.pictures import EpisodePictures
    from lerobot_ext.recording.visualize.pictures import Options as Choice
    from lerobot_ext.recording.visualize.png import render_png
    from lerobot_ext.recording.visualize.strip import ABSENT
    from lerobot_ext.recording.visualize.telemetry import load_telemetry

    def progress(what: str) -> Callable[[Iterable[int]], Iterable[int]]:
        return lambda frames: tqdm(frames, desc=what, unit="frame", leave=False)

    choice = Choice(force=args.force, depth_range=parse_range(args.depth_range), film=args.film)
    telemetry = load_telemetry(args.telemetry) if args.telemetry else None
    dataset = open_dataset(args.root, args.repo_id)
    root = args.root.resolve()
    output = args.output or root.with_name(f"{root.name}_pages")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to '{output}': {error.strerror}; choose a folder with --output=DIR."
        ) from error
    pictures = EpisodePictures(dataset, args.episode_index, telemetry, choice, progress("pictures"))
    if pictures.report is None:
        print(ABSENT)
    stem = output / f"episode_{args.episode_index:06d}"
    stem.with_suffix(".html").write_text(render_page(pictures), encoding="utf-8")
    print(f"page:    {stem}.html")
    render_png(pictures, stem.with_suffix(".png"))
    print(f"picture: {stem}.png")
    if not args.no_rrd:
        from lerobot_ext.recording.visualize.rerun import spawn_viewer, write_rrd

        rrd = stem.with_suffix(".rrd")
        write_rrd(pictures, rrd, progress("rerun"))
        print(f"rerun:   {rrd}")
        if args.spawn:
            spawn_viewer(rrd)
    return 0
