"""Texts as tensors, for the way that a batch takes from one training process to the others.

With an iterable dataset and several processes, accelerate's first process reads for all and hands out what it read;
it cannot do so with strings (`Can only concatenate tensors`), so that LeRobot's streaming stops at the task.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lerobot_ext.errors import UserError

TEXT_BYTES = 512


def pack(text: str) -> Tensor:
    """A text as (TEXT_BYTES,) uint8, UTF-8 with zeros behind it.

    Raises:
        UserError: If it is longer.
    """
    data = text.encode()
    if len(data) > TEXT_BYTES:
        raise UserError(
            f"'{text[:40]}…' has {len(data)} bytes; streaming in several processes takes texts of up to {TEXT_BYTES}. "
            "Shorten it, or set dataset.streaming: false."
        )
    return torch.tensor([*data.ljust(TEXT_BYTES, b"\0")], dtype=torch.uint8)


def unpack(texts: Any) -> Any:
    """The strings of a batch (B, TEXT_BYTES) uint8; what is no tensor is given back."""
    if not isinstance(texts, Tensor):
        return texts
    return [bytes(row).rstrip(b"\0").decode() for row in texts.cpu().tolist()]
