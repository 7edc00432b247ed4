"""Where the selection enters LeRobot's train: after its datasets are made, and after its processors are made.

`compat` calls these two functions; nothing here replaces anything.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from lerobot_ext.errors import UserError
from lerobot_ext.modality.selection import Selection
from lerobot_ext.modality.step import ModalityStep, find_step

logger = logging.getLogger(__name__)


def make_selected_datasets(original: Callable[[Any], tuple[Any, Any]], cfg: Any) -> tuple[Any, Any]:
    """LeRobot's datasets for training and held-out evaluation, seen through `cfg.selection`.

    Args:
        original: LeRobot's `make_train_eval_datasets`.
        cfg: A train config with `selection` and `modality` (see `lerobot_ext.commands.train.TrainConfig`).

    Returns:
        What `original` returns, restricted; the second is None without `dataset.eval_split`.

    Raises:
        UserError: For a streaming dataset, for something selected that was not recorded, or for a cache that
            would be too large.
    """
    from lerobot_ext.modality.stats import use_imagenet
    from lerobot_ext.modality.view import select_dataset

    if cfg.dataset.streaming:
        raise UserError(
            "dataset.streaming: a selection needs a dataset on disk; set dataset.streaming: false."
        )
    left_gb = cfg.modality.cache_max_gb if cfg.modality.cache == "memory" else None
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
        view = select_dataset(dataset, cfg.selection, left_gb, shared)
        if left_gb is not None:
            left_gb -= view.reader.cache_bytes / 1e9
        if cfg.dataset.use_imagenet_stats:
            use_imagenet(view.meta.stats, view.meta.camera_keys)
        views.append(view)
    return views[0], views[1]


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
    differences = selection.differences(present.selection)
    if differences:
        raise UserError(
            f"checkpoint {pretrained_path} was trained on another selection; here and there: "
            f"{'; '.join(differences)}. Train with the checkpoint's selection, or start from scratch."
        )
    # The dataset may be another one: its cameras' sizes and its depth encoder's range are those that count now.
    preprocessor.steps = [step if old is present else old for old in preprocessor.steps]
    return processors
