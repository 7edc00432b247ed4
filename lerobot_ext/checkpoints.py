"""Checkpoints of a training run on disk: written whole or not at all, found again, and continued exactly.

A checkpoint directory holds `pretrained_model/` and `training_state/` as LeRobot lays them out; what is in their files
is LeRobot's business.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lerobot_ext.errors import UserError
from lerobot_ext.recording.files import remove, sync_all, temp_beside, temp_files

CHECKPOINTS, LAST, MODEL, STATE = "checkpoints", "last", "pretrained_model", "training_state"
TRAIN_CONFIG = "train_config.json"
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")

logger = logging.getLogger(__name__)


# --- writing ---


def save_whole(save: Callable[[Path], None], checkpoint: Path) -> None:
    """Write a checkpoint beside its place and rename it: under its own name there is never half of one.

    Args:
        save: Writes the checkpoint into the directory that it is given.
        checkpoint: Where it shall be; one that is there already is replaced.
    """
    for left in temp_files(checkpoint.parent):
        remove(left)  # of a process that was killed here
    part = temp_beside(checkpoint)
    save(part)
    sync_all([part, *part.rglob("*")])
    if checkpoint.is_dir():
        # Two renames: between them only older checkpoints are there, which `resumable` falls back to.
        old = temp_beside(checkpoint)
        os.replace(checkpoint, old)
        os.replace(part, checkpoint)
        remove(old)
    else:
        os.replace(part, checkpoint)
    sync_all([checkpoint.parent])


def point_to(checkpoint: Path) -> None:
    """Make the link `last` beside a checkpoint point to it; at every instant there is one that points to something."""
    link = checkpoint.parent / LAST
    temp = temp_beside(link)
    temp.symlink_to(checkpoint.name)
    os.replace(temp, link)
    sync_all([checkpoint.parent])


# --- finding ---


def resumable(path: str) -> tuple[Path, str | None]:
    """The train config of the checkpoint to go on from.

    Args:
        path: What the user named: a `train_config.json`, its directory, a checkpoint's directory, or a run's output
            directory, which stands for its last checkpoint.

    Returns:
        The file, and a sentence if it is not in the checkpoint that was named, because that one is not whole.

    Raises:
        UserError: There is no whole checkpoint, or the one that was named by its number is not whole.
    """
    checkpoint = _checkpoint_of(Path(path))
    fault = "it is not there" if not checkpoint.is_dir() else incomplete(checkpoint)
    if fault is None:
        return checkpoint / MODEL / TRAIN_CONFIG, None
    named = checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.name
    newest = _newest_whole(checkpoint.parent)
    if newest is None:
        raise UserError(
            f"checkpoint {checkpoint} cannot be resumed: {fault}; {checkpoint.parent} has no whole one. Start again, "
            "with another output_dir."
        )
    if checkpoint.name != LAST:
        raise UserError(
            f"checkpoint {checkpoint} cannot be resumed: {fault}. The newest whole one is {newest}; give "
            f"--config_path={newest / MODEL / TRAIN_CONFIG}"
        )
    return (
        newest / MODEL / TRAIN_CONFIG,
        f"checkpoint '{named}' of {checkpoint.parent} is not whole ({fault}); going on from {newest.name}.",
    )


def incomplete(checkpoint: Path) -> str | None:
    """What is missing or cut short in a checkpoint; None if it is whole.

    Looks at the files' structure (JSON that ends, safetensors as long as their header says), not at their content.
    """
    needed = [MODEL + "/config.json", f"{MODEL}/{TRAIN_CONFIG}", STATE + "/training_step.json"]
    needed.append(STATE + "/rng_state.safetensors")
    for name in needed:
        if not (checkpoint / name).is_file():
            return f"it has no {name}"
    for file in sorted(checkpoint.rglob("*.json")):
        if not _is_json(file):
            return f"{file.relative_to(checkpoint)} is cut short"
    for file in sorted(checkpoint.rglob("*.safetensors")):
        if not _is_safetensors(file):
            return f"{file.relative_to(checkpoint)} is cut short"
    if not any((checkpoint / MODEL / name).is_file() for name in _WEIGHTS):
        return f"it has no {MODEL}/{_WEIGHTS[0]}"
    # The last files that LeRobot writes.
    if not any((checkpoint / STATE).rglob("optimizer_param_groups.json")):
        return f"it has no {STATE}/optimizer_param_groups.json"
    config = json.loads((checkpoint / MODEL / TRAIN_CONFIG).read_text())
    if config.get("scheduler") and not (checkpoint / STATE / "scheduler_state.json").is_file():
        return f"it has no {STATE}/scheduler_state.json"
    return None


def _checkpoint_of(path: Path) -> Path:
    if path.name == TRAIN_CONFIG:
        path = path.parent
    if path.name == MODEL:
        return path.parent
    return path / CHECKPOINTS / LAST if (path / CHECKPOINTS).is_dir() else path


def _newest_whole(folder: Path) -> Path | None:
    numbered = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    newest_first = sorted(numbered, key=lambda path: int(path.name), reverse=True)
    return next((path for path in newest_first if incomplete(path) is None), None)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def _is_safetensors(file: Path) -> bool:
    """Whether the file is as long as its header says (https://huggingface.co/docs/safetensors, "Format")."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            return False
        try:
            header = json.loads(opened.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return file.stat().st_size == 8 + length + max(ends, default=0)


# --- going on ---


class Position:
    """Where in the data a resumed run goes on: what LeRobot sets on its sampler and accelerate then takes away.

    accelerate counts the epochs of its loader from 0 and tells the sampler so when it starts one, which makes a resumed
    run repeat the order of the first epochs (https://github.com/huggingface/lerobot/pull/4692). And a loader that is
    started draws a number from the generator whose state was just restored, which an uninterrupted run does only at
    the beginning of an epoch.
    """

    def __init__(self, epoch: int, start_index: int) -> None:
        """Remember the epoch and, in the middle of one, the state of torch's generator."""
        self._epoch = epoch
        self._offset: int | None = None
        self._generator = torch.get_rng_state() if start_index else None

    def epoch(self, counted: int) -> int:
        """The epoch that accelerate's `counted` stands for."""
        if self._offset is None:
            self._offset = self._epoch if counted == 0 else 0
        return counted + self._offset

    def started(self) -> None:
        """The loader has started and drawn its number: restore the generator, once."""
        if self._generator is not None:
            torch.set_rng_state(self._generator)
            self._generator = None


POSITION = "_lerobot_ext_position"


def remember(sampler: Any, state: dict[str, int]) -> None:
    """A sampler was told where to go on."""
    setattr(sampler, POSITION, Position(state["epoch"], state["start_index"]))


def epoch_of(sampler: Any, counted: int) -> int:
    """The epoch that accelerate's count stands for; the count itself in a run that was not resumed."""
    position = getattr(sampler, POSITION, None)
    return counted if position is None else position.epoch(counted)


def begin(sampler: Any, indices: Iterator[int]) -> Iterator[int]:
    """The sampler's `indices`, once the loader that asks for them has started."""
    position = getattr(sampler, POSITION, None)
    if position is not None:
        position.started()
    return indices
