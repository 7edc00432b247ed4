"""Pickles for the tests, hostile ones too, and the watch that nothing happens while they are read."""

from __future__ import annotations

import pickle
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from simplify_work.server.doors import pickles
from simplify_work.server.doors.numpy_pickles import NUMPY
from simplify_work.server.doors.pickles import PickleRefused

PROTOCOLS = range(6)
_CAREFUL = {
    "import",
    "exec",
    "compile",
    "open",
    "os.system",
    "subprocess.Popen",
    "socket.connect",
    "marshal.loads",
    "pickle.find_class",
}
_heard: list[tuple] | None = None


def _hear(event, args):
    if _heard is not None and event in _CAREFUL:
        _heard.append((event, args))


sys.addaudithook(_hear)  # can never be taken away again, so it is silent unless `_heard` is a list


class _NoImport:
    """Refuses every import that comes as far as looking for a module."""

    def find_spec(self, name, path=None, target=None):
        raise AssertionError(f"{name} was imported")


@contextmanager
def nothing_happens():
    """Whatever is done inside imports nothing, opens nothing and runs nothing."""
    global _heard
    before, guard = set(sys.modules), _NoImport()
    sys.meta_path.insert(0, guard)
    _heard = []
    try:
        yield
        heard = _heard
    finally:
        _heard = None
        sys.meta_path.remove(guard)
    assert heard == []
    assert set(sys.modules) == before


def read(data, **limits):
    return pickles.read(data, NUMPY, **limits)


def refused(data, **limits):
    with nothing_happens(), pytest.raises(PickleRefused) as caught:
        read(data, **limits)
    return str(caught.value)


def same(found, expected):
    """Equal, also in types, with arrays and nan inside."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray | np.generic):
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected or found != found


# --- writing what nobody should ---


class DTYPE:
    """An argument that is a dtype, with a state."""

    def __init__(self, code, state=(3, "<", None, None, None, -1, -1, 0), args=(False, True)):
        self.code, self.state, self.args = code, state, args


def part(value) -> bytes:
    """Opcodes that put a value on the stack."""
    if isinstance(value, DTYPE):
        made = b"cnumpy\ndtype\n" + part((value.code, *value.args)) + b"R"
        return made + (part(value.state) + b"b" if value.state is not None else b"")
    if isinstance(value, tuple):
        return b"(" + b"".join(map(part, value)) + b"t"
    if isinstance(value, Raw):
        return bytes(value)
    return pickle.dumps(value, 3)[2:-1]


class Raw(bytes):
    """Opcodes as they are."""


def call(module, name, *args) -> bytes:
    return b"\x80\x04c" + f"{module}\n{name}\n".encode() + part(args) + b"R."


def array_state(shape, dtype, raw, fortran=False, version=1) -> bytes:
    blank = b"cnumpy.core.multiarray\n_reconstruct\n" + part((Raw(b"cnumpy\nndarray\n"), (0,), b"b")) + b"R"
    return b"\x80\x04" + blank + part((version, shape, dtype, fortran, raw)) + b"b."
