"""`lerobot-ext train`: LeRobot's own train on exactly the modalities that the YAML chooses.

Here are the config and what is said before the first step; what a selection does is in `lerobot_ext.modality`, and
how it gets into LeRobot's train is in `lerobot_ext.compat`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import DecodingError
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()

from lerobot.configs import parser  # noqa: E402  (our types must be registered before LeRobot's are read)
from lerobot.configs.train import TrainPipelineConfig  # noqa: E402
from lerobot.scripts import lerobot_train  # noqa: E402  (it also registers LeRobot's own policies)

from lerobot_ext.commands import config as config_files  # noqa: E402
from lerobot_ext.errors import UserError  # noqa: E402
from lerobot_ext.modality.plan import make_plan  # noqa: E402
from lerobot_ext.modality.selection import DepthSelection, ForceSelection, Selection  # noqa: E402

HELP = """usage: lerobot-ext train --config_path=configs/train.yaml [--key=value ...]

Trains a policy with LeRobot's train on the features you choose. Every key of lerobot-train works, and:

  --use_depth_image=true         depth becomes an image that any policy takes
  --use_force=true               force is joined to observation.state
  --use_language_tip=true        the episode's tip is appended to the task
  --modality.cameras='["wrist"]' RGB cameras by name (default: all)
  --modality.resize='[64,112]'   height and width of every image that the network sees
  --modality.depth.near_m=0.1 --modality.depth.far_m=1.5 --modality.depth.representation=gray|turbo|normals
  --modality.exclude='["observation.my_*"]'   observations that are not seen; include: which own features are
  --modality.cache=memory        decode everything once before training, at most --modality.cache_max_gb=4

The choice is saved with the checkpoint, in its preprocessor: whoever runs it applies it without being told.

  --policy.path=DIR              start from a checkpoint
  --resume=true --config_path=OUTPUT/checkpoints/last/pretrained_model/train_config.json
                                 go on with an interrupted run
"""

CACHES = ("none", "memory")


@dataclass
class ModalityConfig:
    """How the selected features are shown to the policy and read from the disk.

    Attributes:
        cameras: Names of the RGB cameras; None: all; an empty list: none.
        depth: How depth is shown, if `use_depth_image`.
        force: How force is given, if `use_force`.
        resize: Height and width in pixels of every image; None: as recorded.
        include: Patterns of the users' own features that stay; None: all.
        exclude: Patterns of observations that are not seen.
        cache: `none`: decode each time; `memory`: decode once before training and keep all frames.
        cache_max_gb: Most memory that the cache may take, in gigabytes.
    """

    cameras: list[str] | None = None
    depth: DepthSelection = field(default_factory=DepthSelection)
    force: ForceSelection = field(default_factory=ForceSelection)
    resize: list[int] | None = None
    include: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    cache: str = "none"
    cache_max_gb: float = 4.0

    def __post_init__(self) -> None:
        """Check what no other class checks."""
        if self.cache not in CACHES:
            raise UserError(f"modality.cache '{self.cache}' is not offered; offered: {', '.join(CACHES)}.")


@dataclass
class TrainConfig(TrainPipelineConfig):
    """LeRobot's train config and the choice of what the policy sees.

    Attributes:
        use_depth_image: Show depth to the policy.
        use_force: Give force to the policy.
        use_language_tip: Append the episode's tip to the task.
        modality: How.
    """

    use_depth_image: bool = False
    use_force: bool = False
    use_language_tip: bool = False
    modality: ModalityConfig = field(default_factory=ModalityConfig)

    @property
    def selection(self) -> Selection:
        """What the policy sees."""
        return Selection(
            cameras=self.modality.cameras,
            depth=self.modality.depth if self.use_depth_image else None,
            force=self.modality.force if self.use_force else None,
            language_tip=self.use_language_tip,
            resize=self.modality.resize,
            include=self.modality.include,
            exclude=self.modality.exclude,
        )


def main(argv: list[str]) -> int | None:
    """Train as the YAML and the options in `argv` say."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    # Read by the tokenizers library; without it, it warns in every worker process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _command_line(argv):
        cfg = parse(argv)
        check(cfg)
        if int(os.environ.get("RANK", "0")) == 0:
            print(table(cfg), flush=True)
        train(cfg)
    return 0


