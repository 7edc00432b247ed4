"""`lerobot-ext record`: LeRobot's own record loop, with the mistakes caught before a device is touched.

The YAML is the one that stock `lerobot-record` takes. A YAML with a `policy:` section is an evaluation, as it was
in older LeRobot, and is handed to `lerobot-ext evaluate`.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from lerobot_ext.commands import config as config_files
from lerobot_ext.errors import UserError

logger = logging.getLogger(__name__)

HELP = """usage: lerobot-ext record --config_path=configs/collect.yaml [--key=value ...]

Records a dataset by teleoperation with LeRobot's record loop: colour, depth, force, joints and actions.
Force sensors are tared at the start of each episode. Keys: right arrow ends an episode or the reset time early,
left arrow records the episode again, Esc stops. Ctrl-C stops too; saved episodes stay readable.

  --config_path=FILE      YAML as stock lerobot-record takes it (configs/collect.yaml is an example to copy)
  --dataset.root=DIR      where the dataset goes; must not exist, unless --resume=true goes on with it
  --dataset.num_episodes  --dataset.episode_time_s  --dataset.reset_time_s  --dataset.single_task
  --robot.port=PORT  ...  any key of the YAML can be given here too

A YAML with a `policy:` section runs that policy: see lerobot-ext evaluate --help.
"""


def main(argv: list[str]) -> int | None:
    """Record as the YAML and the options in `argv` say."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    data, source = merged_config(argv)
    if "policy" in data:
        from lerobot_ext.commands import evaluate

        return evaluate.main(argv)

    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    from lerobot.scripts.lerobot_record import RecordConfig, record

    config_files.check_keys(RecordConfig, data, source)
    root = check_root(data)
    stop_on_sigterm()
    shorten_torchcodec()
    sys.argv = ["lerobot-ext record", *argv]
    existed = root is not None and root.exists()
    try:
        record()
    finally:
        if root is not None and not existed:
            discard_if_empty(root)
    return 0


def merged_config(argv: list[str]) -> tuple[dict[str, Any], str]:
    """The YAML named in `argv` with its options laid over it, and what to call it in messages."""
    path = config_files.config_path_of(argv)
    data = config_files.load_yaml(path) if path else {}
    return config_files.merge_options(data, argv), path or "the command line"


def check_root(data: dict[str, Any]) -> Path | None:
    """The dataset's folder if the config names one, checked against `resume`.

    Raises:
        UserError: If the folder exists and nothing says to resume, or the other way round.
    """
    dataset = data.get("dataset") or {}
    if not dataset.get("root"):
        return None
    root = Path(dataset["root"])
    if data.get("resume"):
        if not (root / "meta" / "info.json").is_file():
            raise UserError(f"resume is true, but {root} holds no dataset to go on with; leave out --resume.")
    elif root.exists():
        raise UserError(
            f"dataset folder {root} exists already ({episode_count(root)} episodes); choose another "
            "dataset.root, or add --resume=true to go on with it."
        )
    return root


def episode_count(root: Path) -> int:
    """Number of episodes that the dataset's info file states; 0 if there is none."""
    try:
        return int(json.loads((root / "meta" / "info.json").read_text())["total_episodes"])
    except (OSError, ValueError, KeyError):
        return 0


def discard_if_empty(root: Path) -> None:
    """Remove the folder of a recording that ended before its first episode was saved.

    Such a folder holds nothing, cannot be opened by LeRobot, and would be in the way of the next try.
    """
    if root.exists() and episode_count(root) == 0:
        shutil.rmtree(root)
        logger.info("no episode was saved; removed the empty dataset folder %s", root)


def shorten_torchcodec() -> None:
    """Make one line of LeRobot's 90 about a torchcodec that finds no FFmpeg; PyAV, which it falls back to, is fine."""

    def shorten(record: logging.LogRecord) -> bool:
        if "torchcodec" in record.msg:
            record.msg, record.levelno, record.levelname = "video: PyAV (torchcodec is unusable)", 20, "INFO"
        return True

    logging.getLogger("lerobot.utils.import_utils").addFilter(shorten)


def stop_on_sigterm() -> None:
    """Let SIGTERM end the program as Ctrl-C does, through every `finally`."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
