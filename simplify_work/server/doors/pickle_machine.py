"""The machine that interprets a pickle's opcodes (`pickletools` describes them) with a table in place of imports.

It has a stack with marks and a memo, as Python's own; every size is checked against what is left of the stream before
anything is allocated, every opcode and every byte that is built is counted, and nothing recurses. What comes out has
still to be checked as a whole, which `pickles` does.
"""

from __future__ import annotations

import codecs
import pickle
import pickletools
import re
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from simplify_work.server.doors.pickle_kinds import Kind, Known, PickleRefused

PLAIN = (type(None), bool, int, float, str, bytes, bytearray)

# What is built may take this many times the stream: text with one rare letter takes 4 bytes a letter, an array is built
# of bytes that were themselves built. Each object takes some bytes beside what it holds.
BUILT_FACTOR = 4
OBJECT_BYTES = 256

_MAX_LINE = 256  # of a number or a name in the opcodes of protocol 0
_MAX_DIGITS = 40
_MAX_INT_BYTES = 16
_MAX_PROTOCOL = 5
_MAX_KEY = 1000  # letters; long ones that are equal cost time each time they are compared
_MAX_PARTS = 16  # arguments of a call, or parts of a state: what is counted before each call, however often it is named

_NEWLINE = re.compile(b"\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_LEAF = Kind()


def size_of(value: Any) -> int:
    """Bytes that an object itself takes, those of its parts aside."""
    return value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value)


class _Name:
    """What a pickle's name stands for; never part of a result."""

    def __init__(self, kind: Kind | Callable[..., Any]) -> None:
        self.kind = kind if isinstance(kind, Kind) else None
        self.call = kind.call if isinstance(kind, Kind) else kind


