"""`lerobot-ext train`: LeRobot's own train on exactly the modalities that the YAML chooses.

Here are the config and what is said before the first step; what a selection does is in `lerobot_ext.modality`, and
how it gets into LeRobot's train is in `lerobot_ext.compat`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import draccus
import yaml
from draccus.utils import DecodingError, ParsingError
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()

from lerobot.configs import parser  # noqa: E402  (our types must be registered before LeRobot's are read)
from lerobot.configs.train import TrainPipelineConfig  # noqa: E402
from lerobot.scripts import lerobot_train  # noqa: E402  (it also registers LeRobot's own policies)

from lerobot_ext import checkpoints  # noqa: E402
from lerobot_ext.commands import config as config_files  # noqa: E402
from lerobot_ext.errors import UserError  # noqa: E402
from lerobot_ext.modality.plan import make_plan  # noqa: E402
from lerobot_ext.modality.scan import findings  # noqa: E402
from lerobot_ext.modality.selection import DepthSelection, ForceSelection, Selection  # noqa: E402
from lerobot_ext.modality.table import table  # noqa: E402
from lerobot_ext.modality.training import check_selection  # noqa: E402

ALONE = (
    "accelerate launch has started one process only, though several were asked for; without a GPU it needs: "
    "accelerate launch --multi_gpu --num_processes 2 ..., with --policy.device=cpu"
)
OURS = ("use_depth_image", "use_force", "use_language_tip", "modality")
CACHES = {"none": None, "memory": 4.0, "disk": 50.0}
"""Where frames can be kept, and by default at most how many gigabytes."""


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
        cache: `none`: decode each time; `memory`: decode once before training and keep all frames; `disk`: keep
            them in files, for all processes and for later runs.
        cache_max_gb: Most memory, or most of the disk for all datasets, that the cache may take, in gigabytes;
            None: as `CACHES` says.
        cache_dir: Folder of the files; None: below LeRobot's own cache.
    """

    cameras: list[str] | None = None
    depth: DepthSelection = field(default_factory=DepthSelection)
    force: ForceSelection = field(default_factory=ForceSelection)
    resize: list[int] | None = None
    include: list[str] | None = None
    exclude: list[str] = field(default_factory=list)
    cache: str = "none"
    cache_max_gb: float | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check what no other class checks."""
        if self.cache not in CACHES:
            raise UserError(f"modality.cache '{self.cache}' is not offered; offered: {', '.join(CACHES)}.")
        if self.cache_max_gb is None:
            self.cache_max_gb = CACHES[self.cache]
        elif not self.cache_max_gb > 0:
            raise UserError(f"modality.cache_max_gb {self.cache_max_gb}: expected gigabytes, more than 0.")


@dataclass
class TrainConfig(TrainPipelineConfig):
    """LeRobot's train config and the choice of what the policy sees.

    Attributes:
        use_depth_image: Show depth to the policy.
        use_force: Give force to the policy.
        use_language_tip: Append the episode's tip to the task.
        modality: How.
        announcement: What to say before the data is read.
    """

    announcement: ClassVar[str | None] = None
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

    def announce(self) -> None:
        """Say what the policy will see; LeRobot has printed its whole config, above which it would not be found."""
        if self.announcement:
            print(self.announcement, flush=True)


def main(argv: list[str]) -> int | None:
    """Train as the YAML and the options in `argv` say."""
    # Read by the tokenizers library; without it, it warns in every worker process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config_files.shorten_torchcodec()
    main_process = int(os.environ.get("RANK", "0")) == 0
    argv, said = from_whole_checkpoint(argv)
    if said and main_process:
        print(f"warning: {said}", flush=True)
    with config_files.command_line("train", argv):
        cfg = parse(argv)
        check(cfg)
        if _launched_alone():
            print(f"warning: {ALONE}", flush=True)
        if main_process:
            cfg.announcement = describe(cfg)
        train(cfg)
    return 0


def from_whole_checkpoint(argv: list[str]) -> tuple[list[str], str | None]:
    """For `--resume=true`, `argv` with the config of a whole checkpoint, and a sentence if another one was named.

    Raises:
        UserError: There is none.
    """
    given = dict(config_files.options(argv))
    path = given.pop("config_path", None)
    if path is None or str(given.get("resume")).lower() != "true":
        return argv, None
    if Path(path).suffix in (".yaml", ".yml"):
        folder = config_files.merge_options(config_files.load_yaml(path), argv).get("output_dir") or "OUTPUT"
        raise UserError(
            f"--resume=true takes its config from the checkpoint, not from {path}; give --config_path={folder}"
        )
    if not os.path.lexists(path) and not _looks_local(path):
        return argv, None  # a run on the hub
    config, said = checkpoints.resumable(path)
    return [f"--config_path={config}", *(f"--{key}={value}" for key, value in given.items())], said


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
    config_files.check_keys(TrainConfig, config_files.merge_options({}, argv))
    data = config_files.merge_options(data, argv)
    config_files.check_keys(TrainConfig, data, path or "the command line")
    config_files.check_types(TrainConfig, {key: data[key] for key in OURS if key in data}, "")
    if not data.get("dataset"):
        raise UserError("nothing to train on; give --config_path=configs/train.yaml, or --dataset.root=DIR.")

    path_fields = TrainConfig.__get_path_fields__()
    words = [f"--{key}={_as_json(key, value)}" for key, value in config_files.options(argv)]
    options = parser.filter_arg("config_path", parser.filter_path_args(path_fields, words))
    try:
        if path is None:
            return draccus.parse(TrainConfig, args=options)
        return TrainConfig.from_pretrained(
            parser.extract_path_fields_from_config(path, path_fields), cli_args=options
        )
    except (DecodingError, ParsingError) as error:
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
    started_from = config_files.config_path_of(sys.argv[1:]) if cfg.resume else path
    if started_from is not None:
        check_selection(Path(started_from), cfg.selection, cfg.resume)
    if cfg.dataset.episodes == []:
        raise UserError("dataset.episodes is empty; leave it out to train on all of them.")
    if cfg.policy is None and path is None and cfg.reward_model is None:
        raise UserError("no policy; add `policy: {type: act}` or `policy: {path: CHECKPOINT}` to the YAML.")
    if not cfg.use_policy_training_preset and None in (cfg.optimizer, cfg.scheduler):
        raise UserError(
            "use_policy_training_preset is false, so both optimizer and scheduler must be given, such as optimizer: "
            "{type: adamw, lr: 1.0e-4} and scheduler: {type: diffuser, num_warmup_steps: 500}; or leave it out."
        )
    for key, least in (("batch_size", 1), ("steps", 1), ("num_workers", 0)):
        if getattr(cfg, key) < least:
            raise UserError(f"{key} {getattr(cfg, key)}: expected at least {least}.")
    if cfg.job.is_remote:
        raise UserError("job.target: lerobot-ext train runs here only; leave job out.")
    if cfg.policy is not None and cfg.policy.push_to_hub and not cfg.policy.repo_id:
        cfg.policy.push_to_hub = False  # LeRobot's default is to upload, which it cannot without a name


def describe(cfg: TrainConfig) -> str:
    """The table of recorded features, and what is odd about those that are selected.

    Raises:
        UserError: If something selected was not recorded.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(
        cfg.dataset.repo_id,
        root=cfg.dataset.root,
        revision=cfg.dataset.revision,
        repo_type=cfg.dataset.repo_type,
    )
    for episode in cfg.dataset.episodes or ():
        if episode >= meta.total_episodes:
            raise UserError(
                f"dataset.episodes: there is no episode {episode}; the dataset has 0 to {meta.total_episodes - 1}."
            )
    plan = make_plan(cfg.selection, meta.features)
    said = findings(meta.root, meta.stats, plan, cfg.selection, cfg.dataset.episodes)
    return "\n".join(["", table(plan), "", *said, *([""] if said else [])])


