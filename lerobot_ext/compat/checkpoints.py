"""Checkpoints: whole or not at all, and continued where they ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lerobot_ext import patching
from lerobot_ext.extension import Extension


def _save_checkpoint(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def save_checkpoint(*args: Any, **kwargs: Any) -> None:
        from lerobot_ext.checkpoints import save_whole

        given = signature.bind(*args, **kwargs).arguments
        checkpoint = Path(given.pop("checkpoint_dir"))
        save_whole(lambda folder: original(folder, **given), checkpoint)

    return save_checkpoint


def _update_last_checkpoint(original: Callable) -> Callable:
    def update_last_checkpoint(checkpoint_dir: Path) -> None:
        from lerobot_ext.checkpoints import point_to

        point_to(Path(checkpoint_dir))

    return update_last_checkpoint


def _load_state_dict(original: Callable) -> Callable:
    def load_state_dict(self: Any, state: dict) -> None:
        from lerobot_ext.checkpoints import remember

        original(self, state)
        remember(self, state)

    return load_state_dict


def _set_epoch(original: Callable) -> Callable:
    def set_epoch(self: Any, epoch: int) -> None:
        from lerobot_ext.checkpoints import epoch_of

        original(self, epoch_of(self, epoch))

    return set_epoch


def _iterate(original: Callable) -> Callable:
    def __iter__(self: Any) -> Iterator[int]:  # noqa: N807 (it is the method that it replaces)
        from lerobot_ext.checkpoints import begin

        return begin(self, original(self))

    return __iter__


EXTENSIONS = (
    Extension(
        "lerobot.common.train_utils",
        "save_checkpoint",
        "Writes into the checkpoint's own directory: after a kill, half of one looks like a whole one.",
        "checkpoint_dir step cfg policy optimizer scheduler preprocessor postprocessor num_processes batch_size "
        "model_state_dict optim_state_dict",
        _save_checkpoint,
    ),
    Extension(
        "lerobot.common.train_utils",
        "update_last_checkpoint",
        "Removes the link `last` before it makes the new one: it is replaced at once.",
        "checkpoint_dir",
        _update_last_checkpoint,
    ),
    Extension(
        "lerobot.datasets.sampler",
        "EpisodeAwareSampler.load_state_dict",
        "Is told where a resumed run goes on, which accelerate overrides: it is remembered.",
        "self state",
        _load_state_dict,
    ),
    Extension(
        "lerobot.datasets.sampler",
        "EpisodeAwareSampler.set_epoch",
        "Is told by accelerate that a resumed run begins with epoch 0: it goes on with its own.",
        "self epoch",
        _set_epoch,
    ),
    Extension(
        "lerobot.datasets.sampler",
        "EpisodeAwareSampler.__iter__",
        "Is started by a loader that has drawn from the restored random generator: its state is put back.",
        "self",
        _iterate,
    ),
)
