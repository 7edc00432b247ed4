"""Messages to frames and back: one header frame, then one frame for each array, none of them copied.

The header is `MAGIC`, the protocol version (2 bytes, big-endian), the CRC-32 of the rest, and the msgpack of a typed
message with its array descriptors. Everything a header claims is bounded and compared with the lengths of the frames
that were really received before an array exists; a received array is a view of its frame.
msgpack with a schema, and not pickle, because what a peer sends must never be executed.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from simplify_work.wire.errors import VersionMismatch, WireFormatError
from simplify_work.wire.messages import MAX_ARRAYS, MAX_NDIM, PROTOCOL_VERSION, AnyMessage, ArrayInfo, Message

MAGIC = b"LrxW"
MAX_HEADER_BYTES = 64 * 1024
MAX_ARRAY_BYTES = 64 * 1024 * 1024
MAX_MESSAGE_BYTES = 256 * 1024 * 1024

# What may travel: numbers only, little-endian.
WIRE_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}

_PREFIX = struct.Struct(">4sHI")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def pack(message: Message, arrays: Mapping[str, np.ndarray] | None = None) -> list[Any]:
    """Frames of a message with its arrays.

    Args:
        message: Any message; its `arrays` field is replaced.
        arrays: Name to array. The frames are views of contiguous little-endian arrays, which must therefore not be
            written to until the message has been sent; others are copied once.

    Returns:
        The header as bytes, then one buffer for each array.

    Raises:
        WireFormatError: If an array, or all of them, are beyond what a peer accepts.
    """
    infos, buffers = [], []
    for name, array in (arrays or {}).items():
        array = _sendable(name, array)
        flat = array.reshape(-1).view(np.uint8)
        infos.append(ArrayInfo(name, array.dtype.name, array.shape, checksum(flat)))
        buffers.append(flat.data)
    if infos:
        message = msgspec.structs.replace(message, arrays=tuple(infos))
    body = _encoder.encode(message)
    if len(infos) > MAX_ARRAYS or _PREFIX.size + len(body) > MAX_HEADER_BYTES:
        raise WireFormatError(
            f"a message with {len(infos)} arrays and a header of {len(body)} bytes is too large; "
            f"at most {MAX_ARRAYS} arrays and {MAX_HEADER_BYTES} bytes are sent."
        )
    if (total := sum(buffer.nbytes for buffer in buffers)) > MAX_MESSAGE_BYTES:
        raise WireFormatError(
            f"a message of {total} bytes is too large; at most {MAX_MESSAGE_BYTES} are sent."
        )
    return [_PREFIX.pack(MAGIC, PROTOCOL_VERSION, zlib.crc32(body)) + body, *buffers]


def unpack(frames: Sequence[Any]) -> tuple[AnyMessage, dict[str, np.ndarray]]:
    """The message and its arrays in received frames.

    Args:
        frames: `zmq.Frame`s, or anything with the buffer interface.

    Returns:
        The message, and its arrays by name as views of the frames (read-only if the frames are).

    Raises:
        VersionMismatch: If the peer speaks another version of the protocol.
        WireFormatError: If anything else is wrong. Nothing larger than the header has been allocated then.
    """
    if not 1 <= len(frames) <= 1 + MAX_ARRAYS:
        raise WireFormatError(
            f"a message of {len(frames)} frames was refused; expected 1 to {1 + MAX_ARRAYS}."
        )
    buffers = [memoryview(getattr(frame, "buffer", frame)).cast("B") for frame in frames]
    message = _header(buffers[0])
    infos, bodies = message.arrays, buffers[1:]
    if len(infos) != len(bodies):
        raise WireFormatError(f"the header describes {len(infos)} arrays, but {len(bodies)} were received.")
    if len({info.name for info in infos}) != len(infos):
        raise WireFormatError("two arrays of one message have the same name.")
    if (total := sum(body.nbytes for body in bodies)) > MAX_MESSAGE_BYTES:
        raise WireFormatError(
            f"a message of {total} bytes was refused; at most {MAX_MESSAGE_BYTES} are read."
        )
    return message, {info.name: _view(info, body) for info, body in zip(infos, bodies, strict=True)}


def checksum(flat: np.ndarray) -> int:
    """Sum of the little-endian 64-bit words of the bytes, the last one padded with zeros, modulo 2**64.

    Notices every change of a single word at a tenth of the price of a CRC (0.1 ms for three 480x640 images). It is
    against accidents; against an adversary there is CURVE.

    Args:
        flat: (n,) uint8.
    """
    whole = len(flat) & ~7
    tail = int.from_bytes(flat[whole:].tobytes(), "little")
    return (int(flat[:whole].view("<u8").sum(dtype=np.uint64)) + tail) % 2**64


def _sendable(name: str, array: np.ndarray) -> np.ndarray:
    """`array` as contiguous little-endian numbers, itself if it is that already."""
    array = np.asarray(array)
    if array.dtype.name not in WIRE_DTYPES:
        raise WireFormatError(
            f"array '{name}' has dtype {array.dtype}, which is not sent; convert it to one of {', '.join(WIRE_DTYPES)}."
        )
    if array.ndim > MAX_NDIM or array.nbytes > MAX_ARRAY_BYTES:
        raise WireFormatError(
            f"array '{name}' with shape {array.shape} and {array.nbytes} bytes is too large; at most {MAX_NDIM} "
            f"dimensions and {MAX_ARRAY_BYTES} bytes are sent."
        )
    return np.asarray(array, dtype=WIRE_DTYPES[array.dtype.name], order="C")


def _header(buffer: memoryview) -> AnyMessage:
    """The message in the first frame."""
    if not _PREFIX.size < buffer.nbytes <= MAX_HEADER_BYTES:
        raise WireFormatError(
            f"a header of {buffer.nbytes} bytes was refused; expected {_PREFIX.size + 1} to {MAX_HEADER_BYTES}."
        )
    magic, version, crc = _PREFIX.unpack_from(buffer)
    if magic != MAGIC:
        raise WireFormatError(f"a message that begins with {magic!r} is not of this protocol ({MAGIC!r}).")
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the peer speaks version {version} of the protocol, this side version {PROTOCOL_VERSION}; "
            "install the same version of lerobot_ext on both machines."
        )
    body = buffer[_PREFIX.size :]
    if zlib.crc32(body) != crc:
        raise WireFormatError("the header's checksum is wrong; it was changed or cut on its way.")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise WireFormatError(f"the header is not a message of this protocol: {error}.") from error


def _view(info: ArrayInfo, body: memoryview) -> np.ndarray:
    """The array that `info` describes, as a view of its frame."""
    dtype = WIRE_DTYPES.get(info.dtype)
    if dtype is None:
        raise WireFormatError(f"array '{info.name}' claims dtype '{info.dtype[:32]}', which is not read.")
    expected = math.prod(info.shape) * dtype.itemsize
    if expected != body.nbytes or expected > MAX_ARRAY_BYTES:
        raise WireFormatError(
            f"array '{info.name}' claims {info.dtype} {info.shape} = {expected} bytes, received {body.nbytes}; "
            f"at most {MAX_ARRAY_BYTES} are read."
        )
    flat = np.frombuffer(body, np.uint8) if expected else np.empty(0, np.uint8)
    if checksum(flat) != info.checksum:
        raise WireFormatError(f"array '{info.name}' was changed on its way: its checksum is wrong.")
    try:
        return flat.view(dtype).reshape(info.shape)
    except ValueError as error:
        raise WireFormatError(f"array '{info.name}' cannot have shape {info.shape}: {error}.") from error
