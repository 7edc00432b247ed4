"""Training: only the chosen modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext import patching
from lerobot_ext.extension import Extension


def _make_train_eval_datasets(original: Callable) -> Callable:
    def make_train_eval_datasets(cfg: Any) -> Any:
        if getattr(cfg, "selection", None) is None:
            return original(cfg)
        from lerobot_ext.modality.training import make_selected_datasets

        return make_selected_datasets(original, cfg)

    return make_train_eval_datasets


def _make_pre_post_processors(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def make_pre_post_processors(*args: Any, **kwargs: Any) -> Any:
        processors = original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        policy_cfg = given["policy_cfg"]
        if getattr(getattr(policy_cfg, "_runtime_dataset_meta", None), "selection", None) is None:
            return processors
        from lerobot_ext.modality.training import add_selection_step

        return add_selection_step(policy_cfg, given.get("pretrained_path"), processors)

    return make_pre_post_processors


EXTENSIONS = (
    Extension(
        "lerobot.datasets.factory",
        "make_train_eval_datasets",
        "Decodes everything that was recorded: with a selection, what is not wanted is never decoded.",
        "cfg",
        _make_train_eval_datasets,
    ),
    Extension(
        "lerobot.policies.factory",
        "make_pre_post_processors",
        "Saves the processors with a checkpoint: with a selection, its step comes first among them.",
        "policy_cfg pretrained_path pretrained_revision kwargs",
        _make_pre_post_processors,
    ),
)
