"""Every place where LeRobot is extended: what, why, and how it must look for the extension to fit.

Nothing outside this package replaces or wraps a name of LeRobot's. `apply` installs all of it; each extension is
made when LeRobot's module is there, or right after its import, so that nothing is imported for its sake.
"""

from __future__ import annotations

import importlib.metadata

from lerobot_ext import patching
from lerobot_ext.compat import (
    checkpoints,
    devices,
    engines,
    features,
    live_view,
    loops,
    policies,
    recordings,
    tips,
    training,
)
from lerobot_ext.extension import check_version

EXTENSIONS = tuple(
    extension
    for module in (
        features,
        loops,
        engines,
        recordings,
        live_view,
        tips,
        training,
        checkpoints,
        policies,
        devices,
    )
    for extension in module.EXTENSIONS
)


def table() -> list[tuple[str, str]]:
    """What is extended: (full name, reason), in the order of the docs."""
    return [(extension.name, extension.reason) for extension in EXTENSIONS]


def apply() -> None:
    """Extend LeRobot, in what is imported by now and in what will be; again does nothing.

    Raises:
        ImportError: LeRobot's version or one of the names is not what we know how to extend.
    """
    check_version(importlib.metadata.version("lerobot"))
    if _applied:
        return
    patching.install()
    for extension in EXTENSIONS:
        patching.after_import.when_imported([extension.module], extension.apply)
    patching.after_import.when_imported(["lerobot.rollout.inference.factory"], engines.register)
    _applied.append(True)


_applied: list[bool] = []
