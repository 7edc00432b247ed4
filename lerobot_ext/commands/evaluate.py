"""`lerobot-ext evaluate`: LeRobot's rollout with recording, the policy here or on a server; the same YAML for both.

`ENV=local` in the environment is the older users' switch for "the brain is remote": the policy named in the YAML
is replaced by policy type `remote`, so that its weights are never loaded at the robot.
"""

from __future__ import annotations

import logging
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()

from lerobot.configs import parser  # noqa: E402  (our names must be registered before LeRobot's are read)
from lerobot.rollout.configs import (  # noqa: E402
    EpisodicStrategyConfig,
    RolloutConfig,
    RolloutStrategyConfig,
)
from lerobot.scripts.lerobot_rollout import rollout  # noqa: E402

from lerobot_ext.commands import config as config_files  # noqa: E402
from lerobot_ext.commands import open_loop, record, session, tip_option  # noqa: E402
from lerobot_ext.commands import split as split_run  # noqa: E402
from lerobot_ext.errors import UserError  # noqa: E402
from lerobot_ext.recording.tips import tips  # noqa: E402
from lerobot_ext.rollout.start import SplitConfig  # noqa: E402

logger = logging.getLogger(__name__)


@dataclass
class ServerConfig:
    """Where the policy runs when `ENV=local` is set.

    Attributes:
        address: As `lerobot-ext serve` prints it: `tcp://HOST:PORT`.
        timeout_s: Longest wait for one answer, in seconds.
        connect_timeout_s: Longest wait for the server to be there, in seconds.
        n_action_steps: With `inference.type: sync`, actions of a chunk that are executed before the next is asked for;
            the checkpoint's if None.
        telemetry_path: A file that gets one JSON line a chunk: its round trip and the server's durations.
        keys: This robot's folder of keys, as `lerobot-ext keys` made it; None for a server without keys.
        codec: How pictures travel: `raw`, `lossless`, `jpeg`, or `auto`, which measures the link and picks.
        jpeg_quality: 1 to 100.
        shrink: With a codec that is not raw, send pictures no larger than the policy looks at them.
    """

    address: str = "tcp://127.0.0.1:5555"
    timeout_s: float = 5.0
    connect_timeout_s: float = 4.5
    n_action_steps: int | None = None
    telemetry_path: str | None = None
    keys: str | None = None
    codec: str = "auto"
    jpeg_quality: int = 90
    shrink: bool = True


