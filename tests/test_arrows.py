"""Who may import whom (docs: architecture), read from every import statement, also those inside functions."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lerobot_ext", "simplify_work", "lerobot_robot_ext")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def imports(module: str) -> dict[str, bool]:
    """Every module that `module` imports: whether at its own import, not only when a function is called."""
    path = MODULES[module]
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        for name in _named(node, module, path):
            found[name] = found.get(name, False) or id(node) not in lazy
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _named(node: ast.AST, module: str, path: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        name = node.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return [name.value]
    return []


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def modules_in(*packages: str) -> list[str]:
    return [module for module in MODULES if inside(module, *packages)]


def offences(modules: list[str], forbidden, eager_only: bool = False) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in modules
        for name, eager in imports(module).items()
        if forbidden(name) and (eager or not eager_only)
    ]


def test_there_is_something_to_check():
    assert len(MODULES) > 20
    assert "lerobot_ext.features" in imports("lerobot_ext.compat.features")
    assert imports("lerobot_ext.compat.loops")["lerobot_ext.recording.episodes.episode"] is False


def test_the_wire_knows_numpy_msgspec_and_zmq_only():
    allowed = (*sys.stdlib_module_names, "numpy", "msgspec", "zmq", "simplify_work.wire")
    pictures = "simplify_work.wire.pictures"
    others = [module for module in modules_in("simplify_work.wire") if module != pictures]
    assert offences(others, lambda name: not inside(name, *allowed)) == []
    codecs = (*allowed, "simplejpeg", "zstandard", "cv2")
    assert offences([pictures], lambda name: not inside(name, *codecs)) == []
    assert offences([pictures], lambda name: not inside(name, *allowed), eager_only=True) == []


def test_the_local_side_knows_the_wire_and_never_the_server():
    allowed = (
        *sys.stdlib_module_names,
        "numpy",
        "msgspec",
        "zmq",
        "simplify_work.wire",
        "simplify_work.local",
    )
    local = modules_in("simplify_work.local")
    assert offences(local, lambda name: inside(name, "simplify_work.server")) == []
    assert (
        offences(local, lambda name: inside(name, "torch", "lerobot", "lerobot_ext"), eager_only=True) == []
    )
    assert offences(local, lambda name: not inside(name, *allowed), eager_only=True) == []


def test_the_server_knows_neither_commands_nor_the_lab_nor_the_robots_side():
    forbidden = ("lerobot_ext.commands", "lerobot_ext.virtual", "simplify_work.local")
    assert offences(modules_in("simplify_work.server"), lambda name: inside(name, *forbidden)) == []


def test_nothing_imports_commands():
    others = [
        m for m in MODULES if not inside(m, "lerobot_ext.commands") and m not in ("lerobot_ext.__main__",)
    ]
    assert offences(others, lambda name: inside(name, "lerobot_ext.commands")) == []


def test_the_lab_is_imported_by_commands_and_lazily_by_drivers():
    drivers = modules_in("lerobot_ext.cameras", "lerobot_ext.sensors", "lerobot_ext.robots")
    others = [
        m
        for m in MODULES
        if not inside(m, "lerobot_ext.commands", "lerobot_ext.virtual") and m not in drivers
    ]
    assert offences(others, lambda name: inside(name, "lerobot_ext.virtual")) == []
    assert offences(drivers, lambda name: inside(name, "lerobot_ext.virtual"), eager_only=True) == []


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("lerobot_ext.sensors", ("lerobot.datasets", "lerobot_ext.modality", "lerobot_ext.robots", "torch")),
        ("lerobot_ext.cameras", ("lerobot.datasets", "lerobot_ext.modality", "lerobot_ext.robots", "torch")),
        ("lerobot_ext.modality", ("lerobot_ext.cameras", "lerobot_ext.sensors", "lerobot_ext.robots")),
        ("lerobot_ext.features", ("lerobot", "torch")),
        ("lerobot_ext.patching", ("lerobot", "torch")),
    ],
)
def test_a_room_knows_nothing_of_the_others(room, forbidden):
    assert offences(modules_in(room), lambda name: inside(name, *forbidden)) == []


def _assigned(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [node.target]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
        return [ast.Attribute(value=node.args[0], attr="")]
    return []


def test_only_compat_replaces_names_of_lerobot():
    found = []
    for module, path in MODULES.items():
        if inside(module, "lerobot_ext.compat", "lerobot_ext.patching"):
            continue
        tree = ast.parse(path.read_text())
        theirs = {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if inside(getattr(node, "module", None) or alias.name, "lerobot")
        }
        for node in ast.walk(tree):
            for target in _assigned(node):
                root = target
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in theirs:
                    found.append(f"{module}:{node.lineno} sets {ast.unparse(target)}")
    assert found == []
    patchers = [m for m in MODULES if not inside(m, "lerobot_ext.compat", "lerobot_ext.extension")]
    assert offences(patchers, lambda name: inside(name, "lerobot_ext.patching")) == []
    assert offences(patchers, lambda name: inside(name, "lerobot_ext.extension")) == []