def parse(argv: list[str]) -> TrainConfig:
    """Decode the YAML and the options by LeRobot's own parser, piece by piece: as a whole it exits on an error.

    Raises:
        UserError: For a config file that is not there, or a key or a value that does not exist.
    """
    path = config_files.config_path_of(argv)
    if path is not None and Path(path).is_dir():
        path = str(Path(path) / "train_config.json")
    data = config_files.load_yaml(path) if path is not None else {}
    data.pop("checkpoint_path", None)  # LeRobot saves it, but does not read it
    data = config_files.merge_options(data, argv)
    config_files.check_keys(TrainConfig, data, path or "the command line")
    if not data.get("dataset"):
        raise UserError("nothing to train on; give --config_path=configs/train.yaml, or --dataset.root=DIR.")

    path_fields = TrainConfig.__get_path_fields__()
    options = parser.filter_arg("config_path", parser.filter_path_args(path_fields, argv))
    try:
        if path is None:
            return draccus.parse(TrainConfig, args=options)
        return TrainConfig.from_pretrained(
            parser.extract_path_fields_from_config(path, path_fields), cli_args=options
        )
    except DecodingError as error:
        raise UserError(_said_by_config(error)) from error


def check(cfg: TrainConfig) -> None:
    """Refuse what LeRobot would find out late, or only with the network's help.

    Raises:
        UserError: Names the thing and the next step.
    """
    root = cfg.dataset.root
    if root is not None and not (Path(root) / "meta" / "info.json").is_file():
        raise UserError(
            f"dataset.root {root}: there is no dataset (no meta/info.json in it; working directory: {Path.cwd()})."
        )
    if cfg.output_dir is not None and Path(cfg.output_dir).exists() and not cfg.resume:
        raise UserError(
            f"output_dir {cfg.output_dir} exists already; give another one, remove it, or go on with that run: "
            f"--resume=true --config_path={cfg.output_dir}/checkpoints/last/pretrained_model/train_config.json"
        )
    path = parser.get_path_arg("policy")
    if path is not None and _looks_local(path) and not (Path(path) / "config.json").is_file():
        raise UserError(f"policy.path {path}: there is no checkpoint (no config.json in it).")
    if cfg.policy is None and path is None and cfg.reward_model is None:
        raise UserError("no policy; add `policy: {type: act}` or `policy: {path: CHECKPOINT}` to the YAML.")
    if cfg.job.is_remote:
        raise UserError("job.target: lerobot-ext train runs here only; leave job out.")
    if cfg.policy is not None and cfg.policy.push_to_hub and not cfg.policy.repo_id:
        cfg.policy.push_to_hub = False  # LeRobot's default is to upload, which it cannot without a name


def table(cfg: TrainConfig) -> str:
    """Every recorded feature: its shape, whether it is used, as what, and why.

    Raises:
        UserError: If something selected was not recorded.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(cfg.dataset.repo_id, root=cfg.dataset.root, revision=cfg.dataset.revision)
    rows = [("recorded", "shape", "used", "the network sees", "")]
    for use in make_plan(cfg.selection, meta.features):
        recorded = tuple(use.recorded["shape"])
        seen = f"{use.seen_as} {_shape(use.seen)}" if use.seen_as and use.kind != "other" else "-"
        if use.kind == "other" and use.key.startswith(("observation.", "action")):
            seen = f"{use.seen_as} {_shape(use.seen)}"
        rows.append((use.key, _shape(recorded), "yes" if use.used else "no", seen, use.why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in ["", *lines, ""])


def train(cfg: TrainConfig) -> None:
    """LeRobot's train, behind its parser."""
    lerobot_train.train.__wrapped__(cfg)


@contextmanager
def _command_line(argv: list[str]) -> Iterator[None]:
    """LeRobot's parser and its `validate` read `sys.argv`."""
    before = sys.argv
    sys.argv = ["lerobot-ext train", *argv]
    try:
        yield
    finally:
        sys.argv = before


def _said_by_config(error: BaseException) -> str:
    """What a config class itself said, which draccus wraps once for each level; else what draccus says."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, UserError):
            return str(inner)
        inner = inner.__cause__ or inner.__context__
    return str(error)


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape))
