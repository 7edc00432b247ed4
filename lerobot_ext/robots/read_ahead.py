"""Pictures of a recording, decoded in a thread before they are asked for, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

Pictures = dict[str, Any]
Decode = Callable[[Sequence[int]], list[Pictures]]

_BLOCK_BYTES = 32e6  # decoded at once; at most two blocks are ready
_BLOCK_FRAMES = 16


class ReadAhead:
    """Decodes some rows in their order, a block at a time, and stays one block ahead of whoever takes them.

    What was skipped is not decoded, unless it lies in a block with what was not.

    Args:
        rows: To be shown, in this order.
        decode: Gives the pictures of some of them.
        frame_bytes: Of the pictures of one row; 0: there are none, and nothing is decoded.
    """

    def __init__(self, rows: Sequence[int], decode: Decode, frame_bytes: int) -> None:
        self._rows, self._decode, self._empty = rows, decode, not frame_bytes
        self._block = max(1, min(_BLOCK_FRAMES, int(_BLOCK_BYTES // max(frame_bytes, 1))))
        self._ready: dict[int, Pictures] = {}
        self._wanted = 0  # position that was asked for last: nothing before it is needed any more
        self._next = 0  # position that is decoded next
        self._error: Exception | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="replay", daemon=True)
        if not self._empty:
            self._thread.start()

    def get(self, position: int) -> Pictures:
        """The pictures of the row at a position; waits until they are decoded.

        Args:
            position: Not before that of the last call.

        Raises:
            Exception: What the decoder raised.
        """
        if self._empty:
            return {}
        with self._changed:
            self._wanted = position
            for passed in [each for each in self._ready if each < position]:
                del self._ready[passed]
            if self._next < position:
                self._next = position
            self._changed.notify_all()
            self._changed.wait_for(lambda: position in self._ready or self._error or self._stopping)
            if position in self._ready:
                return dict(self._ready[position])
            raise self._error or RuntimeError("the replay was closed while an observation was waited for")

    def close(self) -> None:
        """Stop decoding, and forget what is decoded."""
        with self._changed:
            self._stopping = True
            self._ready.clear()
            self._changed.notify_all()
        if not self._empty:
            self._thread.join()

    def _work(self) -> None:
        while (positions := self._wait()) is not None:
            try:
                pictures = self._decode([self._rows[position] for position in positions])
            except Exception as error:  # the caller of `get` is told, whatever it is
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                found = zip(positions, pictures, strict=True)
                self._ready |= {at: each for at, each in found if at >= self._wanted and not self._stopping}
                self._changed.notify_all()

    def _wait(self) -> range | None:
        """The positions to decode now; None: stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._is_short())
            if self._stopping:
                return None
            positions = range(self._next, min(self._next + self._block, len(self._rows)))
            self._next = positions.stop
            return positions

    def _is_short(self) -> bool:
        """Whether less than a block is ready beyond what was asked for last, and there is more."""
        ahead = sum(position > self._wanted for position in self._ready)
        return ahead < self._block and self._next < len(self._rows)
