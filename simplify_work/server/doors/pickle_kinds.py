"""What a reader of pickles may build: each name that a pickle may have stands for one of these, ours, not the stream's.

The arrays of numpy are in `numpy_pickles`; what a name stands for is put together by who reads (`pickles.read`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from simplify_work.wire.errors import WireFormatError


class PickleRefused(WireFormatError):  # noqa: N818
    """A pickle that is broken, too large, or wants something that is not in the reader's table."""


class Kind:
    """What may be built where a pickle names one class or function; a subclass has the methods that it allows."""

    def call(self, *args: Any) -> Any:
        """The result of calling it (REDUCE).

        Args:
            args: From the stream: of any of the types that the reader builds; check each.
        """
        raise PickleRefused("a pickle calls something that may only be named.")

    def new(self, *args: Any, **kwargs: Any) -> Any:
        """A blank instance (NEWOBJ, NEWOBJ_EX)."""
        raise PickleRefused("a pickle makes an instance of something that has none here.")

    def build(self, made: Any, state: Any) -> None:
        """Give `made`, which `call` or `new` returned, its state, in place (BUILD); happens once at most."""
        raise PickleRefused("a pickle gives a state to something that has none here.")

    def parts(self, made: Any) -> Iterable[Any]:
        """What of `made` came from the stream and may be a container itself."""
        return ()


Known = Mapping[tuple[str, str], Kind | Callable[..., Any]]
