"""What `evaluate` does differently with a replay for a robot: defaults from the recording, and a report at the end.

The comparison is `rollout.open_loop`'s, the page `recording.visualize.open_loop`'s.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot_ext.commands import config as config_files
from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording.tips import TipPlan
from lerobot_ext.robots.config_replay import ReplayRobotConfig

REPLAY = "replay"
OUTPUT = Path("outputs/open_loop")


@dataclass
class OpenLoopConfig:
    """The comparison of predicted with recorded actions, with `robot.type: replay`.

    Attributes:
        every: Ask for a chunk at every so many-th frame, one after the other, as fast as it goes; None: the control loop
            runs as with a robot, and the chunks that it asks for are compared.
        output: Folder of the report; beside dataset.root if None, or outputs/open_loop if nothing is recorded.
    """

    every: int | None = None
    output: str | None = None


def is_replay(data: dict[str, Any]) -> bool:
    """Whether the config's robot is a replay.

    Raises:
        UserError: It is not, but a comparison is asked for.
    """
    kind = (data.get("robot") or {}).get("type")
    if kind != REPLAY and data.get("open_loop"):
        raise UserError(
            f"open_loop compares with what was recorded, but robot.type is {kind}; set robot.type: {REPLAY}."
        )
    return kind == REPLAY


def with_defaults(data: dict[str, Any], plan: TipPlan | None) -> tuple[dict[str, Any], TipPlan | None]:
    """The config with what the recording knows: rate, task and tip; nothing is recorded unless `dataset` says so.

    Args:
        data: The merged config, its keys checked.
        plan: The tips that were asked for.

    Raises:
        UserError: There is no such recording, or something does not go with a replay.
    """
    from lerobot_ext.robots.recorded import check_episodes, metadata

    robot = {key: value for key, value in data["robot"].items() if key != "type"}
    config_files.check_types(ReplayRobotConfig, robot, "robot")
    if (data.get("open_loop") or {}).get("every") is not None:
        data = _one_after_the_other(data, robot)
    config = ReplayRobotConfig(**{key: value for key, value in data["robot"].items() if key != "type"})
    meta = metadata(config.root, config.repo_id)
    check_episodes(meta, config)
    data = {"return_to_initial_position": False} | data
    shown_hz = meta.fps / config.stride * (config.speed or 1.0)
    task, tip = _told(meta, config, ask_tip=plan is None)
    if data.get("dataset"):
        data["dataset"] = {"fps": round(shown_hz)} | data["dataset"]
        if not data.get("task"):
            data["dataset"].setdefault("single_task", _one(task, "dataset.single_task"))
        data.setdefault("fps", data["dataset"]["fps"])
    else:
        data = {"strategy": {"type": "base"}, "fps": shown_hz} | data
        if not data.get("task"):
            data["task"] = _one(task, "task")
    if plan is None and any(tip):
        plan = TipPlan.of(_one(tip, "dataset.language_tip"))
    return data, plan


def _one_after_the_other(data: dict[str, Any], robot: dict[str, Any]) -> dict[str, Any]:
    """The config for `open_loop.every`."""
    every = data["open_loop"]["every"]
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise UserError(f"open_loop.every is {every}; expected a number of frames from 1 up, or null.")
    kind = (data.get("inference") or {}).get("type", "async")
    for wrong, sentence in (
        (robot.get("loop"), "robot.loop is true: it would never end; leave robot.loop out"),
        (
            data.get("dataset"),
            "there is a dataset: nothing is executed that could be recorded; leave dataset out",
        ),
        (
            kind != "async",
            f"inference.type is {kind}: chunks are seen with async only; leave inference.type out",
        ),
    ):
        if wrong:
            raise UserError(f"open_loop.every is {every}, but {sentence}, or open_loop.every.")
    return data | {"robot": data["robot"] | {"speed": 0}}


def _told(meta: Any, config: ReplayRobotConfig, ask_tip: bool) -> tuple[list[str], list[str]]:
    """Tasks and tips of the episodes, each once."""
    from lerobot_ext.robots.recorded import Recording

    if ask_tip and TIP in meta.features:
        recording = Recording(meta, config.root, config.repo_id, config.episodes)
        told = [recording.told(episode) for episode in config.episodes]
        tasks, tips = zip(*told, strict=True)
    else:
        tasks = [task for episode in config.episodes for task in meta.episodes[episode]["tasks"]]
        tips = [""]
    return list(dict.fromkeys(tasks)), list(dict.fromkeys(tips))


def _one(texts: list[str], option: str) -> str:
    if len(texts) > 1:
        listed = ", ".join(f"'{text}'" for text in texts)
        raise UserError(
            f"the episodes were recorded with different texts ({listed}), and a run has one: give --{option}=TEXT, or "
            "evaluate the episodes one at a time."
        )
    return texts[0]


def run(cfg: Any, rollout: Callable[[Any], None], root: Path | None) -> None:
    """Run, and report what was predicted and sent against what was recorded.

    Args:
        cfg: `EvaluateConfig` with a replay for a robot.
        rollout: LeRobot's.
        root: Of the dataset that is recorded, if any.
    """
    from lerobot_ext.rollout.open_loop import watching

    if cfg.policy.type != "remote":  # a server says so itself
        check_inputs(cfg)
    output = cfg.open_loop.output or (OUTPUT if root is None else root.with_name(f"{root.name}_open_loop"))
    with watching.session() as seen:
        if cfg.open_loop.every is None:
            rollout(cfg)
        else:
            _predict(cfg, seen)
    if seen.result is not None:
        write(seen.result, Path(output))


def check_inputs(cfg: Any) -> None:
    """Refuse a recording that lacks what the policy was trained on, before anything is loaded.

    Raises:
        UserError: Names what is missing, and what there is.
    """
    from lerobot.robots import make_robot_from_config
    from lerobot.utils.constants import ACTION, OBS_STATE, OBS_STR
    from lerobot.utils.feature_utils import hw_to_dataset_features

    from lerobot_ext.features import OBS_FORCE

    robot = make_robot_from_config(cfg.robot)
    features = hw_to_dataset_features(robot.observation_features, OBS_STR)
    there = {cfg.rename_map.get(key, key): feature["shape"] for key, feature in features.items()}
    wanted = cfg.policy.input_features or {}
    missing = [key for key in wanted if key.startswith(f"{OBS_STR}.") and key not in there]
    if missing:
        raise UserError(
            f"the policy wants {', '.join(missing)}, but the recording has {', '.join(there)}; play a recording like "
            "those it was trained on, or map the names with rename_map."
        )
    widths = {name: feature.shape[0] for name, feature in wanted.items() if name == OBS_STATE}
    recorded = {OBS_STATE: there.get(OBS_STATE, (0,))[0], ACTION: len(robot.action_features)}
    widths |= {name: feature.shape[0] for name, feature in (cfg.policy.output_features or {}).items()}
    fused = recorded[OBS_STATE] + there.get(OBS_FORCE, (0,))[0]  # the checkpoint's own first step joins them
    for name, width in widths.items():
        if name in recorded and width not in (recorded[name], fused if name == OBS_STATE else width + 1):
            raise UserError(
                f"the policy has {width} numbers in {name}, the recording {recorded[name]}; is it of another robot?"
            )


def _predict(cfg: Any, seen: Any) -> None:
    """`open_loop.every`: LeRobot's rollout prepares everything, and no loop runs."""
    from lerobot.rollout import build_rollout_context
    from lerobot.utils.utils import init_logging
    from tqdm import tqdm

    from lerobot_ext.rollout.open_loop import predict

    init_logging()
    ctx = build_rollout_context(cfg, threading.Event())
    robot, policy = ctx.hardware.robot_wrapper.inner, ctx.policy.policy
    frames = sum(robot.shown_frames(episode) for episode in cfg.robot.episodes)
    try:
        predict(
            seen.source,
            robot,
            cfg.open_loop.every,
            cfg.inference.seed or 0,
            lambda each: tqdm(each, desc="frames", total=frames, unit="frame", leave=False),
        )
    finally:
        robot.disconnect()
        if hasattr(policy, "close"):
            policy.close()


def write(result: Any, output: Path) -> None:
    """Print the table, and write figures, page and picture into the folder `output`.

    Raises:
        UserError: It cannot be written there.
    """
    from lerobot_ext.recording.visualize import open_loop as page

    report = result.report()
    sys.stderr.flush()  # the log's lines come before the table
    show(report)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "open_loop.json").write_text(json.dumps(report, indent=1, allow_nan=False))
        page.write(result, report, output)
    except OSError as error:
        raise UserError(
            f"cannot write to '{output}': {error.strerror}; choose a folder with --open_loop.output=DIR."
        ) from error
    print(
        f"figures: {output}/open_loop.json\npage:    {output}/open_loop.html\npicture: {output}/open_loop.png"
    )


def show(report: dict[str, Any]) -> None:
    """Print the errors of each joint."""
    from rich.console import Console
    from rich.table import Table

    from lerobot_ext.recording.visualize import open_loop as page

    head, *rows = page.rows(report)
    table = Table(title="open loop: predicted against recorded actions, in the action's units")
    for name in head:
        table.add_column(name, justify="left" if name == head[0] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    console.print(table)
    console.print(page.facts(report))
