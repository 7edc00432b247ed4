"""One name of another library that is extended: how it must look, and how it is replaced in its module.

What is extended, and why, is the table in `compat`; how a name is replaced everywhere is in `patching`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lerobot_ext import patching
from lerobot_ext.features import FORCE

SUPPORTED = ">=0.6.1,<0.7"


@dataclass(frozen=True)
class Extension:
    """One name of LeRobot's that we extend.

    Attributes:
        module: LeRobot's module that defines it.
        attribute: The name in that module, with a dot for a method; `Class.__new__` for what makes instances.
        reason: Why it has to be extended; a sentence for the docs.
        looks: The parameters (of a function; of a class's construction for its `__new__`) or members (of an
            enumeration) that it must have, in order.
        make: Makes the new function from the original; None for an enumeration that gains FORCE.
    """

    module: str
    attribute: str
    reason: str
    looks: str
    make: Callable[[Callable], Callable] | None = None

    @property
    def name(self) -> str:
        """The full dotted name."""
        return f"{self.module}.{self.attribute}"

    def apply(self, module: ModuleType) -> None:
        """Extend the name in `module`; again does nothing.

        Raises:
            ImportError: It does not look as expected.
        """
        *path, name = self.attribute.split(".")
        owner: Any = module
        for part in path:
            owner = getattr(owner, part, None)
        found = getattr(owner, name, None)
        if found is None:
            raise _unsupported(f" (it has no {self.name})")
        if self.make is None:
            self._add_force(found)
            return
        if patching.original_of(found) is not None:
            return
        static = inspect.getattr_static(owner, name)
        if isinstance(static, classmethod):
            found = static.__func__
        parameters = " ".join(patching.parameters_of(owner if name == "__new__" else found))
        if parameters != self.looks:
            raise _unsupported(f" (its {self.name} takes '{parameters}' instead of '{self.looks}')")
        wrapper = patching.wrap(found, self.make)
        if owner is module:
            patching.replace_everywhere(found, wrapper)
        else:
            kind = staticmethod if name == "__new__" else type(static)
            setattr(owner, name, kind(wrapper) if kind in (classmethod, staticmethod) else wrapper)

    def _add_force(self, enum: Any) -> None:
        members = " ".join(member.value for member in enum)
        if members == self.looks:
            patching.add_enum_member(enum, FORCE.upper(), FORCE.upper())
        elif members != f"{self.looks} {FORCE.upper()}":
            raise _unsupported(f" (its {self.name} has '{members}' instead of '{self.looks}')")


def check_version(found: str) -> None:
    """Raise ImportError, with one sentence, unless LeRobot `found` is in the supported range."""
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(SUPPORTED).contains(found, prereleases=True):
        raise _unsupported("", found)


def _unsupported(what: str, found: str | None = None) -> ImportError:
    found = found or importlib.metadata.version("lerobot")
    return ImportError(
        f"lerobot_ext extends LeRobot {SUPPORTED}, but LeRobot {found} is installed{what}; install one that is "
        f"supported with `pip install 'lerobot{SUPPORTED}'`, or update lerobot_robot_ext."
    )
