"""Preprocessed observations of several robots as one batch, and which of them can be one.

Knows the dicts that LeRobot's preprocessors put out; knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

Batch = dict[str, Any]

# A task's words; a longer task has more of them, and those that the mask hides count for nothing.
WORDS = (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)


def likeness(batch: Mapping[str, Any], pad_words: bool = False) -> Hashable:
    """Two batches of one sample can be joined if their likenesses are equal.

    Tensors are alike by shape and dtype, texts always, other values if they are equal.

    Args:
        batch: Of one sample.
        pad_words: Let tasks of different lengths be alike; `join` pads them.
    """
    return tuple((name, *_kind(value, pad_words and name in WORDS)) for name, value in sorted(batch.items()))


def pad_words(batch: Mapping[str, Any], length: int) -> Batch:
    """The batch with its task padded to `length` words, which its mask hides."""
    padded = {
        name: torch.nn.functional.pad(batch[name], (0, length - batch[name].shape[-1]))
        for name in WORDS
        if name in batch
    }
    return {**batch, **padded}


def join(batches: Sequence[Mapping[str, Any]]) -> Batch:
    """One batch of batches that are alike; itself if there is one only.

    Args:
        batches: Tensors (1, …); texts as a string or a list of one.
    """
    if len(batches) == 1:
        return dict(batches[0])
    if WORDS[0] in batches[0]:
        longest = max(batch[WORDS[0]].shape[-1] for batch in batches)
        batches = [pad_words(batch, longest) for batch in batches]
    return {name: _joined([batch[name] for batch in batches]) for name in batches[0]}


def stack_steps(steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Batch:
    """Observations of several time steps as one with a time axis after the batch's: (n, …) becomes (n, steps, …).

    Args:
        steps: The oldest first.
        names: What gets the axis; the rest is that of the newest.
    """
    stacked = {
        name: torch.stack([step[name] for step in steps], dim=1) for name in names if name in steps[-1]
    }
    return {**steps[-1], **stacked}


def _kind(value: Any, any_length: bool) -> tuple[str, str]:
    if isinstance(value, Tensor):
        shape = value.shape[:-1] if any_length else value.shape
        return "tensor", f"{tuple(shape)} {value.dtype} {value.device}"
    if _is_text(value):
        return "text", type(value).__name__
    if value is None or isinstance(value, bool | int | float):
        return "value", repr(value)
    if isinstance(value, Mapping) and not value:
        return "value", "{}"
    return "other", str(id(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    )


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], str):
        return list(values)
    if isinstance(values[0], list):
        return [each for value in values for each in value]
    return values[0]
