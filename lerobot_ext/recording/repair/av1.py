"""The frame counter in AV1 key frames, which tells where an encoder began anew.

Only as much of a sequence's and a frame's header is read as stands before the counter (AV1 specification, 5.5 and
5.9.2).
"""

from __future__ import annotations

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
SELECT = 2  # "each frame says it itself"


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.at >> 3] >> 7 - (self.at & 7) & 1
            self.at += 1
        return value


def order_hint(packet: bytes) -> tuple[int, int] | None:
    """The counter of a shown key frame that carries its sequence header, as every key frame in an MP4 does.

    Args:
        packet: A temporal unit.

    Returns:
        The counter (`order_hint`) and the number at which it begins again from 0; None if it cannot be read.
    """
    sequence = None
    try:
        for kind, payload in _units(packet):
            if kind == SEQUENCE_HEADER:
                sequence = _sequence(_Bits(payload))
            elif kind in (FRAME_HEADER, FRAME):
                return None if sequence is None else _frame(_Bits(payload), *sequence)
    except IndexError:
        pass
    return None


def _units(packet: bytes) -> list[tuple[int, bytes]]:
    """The units (OBU) of a packet: type and payload."""
    units, at = [], 0
    while at < len(packet):
        head = packet[at]
        at += 2 if head & 4 else 1
        size, shift = 0, 0
        if not head & 2:
            size = len(packet) - at
        while head & 2:
            byte = packet[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 56:
                break
        units.append((head >> 3 & 15, packet[at : at + size]))
        at += size
    return units


def _sequence(bits: _Bits) -> tuple[int, int, int, int] | None:
    """Bits of the counter, screen content tools, integer vectors, bits of a frame's name; None for rare kinds."""
    bits.read(3)
    if bits.read(2) or bits.read(
        1
    ):  # still pictures; timing: its decoder model would stand before the counter
        return None
    delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay and bits.read(1):
            bits.read(4)
    width, height = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width + height)
    name = 0
    if bits.read(1):
        difference = bits.read(4) + 2
        name = bits.read(3) + difference + 1
    bits.read(3 + 4)
    if not bits.read(1):
        return None
    bits.read(2)
    tools = SELECT if bits.read(1) else bits.read(1)
    vectors = SELECT
    if tools > 0 and not bits.read(1):
        vectors = bits.read(1)
    return bits.read(3) + 1, tools, vectors, name


def _frame(bits: _Bits, counter: int, tools: int, vectors: int, name: int) -> tuple[int, int] | None:
    if bits.read(1) or bits.read(2) or not bits.read(1):  # shown before; not a key frame; not shown
        return None
    bits.read(1)
    if tools == SELECT:
        tools = bits.read(1)
    if tools and vectors == SELECT:
        bits.read(1)
    bits.read(name + 1)
    return bits.read(counter), 1 << counter
