"""What a policy itself remembers between chunks, kept apart for each session.

Most of LeRobot's policies remember nothing that `predict_action_chunk` looks at; one that does (a cache of past
frames, for example) is found out by watching it, and then each session brings its own memory.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Slot = tuple[nn.Module, str]
Memory = dict[Slot, Any]

# What torch keeps in every module; `_buffers` is looked into, the rest is not memory.
_TORCH = frozenset(vars(nn.Module())) | {"config"}
_DEEPEST = 3


@dataclass(frozen=True)
class Watch:
    """All attributes at one moment.

    Attributes:
        seen: A fingerprint of each.
        alive: The values, so that nothing new can take the identity of one that was there.
    """

    seen: dict[Slot, Any]
    alive: list[Any]


class PolicyMemory:
    """The attributes of a policy and its parts in which it remembers; empty for most policies.

    Attributes:
        slots: Those attributes.
    """

    def __init__(self, policy: nn.Module, ignore: Iterable[str] = ()) -> None:
        self._policy = policy
        self._ignore = frozenset(ignore)
        self.slots: list[Slot] = []

    def watch(self) -> Watch:
        """What all attributes are now."""
        values = [
            ((module, name), value)
            for module in self._policy.modules()
            for name, value in (*vars(module).items(), *module._buffers.items())
            if name not in _TORCH and name not in self._ignore and not isinstance(value, nn.Module)
        ]
        return Watch({slot: _fingerprint(value) for slot, value in values}, [value for _, value in values])

    def find(self, *watches: Watch) -> None:
        """Take as memory what changed between each of several watches and the next.

        Args:
            watches: After a reset, after a first chunk, after a second one. What only the first chunk sets is a
                cache (it is the same for every session), unless the second chunk changes something as well.
        """
        changed = [
            {slot for slot in {*one.seen, *other.seen} if one.seen.get(slot) != other.seen.get(slot)}
            for one, other in zip(watches, watches[1:], strict=False)
        ]
        self.slots = sorted(set().union(*changed), key=lambda slot: slot[1]) if changed[-1] else []

    def fresh(self) -> Memory:
        """The memory of a new episode."""
        self._policy.reset()
        return {slot: _own(_get(slot)) for slot in self.slots}

    def load(self, memory: Memory) -> None:
        """Let the policy remember this."""
        for (module, name), value in memory.items():
            setattr(module, name, value)

    def save(self) -> Memory:
        """What the policy remembers now."""
        return {slot: _get(slot) for slot in self.slots}


def _get(slot: Slot) -> Any:
    module, name = slot
    return getattr(module, name, None)


def _own(value: Any) -> Any:
    """A value that can be changed in place without others noticing."""
    if isinstance(value, Tensor):
        return value.clone()
    return copy.copy(value) if isinstance(value, list | dict | set | deque) else value


def _fingerprint(value: Any, depth: int = 0) -> Any:
    """Something that differs if the value was replaced or changed in place."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, str | bytes | bool | int | float | None):
        return value
    if depth < _DEEPEST and isinstance(value, list | tuple | set | deque):
        return id(value), tuple(_fingerprint(each, depth + 1) for each in value)
    if depth < _DEEPEST and isinstance(value, dict):
        return id(value), tuple((str(key), _fingerprint(each, depth + 1)) for key, each in value.items())
    return id(value)
