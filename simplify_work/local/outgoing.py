"""How an observation leaves this machine: raw, encoded, made smaller, or through shared memory.

Which of these is the quickest is `estimate`'s business, how the bytes look is `wire`'s.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from simplify_work.local.estimate import CodecChoice, LinkEstimate
from simplify_work.wire.address import Address
from simplify_work.wire.codec import pack
from simplify_work.wire.messages import Message, PictureUse, Welcome
from simplify_work.wire.pictures import PictureEncoder, downscale
from simplify_work.wire.shared import SharedArrays, size_of

logger = logging.getLogger(__name__)

CodecName = Literal["auto", "raw", "jpeg", "lossless"]


@dataclass(slots=True)
class Packed:
    """A message ready to be sent.

    Attributes:
        frames: Of the message.
        codec: How the pictures are in it: `raw`, `jpeg`, `lossless` or `shared`.
        raw_bytes: Of its arrays.
        sent_bytes: Of its frames.
        encode_s: What it took to make it.
        ready_s: `perf_counter` when it was made.
    """

    frames: list[Any]
    codec: str
    raw_bytes: int
    sent_bytes: int
    encode_s: float
    ready_s: float


class Outgoing:
    """Makes messages of observations, as one codec says or as the link suggests.

    Args:
        address: Of the server.
        codec: See `PolicyClient`.
        jpeg_quality: 1 to 100.
        shrink: See `PolicyClient`.
        checked: Send checksums of large arrays.

    Attributes:
        link: What is known of the link.
        measures: The codec depends on it.

    Raises:
        ValueError: If the codec or the quality is none.
    """

    def __init__(
        self, address: Address, codec: CodecName, jpeg_quality: int, shrink: bool, checked: bool = True
    ) -> None:
        if codec not in get_args(CodecName):
            raise ValueError(f"codec is '{codec}', expected one of {', '.join(get_args(CodecName))}.")
        self._encoders = {name: PictureEncoder(name, jpeg_quality) for name in ("jpeg", "lossless")}
        self._address = address
        self._shrink = shrink
        self._uses: dict[str, PictureUse] = {}
        self.measures = codec == "auto" and address.path is None
        self.link = LinkEstimate()
        self._choice = CodecChoice(self.link, address.is_loopback, "raw" if codec == "auto" else codec)
        self._checked = checked
        self._local = address.path is not None
        self._memory: SharedArrays | None = None
        self._sharing = False
        self._in_memory = threading.Lock()

    def close(self) -> None:
        """Give back the shared memory."""
        with self._in_memory:
            self._sharing = False
            if self._memory is not None:
                self._memory.close()
                self._memory = None

    def welcome(self, welcome: Welcome) -> None:
        """Heed what a server says that was greeted (again): it does not know of any shared memory."""
        self.close()
        self._uses = {use.name: use for use in welcome.pictures}

    def wants_memory(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """True if these could go through shared memory, and it was not yet agreed on or is too small."""
        if not self._local:
            return False
        return self._memory is None or (self._sharing and size_of(arrays) > self._memory.slot_bytes)

    def make_memory(self, arrays: Mapping[str, np.ndarray]) -> str | None:
        """Name of new shared memory for observations such as this one; None if there cannot be any."""
        self.close()
        try:
            self._memory = SharedArrays(size_of(arrays))
        except OSError as error:
            self._local = False
            logger.warning(
                "%s: no shared memory (%s), so arrays are sent through the socket",
                self._address.endpoint,
                error,
            )
            return None
        return self._memory.name

    def use_memory(self, accepted: bool) -> None:
        """Heed the server's answer to its name."""
        if self._memory is None:
            return
        self._memory.unlink()
        self._sharing = self._local = accepted
        if not accepted:
            self.close()
            logger.info("%s: the server takes no shared memory, arrays are sent", self._address.endpoint)

    def packed(self, message: Message, arrays: Mapping[str, np.ndarray]) -> Packed:
        """The message with its arrays."""
        began = time.perf_counter()
        raw_bytes = sum(array.nbytes for array in arrays.values())
        codec, frames = "shared", None
        if self._sharing:
            with self._in_memory:
                if self._memory is not None:
                    frames = pack(message, arrays, shared=self._memory)
        if frames is None:
            codec = self._codec_for(raw_bytes)
            if codec != "raw" and self._shrink:
                arrays = {name: self._small(name, array) for name, array in arrays.items()}
            frames = pack(message, arrays, self._encoders.get(codec), checked=self._checked)
        ready = time.perf_counter()
        sent_bytes = sum(map(_size, frames))
        return Packed(frames, codec, raw_bytes, sent_bytes, ready - began, ready)

    def answered(self, packed: Packed, received_s: float, server_s: float) -> None:
        """Learn from a round trip.

        Args:
            packed: What was sent.
            received_s: `perf_counter` when the answer was there.
            server_s: What the server says that it spent.
        """
        if not self.measures:
            return
        if packed.codec == "raw":
            self.link.add(packed.sent_bytes, max(0.0, received_s - packed.ready_s - server_s))
        else:
            self._choice.sent(packed.codec, packed.raw_bytes, packed.sent_bytes, packed.encode_s)

    def _codec_for(self, raw_bytes: int) -> str:
        if self.measures and self._choice.decide(raw_bytes):
            logger.info("%s: pictures travel %s", self._address.endpoint, self._choice)
        return self._choice.current

    def _small(self, name: str, array: np.ndarray) -> np.ndarray:
        use = self._uses.get(name)
        return array if use is None else downscale(array, use)


def _size(frame: Any) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)
