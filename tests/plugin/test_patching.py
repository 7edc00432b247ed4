import sys
from enum import Enum
from types import ModuleType

import pytest

from lerobot_ext import patching


def module_named(monkeypatch, name, **names):
    module = ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_every_module_that_holds_the_object_gets_the_new_one(monkeypatch):
    def old():
        return "old"

    home = module_named(monkeypatch, "home_of_it", f=old)
    user = module_named(monkeypatch, "user_of_it", g=old, other=print)
    changed = patching.replace_everywhere(old, print)
    assert {"home_of_it.f", "user_of_it.g"} <= set(changed)
    assert home.f is print and user.g is print and user.other is print


def test_a_wrapper_keeps_name_and_original():
    def work(a, b):
        """Doc."""
        return a + b

    wrapper = patching.wrap(work, lambda original: lambda a, b: -original(a, b))
    assert (wrapper(1, 2), wrapper.__name__, wrapper.__doc__) == (-3, "work", "Doc.")
    assert patching.original_of(wrapper) is work and patching.original_of(work) is None


def test_parameters_are_seen_through_a_decorator_without_wraps():
    def decorator(func):
        def wrapper(*args, **kwargs):
            return func(*args, **kwargs)

        return wrapper

    @decorator
    def work(robot, dataset=None): ...

    assert patching.parameters_of(work) == ("robot", "dataset")


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = f"awaited_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def finder(monkeypatch):
    finder = patching.AfterImport()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    return finder


def test_a_module_is_extended_after_its_import_and_before_its_importer_sees_it(package, finder):
    finder.when_imported([package], lambda module: setattr(module, "f", lambda: 2))
    assert __import__(package).f() == 2


def test_a_module_that_is_there_is_extended_at_once(package, finder):
    module = __import__(package)
    finder.when_imported([package], lambda module: setattr(module, "f", lambda: 2))
    assert module.f() == 2


def test_a_script_run_as_main_counts_as_the_module(package, finder, monkeypatch):
    main = ModuleType("__main__")
    main.__spec__ = type("Spec", (), {"name": package})()
    monkeypatch.setitem(sys.modules, "__main__", main)
    finder.when_imported([package], lambda module: setattr(module, "f", lambda: 2))
    assert main.f() == 2


def test_an_import_that_does_not_fit_fails_every_time(package, finder):
    def refuse(module):
        raise ImportError("does not fit")

    finder.when_imported([package], refuse)
    for _ in range(2):
        with pytest.raises(ImportError, match="does not fit"):
            __import__(package)


def test_a_new_enum_member_behaves_like_the_others():
    class Color(str, Enum):  # noqa: UP042  (LeRobot's enumerations are made like this)
        RED = "RED"

    patching.add_enum_member(Color, "BLUE", "BLUE")
    assert Color("BLUE") is Color["BLUE"] is Color.BLUE
    assert Color.BLUE == "BLUE" and isinstance(Color.BLUE, Color) and Color.BLUE in Color
    assert [c.name for c in Color] == ["RED", "BLUE"] and len(Color) == 2
    assert repr(Color.BLUE) == "<Color.BLUE: 'BLUE'>" and hash(Color.BLUE) == hash(Color("BLUE"))
    with pytest.raises(AttributeError):
        Color.BLUE = "GREEN"