def train(cfg: TrainConfig) -> None:
    """LeRobot's train, behind its parser, on the GPU that `policy.device` names."""
    choose_gpu(_device(cfg))
    lerobot_train.train.__wrapped__(cfg)


def choose_gpu(device: str | None) -> None:
    """Make `cuda:1` the process's GPU: accelerate, which LeRobot asks, knows only "the current one".

    Raises:
        UserError: If there is no such GPU, or several processes would share it.
    """
    import torch

    kind, _, index = (device or "").partition(":")
    if kind != "cuda" or not index or not torch.cuda.is_available():
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"policy.device {device}: of several processes each takes its own GPU; give --policy.device=cuda, and "
            "choose the GPUs with CUDA_VISIBLE_DEVICES."
        )
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        raise UserError(
            f"policy.device {device}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0"
            f" (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})."
        )
    torch.cuda.set_device(int(index))


def _device(cfg: TrainConfig) -> str | None:
    """The device asked for: on the command line, beside a `policy.path` of the YAML, or in the policy's config."""
    asked = parser.parse_arg("policy.device") or parser.parse_arg(
        "device", parser.get_yaml_overrides("policy")
    )
    return asked or getattr(cfg.trainable_config, "device", None)


def _launched_alone() -> bool:
    """Whether `accelerate launch` was asked for several processes and started one, as it does without a GPU.

    Its simple launcher says where the processes would meet, but gives this one no number among them.
    """
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= set(os.environ) and "WORLD_SIZE" not in os.environ


def _said_by_config(error: BaseException) -> str:
    """What a config class itself said, which draccus wraps once for each level; else what draccus says."""
    said = UserError if isinstance(error, DecodingError) else (UserError, ValueError)
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, said):
            return str(inner)
        inner = inner.__cause__ or inner.__context__
    return str(error)


def _as_json(key: str, value: str) -> str:
    """A value of our options as LeRobot's parser reads it, JSON: `[wrist]` without quotes is fine, too."""
    if key.partition(".")[0] not in OURS:
        return value
    try:
        return json.dumps(yaml.safe_load(value), default=str)
    except yaml.YAMLError:
        return value


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()
