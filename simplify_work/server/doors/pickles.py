"""A reader of foreign pickles that builds plain data and what a table names, and never imports or calls anything else.

Python's own unpickler does what the stream says. This one looks a name in the stream up in the reader's table, and
nowhere else; it reads everything within limits of bytes, objects and depth. How opcodes are interpreted is in
`pickle_machine`, what a table may have in `pickle_kinds` and `numpy_pickles`.
"""

from __future__ import annotations

from typing import Any

from simplify_work.server.doors.numpy_pickles import NUMPY
from simplify_work.server.doors.pickle_kinds import Kind, Known, PickleRefused
from simplify_work.server.doors.pickle_machine import BUILT_FACTOR, OBJECT_BYTES, PLAIN, Machine, size_of

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_ITEMS", "NUMPY", "Kind", "Known", "PickleRefused", "read"]

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 32
MAX_ITEMS = 20_000


def read(
    data: bytes | memoryview,
    known: Known,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_items: int = MAX_ITEMS,
) -> Any:
    """What a pickle of protocol 0 to 5 holds.

    Args:
        data: The whole pickle, buffers in band.
        known: Builders by the (module, name) that the pickle has for a class or a function. A plain callable is
            called with the stream's arguments (REDUCE).
        max_bytes: Of the pickle; what is built of it may take four times as much.
        max_depth: Containers inside each other, at most.
        max_items: Opcodes, and parts of the result however they are shared, at most.

    Returns:
        None, bool, int (16 bytes at most), float, str, bytes, bytearray, list, tuple, dict with str keys, and what
        the builders return.

    Raises:
        PickleRefused: If anything else is wanted, or the pickle is broken or too large. Nothing was imported, and
            nothing called but the builders.
    """
    view = memoryview(data).cast("B")
    if len(view) > max_bytes:
        raise PickleRefused(f"a pickle has {len(view)} bytes, {max_bytes} are read at most.")
    try:
        machine = Machine(view, known, max_items)
        result = machine.run()
        _check(result, machine, BUILT_FACTOR * max_bytes + OBJECT_BYTES * max_items, max_depth, max_items)
    except PickleRefused:
        raise
    except Exception as error:  # whatever a hostile stream may lead to is a refusal
        raise PickleRefused(f"a pickle cannot be read ({type(error).__name__}: {error!s:.200}).") from error
    return result


def _check(result: Any, machine: Machine, max_bytes: int, max_depth: int, max_items: int) -> None:
    """Refuse a result that holds itself, is too deep, or is too large for who walks through it.

    Parts that are shared count each time, as they do for whoever copies or prints the result.
    """
    sizes: dict[int, tuple[int, int, int]] = {}  # parts, bytes and depth of what was walked through
    open_ids: set[int] = set()
    todo = [(result, False)]
    while todo:
        value, done = todo.pop()
        key = id(value)
        if not done:
            if key in sizes:
                continue
            if key in open_ids:
                raise PickleRefused("a pickle holds an object that contains itself.")
        parts = _parts(value, machine)
        if parts and not done:
            open_ids.add(key)
            todo.append((value, True))
            todo.extend((part, False) for part in parts if id(part) not in sizes)
            continue
        inner = [sizes[id(part)] for part in parts]
        count = 1 + sum(each[0] for each in inner)
        taken = size_of(value) + sum(each[1] for each in inner)
        depth = 1 + max((each[2] for each in inner), default=0)
        if count > max_items or taken > max_bytes or depth > max_depth:
            raise PickleRefused(
                f"a pickle holds more than {max_items} objects, {max_bytes} bytes or {max_depth} levels."
            )
        sizes[key] = count, taken, depth
        open_ids.discard(key)


def _parts(value: Any, machine: Machine) -> list[Any]:
    kind = type(value)
    if kind in PLAIN:
        return []
    if kind is list or kind is tuple:
        return list(value)
    if kind is dict:
        return list(value.values())
    if id(value) in machine.made:
        return list(machine.made[id(value)][1].parts(value))
    raise PickleRefused(f"a pickle holds a {kind.__name__}, which is no data.")