class Machine:
    """The state of one reading.

    Attributes:
        made: What builders made, with its kind, by id; held here, so that no other object gets that id.
    """

    def __init__(self, view: memoryview, known: Known, max_items: int) -> None:
        self.view = view
        self.known = known
        self.max_items = max_items
        self.budget = BUILT_FACTOR * len(view) + OBJECT_BYTES * max_items
        self.at = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.made: dict[int, tuple[Any, Kind]] = {}
        self.built: set[int] = set()

    def run(self) -> Any:
        """Interpret the stream up to its STOP, which must be its end."""
        for _ in range(self.max_items):
            code = self.take(1)[0]
            if code == pickle.STOP[0]:
                break
            handler = _HANDLERS.get(code)
            if handler is None:
                what = _OPCODES.get(code, f"no opcode: {code:#04x}")
                raise PickleRefused(f"a pickle has the opcode {what}, which is not read here.")
            handler(self)
        else:
            raise PickleRefused(f"a pickle has more than {self.max_items} opcodes.")
        if self.at != len(self.view) or self.marked or len(self.stack) != 1:
            raise PickleRefused("a pickle does not end where its one object does.")
        return self.stack[0]

    # --- what handlers do ---

    def take(self, length: int) -> memoryview:
        """The next bytes."""
        if not 0 <= length <= len(self.view) - self.at:
            raise PickleRefused(f"a pickle ends early: {length} more bytes are announced.")
        found = self.view[self.at : self.at + length]
        self.at += length
        return found

    def unpack(self, form: str) -> Any:
        """The next number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, longest: int | None = _MAX_LINE) -> bytes:
        """What is before the next line end."""
        end = _NEWLINE.search(self.view, self.at)
        if end is None or (longest is not None and end.start() - self.at > longest):
            raise PickleRefused("a pickle has a line that does not end, or not soon enough.")
        found = bytes(self.take(end.start() - self.at))
        self.at += 1
        return found

    def charge(self, *values: Any) -> None:
        """Count bytes that were, or are about to be, built."""
        if len(values) > _MAX_PARTS:
            raise PickleRefused(f"a pickle makes one object of {len(values)} parts.")
        self.budget -= sum(map(size_of, values))
        if self.budget < 0:
            raise PickleRefused("a pickle builds far more than it holds.")

    def push(self, value: Any) -> None:
        """Put an object on the stack."""
        self.charge(value)
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """What is above the last mark."""
        found, self.stack = self.stack, self.marked.pop()
        return found

    def remember(self, key: int) -> None:
        """Put the top of the stack in the memo."""
        if not 0 <= key < 2**32:
            raise PickleRefused("a pickle's memo has a key that is out of range.")
        self.memo[key] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        """Look a name up in the table, and nowhere else."""
        if type(module) is not str or type(name) is not str:
            raise PickleRefused("a pickle has a name that is no text.")
        if (module, name) not in self.known:
            raise PickleRefused(
                f"a pickle wants {module:.100}.{name:.100}, which is not among what is read here."
            )
        self.stack.append(_Name(self.known[module, name]))

    def call(self, make: str, args: Any, kwargs: Any) -> None:
        """Let the builder of the name on the stack make an object."""
        name = self.stack.pop()
        if type(name) is not _Name or type(args) is not tuple or type(kwargs) is not dict:
            raise PickleRefused(
                "a pickle calls something that is no name, or with something that are no arguments."
            )
        self.charge(*args, *kwargs.values())
        if make == "call":
            made = name.call(*args)
        elif name.kind is None:
            raise PickleRefused("a pickle makes an instance of a function.")
        else:
            made = name.kind.new(*args, **kwargs)
        if type(made) not in (*PLAIN, list, tuple, dict):
            self.made[id(made)] = made, name.kind or _LEAF
        self.push(made)

    def build(self) -> None:
        """Let the builder of the object on the stack give it a state."""
        state = self.stack.pop()
        made = self.stack[-1]
        if id(made) not in self.made or id(made) in self.built:
            raise PickleRefused(
                f"a pickle gives a state to a {type(made).__name__}, which takes none (any more)."
            )
        self.built.add(id(made))
        self.charge(*(state if type(state) is tuple else (state,)))
        self.made[id(made)][1].build(made, state)

    def extend(self, values: list[Any]) -> None:
        """Add values to the list on the stack."""
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleRefused(f"a pickle appends to a {type(target).__name__}.")
        target.extend(values)

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        """Add keys and values, in turn, to a dictionary."""
        if type(target) is not dict or len(pairs) % 2:
            raise PickleRefused(
                f"a pickle sets items of a {type(target).__name__}, or a key without a value."
            )
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:  # its hash cannot be chosen, and does not recurse
                raise PickleRefused(f"a pickle has a {type(key).__name__} as a key, expected text.")
            if len(key) > _MAX_KEY:
                raise PickleRefused(f"a pickle has a key of {len(key)} letters, expected {_MAX_KEY} at most.")
            target[key] = value


def _proto(machine: Machine) -> None:
    if (protocol := machine.take(1)[0]) > _MAX_PROTOCOL:
        raise PickleRefused(f"a pickle has protocol {protocol}, up to {_MAX_PROTOCOL} is read.")


def _frame(machine: Machine) -> None:
    if machine.unpack("<Q") > len(machine.view) - machine.at:
        raise PickleRefused("a pickle ends early: a frame is longer than what is left.")


def _int_line(machine: Machine) -> None:
    line = machine.line()
    machine.push(line == b"01" if line in (b"00", b"01") else _integer(line))


def _integer(line: bytes) -> int:
    if len(line) > _MAX_DIGITS:
        raise PickleRefused("a pickle has a number of too many digits.")
    return int(line)


def _long(machine: Machine, length: int) -> None:
    if not 0 <= length <= _MAX_INT_BYTES:
        raise PickleRefused(f"a pickle has a number of {length} bytes, {_MAX_INT_BYTES} are read at most.")
    machine.push(int.from_bytes(machine.take(length), "little", signed=True))


def _latin(machine: Machine, form: str) -> None:
    """Python 2's strings, which may be bytes: each is the letter of that number."""
    machine.push(str(machine.take(machine.unpack(form)), "latin-1"))


def _unicode(machine: Machine, form: str) -> None:
    machine.push(str(machine.take(machine.unpack(form)), "utf-8"))


def _unicode_line(machine: Machine) -> None:
    line = machine.line(None)
    machine.charge(line)
    text = codecs.raw_unicode_escape_decode(line)[0]  # by name, it would be imported when it is first wanted
    if _SURROGATE.search(text):
        raise PickleRefused("a pickle has text that is not Unicode.")
    machine.push(text)


def _bytes(machine: Machine, form: str, make: type = bytes) -> None:
    machine.push(make(machine.take(machine.unpack(form))))


def _get(machine: Machine, key: int) -> None:
    if key not in machine.memo:
        raise PickleRefused("a pickle wants something of its memo that is not there.")
    machine.stack.append(machine.memo[key])


def _tuple(machine: Machine, length: int) -> None:
    if length > len(machine.stack):
        raise PickleRefused("a pickle makes a tuple of more than there is.")
    parts = machine.stack[len(machine.stack) - length :]
    del machine.stack[len(machine.stack) - length :]
    machine.push(tuple(parts))


def _dict(machine: Machine) -> None:
    found: dict[str, Any] = {}
    machine.set_items(found, machine.pop_mark())
    machine.push(found)


def _set_items(machine: Machine, pairs: list[Any]) -> None:
    machine.set_items(machine.stack[-1], pairs)