@dataclass
class EvaluateConfig(RolloutConfig):
    """LeRobot's rollout config, episodic by default, with the server and the pages at the end.

    Attributes:
        server: Where the policy runs when `ENV=local` is set.
        visualize: Write a page for each recorded episode when the rollout has ended.
        open_loop: With a replay for a robot: how predicted actions are compared with recorded ones.
        split: The policy in a process of its own, with `--split`.
        initial_position: Where the robot goes before the first episode, and where it comes back to after each: by joint,
            with or without `.pos`, of two arms with their prefixes. Joints that are not named stay where they are.
        initial_speed: That no joint exceeds on the way, in the action's units a second.
        initial_tolerance: How far from it a joint may end, in the action's units.
    """

    strategy: RolloutStrategyConfig = field(default_factory=EpisodicStrategyConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    visualize: bool = True
    open_loop: open_loop.OpenLoopConfig = field(default_factory=open_loop.OpenLoopConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    initial_position: dict[str, float] | None = None
    initial_speed: float = 30.0
    initial_tolerance: float = 5.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one of them cannot be.
        """
        super().__post_init__()
        for name in ("initial_speed", "initial_tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0.")


def main(argv: list[str]) -> int | None:
    """Evaluate as the YAML and the options in `argv` say."""
    words, extras = session.take_extras(argv)
    words, options = split_run.take_options(words)
    words, tip = tip_option.take_option(words)
    data, source = record.merged_config(words)
    plan = tip_option.take(data, tip, source)
    tip_option.one(plan)
    config_files.check_keys(EvaluateConfig, data, source)
    if not data.get("policy"):
        raise UserError(f"{source}: evaluation needs a policy; add `policy: {{path: CHECKPOINT}}`.")
    check_name(data)
    root = record.check_root(data)
    replay = open_loop.is_replay(data)
    if replay:
        data, plan = open_loop.with_defaults(data, plan)
    if "fps" not in data and "fps" in (data.get("dataset") or {}):
        data["fps"] = data["dataset"]["fps"]
    data = with_engine(data, root)
    with ExitStack() as stack:
        split = None
        if options.split:
            split = split_run.Split(check_checkpoint(data), options)
            stack.callback(split.close)
            data = make_remote(split.remote(data))
        else:
            data = make_remote(data) if os.environ.get("ENV") == "local" else check_checkpoint(data)

        config_files.shorten_torchcodec()
        cfg = parse(data)
        if cfg.policy.type == "remote" and split is None:  # a server of our own comes later
            check_server(cfg)
        stack.enter_context(tips.session(plan))
        if cfg.dataset is not None:
            session.prepare(cfg.robot, cfg.dataset, root, bool(data.get("resume")), extras)
        stack.enter_context(session.session(root, extras, again=record.again("evaluate", argv)))
        if split is not None:
            stack.enter_context(split.running(cfg, root))
        if replay:
            open_loop.run(cfg, rollout.__wrapped__, root)
        else:
            rollout.__wrapped__(cfg)
    if cfg.visualize and root is not None and root.exists():
        show(root)
    return 0


def with_engine(data: dict[str, Any], root: Path | None) -> dict[str, Any]:
    """Chunks are asked for while the arm moves, unless the config says otherwise; what happened is kept in the dataset."""
    engine = {"type": "async"} | (data.get("inference") or {})
    if engine["type"] == "async" and root is not None:
        engine.setdefault("telemetry_dir", str(root / "telemetry"))
    return data | {"inference": engine}


def check_name(data: dict[str, Any]) -> None:
    """LeRobot wants the datasets of rollouts to be named `rollout_…`; say so before the robot is connected."""
    dataset = data.get("dataset") or {}
    repo_id = str(dataset.get("repo_id") or "")
    owner, _, name = repo_id.rpartition("/")
    if dataset and not name.startswith("rollout_"):
        wanted = "/".join(filter(None, (owner, "rollout_" + name.removeprefix("eval_"))))
        raise UserError(
            f"dataset.repo_id '{repo_id}': LeRobot wants evaluations to be named rollout_…; write '{wanted}'."
        )


def check_checkpoint(data: dict[str, Any]) -> dict[str, Any]:
    """Refuse a local checkpoint folder that is not there; hub names are LeRobot's business."""
    path = data["policy"].get("path")
    if path is not None and _looks_local(str(path)) and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"policy.path {path}: there is no checkpoint (no config.json in it); give the folder "
            "…/checkpoints/last/pretrained_model of a training run, or set ENV=local if a server has it."
        )
    return data


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()


def make_remote(data: dict[str, Any]) -> dict[str, Any]:
    """The same config with its policy on the server; what the YAML says of the policy itself is not heeded."""
    if data["policy"].get("type") == "remote":
        return data
    remote = {"type": "remote"} | (data.get("server") or {})
    if data.get("rename_map"):
        remote["rename_map"] = data["rename_map"]
    logger.info("the policy %s runs on a server, at %s", data["policy"].get("path"), remote.get("address"))
    if unread := sorted(data["policy"].keys() - {"path", "type", "device"}):
        logger.warning(
            "%s: not heeded, since the policy runs in another process, which takes it as its checkpoint says",
            ", ".join(f"policy.{key}" for key in unread),
        )
    return data | {"policy": remote}


def parse(data: dict[str, Any]) -> EvaluateConfig:
    """Decode `data` by LeRobot's own parser, which reads files and `sys.argv`."""

    def identity(cfg: EvaluateConfig) -> EvaluateConfig:
        return cfg

    # LeRobot's parser looks the argument's type up in the annotations, which are strings in this module.
    identity.__annotations__["cfg"] = EvaluateConfig
    with config_files.as_file(data) as path, config_files.command_line("evaluate", [f"--config_path={path}"]):
        return parser.wrap()(identity)()


def check_server(cfg: EvaluateConfig) -> None:
    """Meet the server before the robot moves: it must be there, and want no more than the robot gives.

    Raises:
        simplify_work.wire.errors.RemoteError: With one sentence that says which of the two is not so.
    """
    from lerobot.robots import make_robot_from_config

    from lerobot_ext.policies.remote.modeling_remote import RemotePolicy

    policy = RemotePolicy(cfg.policy)
    try:
        policy.check_features(make_robot_from_config(cfg.robot).observation_features)
    finally:
        policy.close()


def show(root: Path) -> None:
    """Write a page for every episode of the dataset in `root` and say where it is."""
    from lerobot_ext.commands import visualize

    output = root.with_name(f"{root.name}_pages")
    for index in range(session.episode_count(root)):
        visualize.main([f"--root={root}", f"--episode_index={index}", f"--output={output}"])
