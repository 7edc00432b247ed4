"""`lerobot-ext record`: LeRobot's own record loop, with the mistakes caught before a device is touched.

The YAML is the one that stock `lerobot-record` takes. A YAML with a `policy:` section is an evaluation, as it was
in older LeRobot, and is handed to `lerobot-ext evaluate`.
"""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

from lerobot_ext.commands import config as config_files
from lerobot_ext.commands import session, tip_option
from lerobot_ext.errors import UserError
from lerobot_ext.recording.tips import tips


def main(argv: list[str]) -> int | None:
    """Record as the YAML and the options in `argv` say."""
    words, extras = session.take_extras(argv)
    words, tip = tip_option.take_option(words)
    data, source = merged_config(words)
    if "policy" in data:
        from lerobot_ext.commands import evaluate

        return evaluate.main(argv)

    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    from lerobot.scripts.lerobot_record import RecordConfig, record

    plan = tip_option.take(data, tip, source)
    config_files.check_keys(RecordConfig, data, source)
    root = check_root(data)
    stop_on_sigterm()
    config_files.shorten_torchcodec()
    cfg = parse(RecordConfig, data)
    with tips.session(plan):
        session.prepare(cfg.robot, cfg.dataset, root, bool(cfg.resume), extras)
        with session.session(root, extras, again=again("record", argv)):
            record(cfg)
    return 0


def parse(config_class: type, data: dict[str, Any]) -> Any:
    """The config that LeRobot's own parser makes of `data`; it reads files and `sys.argv`.

    As options of its own it knows nothing below a name that is free, such as robot.cameras.side.
    """
    from lerobot.configs import parser

    def identity(cfg: Any) -> Any:
        return cfg

    identity.__annotations__["cfg"] = config_class
    with config_files.as_file(data) as path, config_files.command_line("record", [f"--config_path={path}"]):
        return parser.wrap()(identity)()


def again(command: str, argv: list[str]) -> str:
    """The line that goes on with a recording that was begun with `argv`."""
    words = [word for word in argv if word.partition("=")[0] != "--resume"]
    return shlex.join(["lerobot-ext", command, *words, "--resume=true"])


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
            f"dataset folder {root} exists already ({session.episode_count(root)} episodes); choose another "
            "dataset.root, or add --resume=true to go on with it."
        )
    return root


def stop_on_sigterm() -> None:
    """Let SIGTERM end the program as Ctrl-C does, through every `finally`."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
