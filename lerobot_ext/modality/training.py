"""Where the selection enters LeRobot's train: after its datasets are made, and after its processors are made.

`compat` calls these two functions; nothing here replaces anything.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lerobot_ext.errors import UserError
from lerobot_ext.modality.force import check_policy, prepare_policy
from lerobot_ext.modality.selection import Selection
from lerobot_ext.modality.step import STEP_NAME, ModalityStep, find_step

logger = logging.getLogger(__name__)


def make_selected_datasets(original: Callable[[Any], tuple[Any, Any]], cfg: Any) -> tuple[Any, Any]:
    """LeRobot's datasets for training and held-out evaluation, seen through `cfg.selection`.

    Args:
        original: LeRobot's `make_train_eval_datasets`.
        cfg: A train config with `selection`, `modality` and `announce` (see `lerobot_ext.commands.train.TrainConfig`).

    Returns:
        What `original` returns, restricted; the second is None without `dataset.eval_split`. The policy's config
        is prepared for force (see `force.prepare_policy`).

    Raises:
        UserError: For something selected that was not recorded, for a cache that would be too large, or for an
            option that a streaming dataset has no use for; or if the policy cannot take force as selected.
    """
    if cfg.policy is not None:
        check_policy(cfg.policy, cfg.selection)
    cfg.announce()
    views = _selected_streams(original, cfg) if cfg.dataset.streaming else _selected_views(original, cfg)
    if cfg.policy is not None:
        prepare_policy(cfg.policy, cfg.selection, views[0].meta.features)
    return views


def _selected_views(original: Callable[[Any], tuple[Any, Any]], cfg: Any) -> tuple[Any, Any]:
    """Without `dataset.streaming`."""
    from lerobot_ext.modality.disk_cache import default_folder
    from lerobot_ext.modality.stats import use_imagenet
    from lerobot_ext.modality.view import select_dataset

    cache = cfg.modality.cache
    left_gb = cfg.modality.cache_max_gb if cache != "none" else None
    cache_dir = (cfg.modality.cache_dir or default_folder()) if cache == "disk" else None
    # Workers that are forked inherit the memory; those that are spawned need it shared.
    shared = cfg.num_workers > 0 and cfg.dataloader_multiprocessing_context != "fork"
    # ImageNet's statistics are put on the views; LeRobot would put them on depth in metres, too.
    plain = copy.copy(cfg)
    plain.dataset = dataclasses.replace(cfg.dataset, use_imagenet_stats=False)
    views = []
    for dataset in original(plain):
        if dataset is None:
            views.append(None)
            continue
        view = select_dataset(dataset, cfg.selection, left_gb, shared, cache_dir)
        if cache == "memory":
            left_gb -= view.reader.cache_bytes / 1e9
        if cfg.dataset.use_imagenet_stats:
            use_imagenet(view.meta.stats, view.meta.camera_keys)
        views.append(view)
    return views[0], views[1]


def _selected_streams(original: Callable[[Any], tuple[Any, Any]], cfg: Any) -> tuple[Any, Any]:
    """With `dataset.streaming`."""
    from lerobot_ext.modality.stats import use_imagenet
    from lerobot_ext.modality.streaming import select_streaming, split_stream

    if cfg.modality.cache != "none":
        raise UserError(
            f"modality.cache {cfg.modality.cache} keeps all frames, dataset.streaming keeps none; set one of them: "
            "dataset.streaming: false for a dataset on this machine, modality.cache: none for a larger one."
        )
    if cfg.dataset.eval_split and cfg.max_eval_samples:
        raise UserError(
            "max_eval_samples needs a dataset that does not stream; leave it out (0: all held-out frames), "
            "or set dataset.streaming: false."
        )
    # With eval_split LeRobot would open the dataset again, without streaming.
    plain = copy.copy(cfg)
    plain.dataset = dataclasses.replace(cfg.dataset, use_imagenet_stats=False, eval_split=0.0)
    stream = select_streaming(
        original(plain)[0],
        cfg.selection,
        cfg.dataset.video_backend,
        getattr(cfg.trainable_config, "drop_n_last_frames", 0),
    )
    if cfg.dataset.use_imagenet_stats:
        use_imagenet(stream.meta.stats, stream.meta.camera_keys)
    return split_stream(stream, cfg.dataset.eval_split) if cfg.dataset.eval_split else (stream, None)


def add_selection_step(policy_cfg: Any, pretrained_path: str | None, processors: tuple[Any, Any]) -> tuple:
    """Put the selection in front of a policy's preprocessor, if the policy is being trained on one.

    Args:
        policy_cfg: The policy's config; LeRobot keeps the training dataset's metadata in its
            `_runtime_dataset_meta`.
        pretrained_path: Where LeRobot loaded the processors from; None if it made them.
        processors: Preprocessor and postprocessor; the first one gets the step.

    Returns:
        The same two pipelines.

    Raises:
        UserError: If the checkpoint was trained on another selection; lists the differences.
    """
    meta = getattr(policy_cfg, "_runtime_dataset_meta", None)
    selection: Selection | None = getattr(meta, "selection", None)
    if selection is None:
        return processors
    preprocessor = processors[0]
    step = ModalityStep(selection, meta.raw_observation)
    present = find_step(preprocessor)
    if present is None:
        preprocessor.steps = [step, *preprocessor.steps]
        return processors
    _refuse_another(selection, present.selection, pretrained_path, may_gain_token=True)
    # The dataset may be another one: its cameras' sizes and its depth encoder's range are those that count now.
    preprocessor.steps = [step if old is present else old for old in preprocessor.steps]
    return processors


def check_selection(checkpoint: Path, selection: Selection, resume: bool) -> None:
    """Refuse early, before anything is decoded, what `add_selection_step` would refuse.

    Args:
        checkpoint: A `pretrained_model` directory or a file in it; one that is not there, or that no selection was
            saved in, is passed over.
        selection: What the policy shall see.
        resume: Whether that run goes on; a new one that starts from its weights may add a force token, which
            changes none of them.

    Raises:
        UserError: If the checkpoint was trained on another selection; lists the differences.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    file = folder / "policy_preprocessor.json"
    if not file.is_file():
        return
    for step in json.loads(file.read_text()).get("steps", ()):
        if step.get("registry_name") == STEP_NAME:
            trained = Selection.from_dict(step["config"]["selection"])
            _refuse_another(selection, trained, str(folder), may_gain_token=not resume)


def _refuse_another(
    selection: Selection, trained: Selection, checkpoint: str | None, may_gain_token: bool
) -> None:
    gains_token = selection.force is not None and selection.force.is_token and trained.force is None
    if may_gain_token and gains_token:
        trained = dataclasses.replace(trained, force=selection.force)
    differences = selection.differences(trained)
    if differences:
        raise UserError(
            f"checkpoint {checkpoint} was trained on another selection; here and there: "
            f"{'; '.join(differences)}. Train with the checkpoint's selection, or start from scratch."
        )
