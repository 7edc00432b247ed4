"""How a function or class of another library is extended; which ones, and why, is said in `compat`.

A library that imports functions by name holds many references to one function, so replacing one means
replacing it in every module that holds it. A module that is not imported yet is extended right after its import.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

ORIGINAL = "__lerobot_ext_original__"


def original_of(function: Callable) -> Callable | None:
    """The function that `function` replaced, or None if it is not one of our wrappers."""
    return getattr(function, ORIGINAL, None)


def parameters_of(function: Callable) -> tuple[str, ...]:
    """Names of the parameters, also of a function behind a decorator that forgot `functools.wraps`."""
    return tuple(signature_of(function).parameters)


def signature_of(function: Callable) -> inspect.Signature:
    """Signature of `function`, looking through a closure `wrapper(*args, **kwargs)` around one named `func`."""
    signature = inspect.signature(function)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        inner = inspect.getclosurevars(function).nonlocals.get("func")
        if callable(inner):
            return signature_of(inner)
    return signature


def wrap(original: Callable, make: Callable[[Callable], Callable]) -> Callable:
    """`make(original)`, named like the original, which stays reachable by `original_of`."""
    wrapper = functools.wraps(original)(make(original))
    setattr(wrapper, ORIGINAL, original)
    return wrapper


def replace_everywhere(old: Any, new: Any) -> list[str]:
    """Put `new` wherever an imported module has `old`, under whatever name.

    Args:
        old: The object to look for, by identity.
        new: What takes its place.

    Returns:
        `module.name` of every place that was changed.
    """
    changed = []
    for module_name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)
                changed.append(f"{module_name}.{name}")
    return changed


def add_enum_member(enum: type[Enum], name: str, value: str) -> None:
    """Add a member to an existing string enumeration, as if its class body had listed it last.

    The class's own bookkeeping is completed (look-up by name and by value, iteration, length, `in`), which is
    what makes pickles and copies of the new member come back as the same object.
    """
    member = str.__new__(enum, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = enum
    member._sort_order_ = len(enum._member_names_)
    type.__setattr__(enum, name, member)
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[value] = member
    if isinstance(hashable := getattr(enum, "_hashable_values_", None), list):  # Python 3.13 and later
        hashable.append(value)


class AfterImport(MetaPathFinder):
    """Calls back right after one of the awaited modules was executed, before its importer sees it.

    Modules that are there already are not awaited; `when_imported` calls back at once for them. A script run as
    `python -m package.script` counts as that module.
    """

    def __init__(self) -> None:
        self._awaited: dict[str, list[Callable[[ModuleType], None]]] = {}
        self._searching: set[str] = set()

    def when_imported(self, names: Iterable[str], callback: Callable[[ModuleType], None]) -> None:
        """Call `callback(module)` for each of the named modules, now or after its import."""
        for name in names:
            running = [m for m in (sys.modules.get(name), _script(name)) if m is not None]
            for module in running:
                callback(module)
            if name not in sys.modules:
                self._awaited.setdefault(name, []).append(callback)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """The spec that the other finders give, with our callbacks behind its loader's execution."""
        if fullname not in self._awaited or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for callback in self._awaited[fullname]:
                callback(module)
            del self._awaited[fullname]

        spec.loader.exec_module = exec_module
        return spec


def _script(name: str) -> ModuleType | None:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return main if spec is not None and spec.name == name else None


after_import = AfterImport()


def install() -> None:
    """Make `after_import` see the imports to come; again does nothing."""
    if after_import not in sys.meta_path:
        sys.meta_path.insert(0, after_import)