def _mark(machine: Machine) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _new_ex(machine: Machine) -> None:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    machine.call("new", args, kwargs)


def _line_name(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.name(module.decode(), name.decode())


def _stack_name(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _last(machine: Machine, count: int) -> list[Any]:
    found = [machine.stack.pop() for _ in range(count)]
    return found[::-1]


# Not here, and so refused: persistent ids, the extension registry, INST and OBJ, sets, buffers out of band, and the
# strings of Python 2's protocol 0.
_HANDLERS: dict[int, Callable[[Machine], object]] = {
    code[0]: handler
    for code, handler in (
        (pickle.PROTO, _proto),
        (pickle.FRAME, _frame),
        (pickle.MARK, _mark),
        (pickle.POP, _pop),
        (pickle.POP_MARK, lambda r: r.pop_mark()),
        (pickle.DUP, lambda r: r.stack.append(r.stack[-1])),
        (pickle.NONE, lambda r: r.push(None)),
        (pickle.NEWTRUE, lambda r: r.push(True)),
        (pickle.NEWFALSE, lambda r: r.push(False)),
        (pickle.INT, _int_line),
        (pickle.LONG, lambda r: r.push(_integer(r.line().removesuffix(b"L")))),
        (pickle.BININT, lambda r: r.push(r.unpack("<i"))),
        (pickle.BININT1, lambda r: r.push(r.unpack("<B"))),
        (pickle.BININT2, lambda r: r.push(r.unpack("<H"))),
        (pickle.LONG1, lambda r: _long(r, r.unpack("<B"))),
        (pickle.LONG4, lambda r: _long(r, r.unpack("<i"))),
        (pickle.FLOAT, lambda r: r.push(float(r.line()))),
        (pickle.BINFLOAT, lambda r: r.push(r.unpack(">d"))),
        (pickle.BINSTRING, lambda r: _latin(r, "<i")),
        (pickle.SHORT_BINSTRING, lambda r: _latin(r, "<B")),
        (pickle.UNICODE, _unicode_line),
        (pickle.SHORT_BINUNICODE, lambda r: _unicode(r, "<B")),
        (pickle.BINUNICODE, lambda r: _unicode(r, "<I")),
        (pickle.BINUNICODE8, lambda r: _unicode(r, "<Q")),
        (pickle.SHORT_BINBYTES, lambda r: _bytes(r, "<B")),
        (pickle.BINBYTES, lambda r: _bytes(r, "<I")),
        (pickle.BINBYTES8, lambda r: _bytes(r, "<Q")),
        (pickle.BYTEARRAY8, lambda r: _bytes(r, "<Q", bytearray)),
        (pickle.EMPTY_TUPLE, lambda r: r.push(())),
        (pickle.TUPLE1, lambda r: _tuple(r, 1)),
        (pickle.TUPLE2, lambda r: _tuple(r, 2)),
        (pickle.TUPLE3, lambda r: _tuple(r, 3)),
        (pickle.TUPLE, lambda r: r.push(tuple(r.pop_mark()))),
        (pickle.EMPTY_LIST, lambda r: r.push([])),
        (pickle.LIST, lambda r: r.push(r.pop_mark())),
        (pickle.APPEND, lambda r: r.extend(_last(r, 1))),
        (pickle.APPENDS, lambda r: r.extend(r.pop_mark())),
        (pickle.EMPTY_DICT, lambda r: r.push({})),
        (pickle.DICT, _dict),
        (pickle.SETITEM, lambda r: _set_items(r, _last(r, 2))),
        (pickle.SETITEMS, lambda r: _set_items(r, r.pop_mark())),
        (pickle.GET, lambda r: _get(r, _integer(r.line()))),
        (pickle.BINGET, lambda r: _get(r, r.unpack("<B"))),
        (pickle.LONG_BINGET, lambda r: _get(r, r.unpack("<I"))),
        (pickle.PUT, lambda r: r.remember(_integer(r.line()))),
        (pickle.BINPUT, lambda r: r.remember(r.unpack("<B"))),
        (pickle.LONG_BINPUT, lambda r: r.remember(r.unpack("<I"))),
        (pickle.MEMOIZE, lambda r: r.remember(len(r.memo))),
        (pickle.GLOBAL, _line_name),
        (pickle.STACK_GLOBAL, _stack_name),
        (pickle.REDUCE, lambda r: r.call("call", r.stack.pop(), {})),
        (pickle.NEWOBJ, lambda r: r.call("new", r.stack.pop(), {})),
        (pickle.NEWOBJ_EX, _new_ex),
        (pickle.BUILD, lambda r: r.build()),
    )
}
