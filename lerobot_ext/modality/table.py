"""What is said before the first step: every recorded feature, used or not and why, in shapes before and after.

The decision is made in `plan`; what is odd about the values is found in `scan`.
"""

from __future__ import annotations

from collections.abc import Iterable

from lerobot_ext.modality.plan import LANGUAGE, OBS_PREFIX, OTHER, Use

HEAD = ("recorded", "shape", "used", "the network sees", "why")


def table(plan: Iterable[Use]) -> str:
    """One line a feature, under a head line, in columns; bookkeeping (`timestamp`, `index`) is seen by no network."""
    rows = [HEAD]
    for use in plan:
        recorded, used = _shape(use.recorded["shape"]), "yes" if use.used else "no"
        rows.append((use.key, recorded, used, _seen(use), use.why))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _seen(use: Use) -> str:
    if use.used and use.kind == LANGUAGE:
        return "task"
    bookkeeping = use.kind == OTHER and not use.key.startswith((OBS_PREFIX, "action"))
    return f"{use.seen_as} {_shape(use.seen)}" if use.seen_as and not bookkeeping else "-"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
