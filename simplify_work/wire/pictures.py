"""Pictures made smaller for the wire and back: JPEG for colour, zstd for what must stay exact, and fewer pixels.

What an encoded picture claims about itself is compared with what the message says about it before anything is
decoded. Which encoding suits a link is the client's choice, which frame it travels in is `codec`'s.

Depth is exact, so it is compressed without loss, and zstd does that better than PNG: 640x480 uint16 of a smooth scene
with a D435's noise (disparity in 1/32 pixel) and 5 % holes takes 109 kB, 1.7 ms to encode and 2.8 ms to decode as
`zstd_rows`; 143 kB, 10.3 ms and 4.5 ms as PNG (level 1, filtered; 124 kB at its best). With 2 mm of white noise it is
156 kB against 197 kB.
"""

from __future__ import annotations

import functools
import math
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from simplify_work.wire.errors import WireFormatError
from simplify_work.wire.messages import Encoding, PictureUse

PictureCodec = Literal["raw", "jpeg", "lossless"]

JPEG_QUALITY = 90
MAX_SIDE = 65500  # libjpeg's limit, kept for every encoding

# As the videos of LeRobot's datasets, which the policies were trained on.
_SUBSAMPLING = "420"
_ZSTD_LEVEL = 1  # level 3 takes twice as long and gains nothing on sensor noise
_MAX_THREADS = 8
_SOF_BASELINE, _SOS = 0xC0, 0xDA
_OTHER_FRAMES = {*range(0xC1, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_SEGMENT = struct.Struct(">BBH")
_JPEG_FRAME = struct.Struct(">BHHB")
_threads = threading.local()


class Encoded(NamedTuple):
    """A picture as it arrived: what the message says about it, and its bytes."""

    name: str
    encoding: Encoding
    dtype: np.dtype
    shape: tuple[int, ...]
    body: memoryview


class PictureEncoder:
    """How a client sends its pictures.

    Args:
        codec: `raw`: as they are. `jpeg`: colour as JPEG, depth without loss. `lossless`: both without loss.
        jpeg_quality: 1 to 100.

    Raises:
        ValueError: For another codec or quality.
    """

    def __init__(self, codec: PictureCodec = "raw", jpeg_quality: int = JPEG_QUALITY) -> None:
        if codec not in get_args(PictureCodec):
            raise ValueError(
                f"picture codec '{codec}' is not known; choose one of {', '.join(get_args(PictureCodec))}."
            )
        if not 1 <= jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality={jpeg_quality} is not a quality; choose 1 to 100.")
        self.codec: PictureCodec = codec
        self.jpeg_quality = jpeg_quality

    def encode(self, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[Encoding, bytes]]:
        """The arrays that travel encoded, several at a time: pictures that become smaller by it.

        Args:
            arrays: Contiguous and little-endian. Pictures are (H, W, 3) uint8, (H, W, 1) uint16 or float32, or
                several of these along a leading axis.

        Returns:
            Name to encoding and bytes, for a part of the arrays.
        """
        if self.codec == "raw":
            return {}
        pictures = [(name, array) for name, array in arrays.items() if _is_picture(array.dtype, array.shape)]
        bodies = _together([functools.partial(self._encoded, array) for _, array in pictures])
        return {
            name: body
            for (name, array), body in zip(pictures, bodies, strict=True)
            if len(body[1]) < array.nbytes
        }

    def _encoded(self, array: np.ndarray) -> tuple[Encoding, bytes]:
        if self.codec == "jpeg" and array.dtype == np.uint8:
            import simplejpeg

            tall = array.reshape(-1, *array.shape[-2:])
            return "jpeg", simplejpeg.encode_jpeg(tall, self.jpeg_quality, "RGB", _SUBSAMPLING)
        if array.dtype == np.float32:
            return "zstd", _zstd().compress(array)
        return "zstd_rows", _zstd().compress(_to_rows(array))


def decode(pictures: Sequence[Encoded]) -> list[np.ndarray]:
    """The pictures, several at a time.

    Raises:
        WireFormatError: If one is not what its message says. No more has been allocated than the message says.
    """
    for picture in pictures:
        if not _is_picture(picture.dtype, picture.shape):
            raise WireFormatError(
                f"array '{picture.name}' claims to be {picture.encoding}, but {picture.dtype} {picture.shape} is no "
                f"picture; expected uint8 (H, W, 3) or uint16 or float32 (H, W, 1), sides 1 to {MAX_SIDE}."
            )
    return _together([functools.partial(_decoded, picture) for picture in pictures])


def downscale(image: np.ndarray, use: PictureUse) -> np.ndarray:
    """The picture at the size at which the policy will look at it; itself if it is not larger.

    Colour is resized as the policies do it, so that they find (up to rounding to 8 bits) the pixels that they would
    have made themselves: `pad` by linear interpolation (`lerobot.policies.common.vla_utils.resize_with_pad`, whose
    own resize then has nothing left to do), `stretch` with antialiasing (torchvision's Resize). Depth takes the
    nearest pixel: a mean of two surfaces is none.

    Args:
        image: (H, W, C), or several along a leading axis: uint8 colour, uint16 or float32 depth.
        use: Of the server's Welcome.
    """
    height, width = image.shape[-3:-1]
    if use.fit == "pad":
        # The side that touches the border is exact; the other one is cut off as LeRobot's code does it.
        across, down = width / use.width, height / use.height
        ratio = max(across, down)
        new_width = use.width if across == ratio else int(width / ratio)
        new_height = use.height if down == ratio else int(height / ratio)
        if ratio <= 1:
            return image
    else:
        new_height, new_width = min(height, use.height), min(width, use.width)
    if (new_height, new_width) == (height, width) or 0 in (new_height, new_width):
        return image
    import cv2

    if image.shape[-1] == 1:
        how = cv2.INTER_NEAREST_EXACT
    else:
        how = cv2.INTER_LINEAR if use.fit == "pad" else cv2.INTER_AREA
    small = np.empty((*image.shape[:-3], new_height, new_width, image.shape[-1]), image.dtype)
    for source, target in zip(
        image.reshape(-1, *image.shape[-3:]), small.reshape(-1, *small.shape[-3:]), strict=True
    ):
        target[:] = cv2.resize(source, (new_width, new_height), interpolation=how).reshape(target.shape)
    return small


def _is_picture(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    if len(shape) not in (3, 4):
        return False
    if (dtype.name, shape[-1]) not in (("uint8", 3), ("uint16", 1), ("float32", 1)):
        return False
    return 0 < math.prod(shape[:-2]) <= MAX_SIDE and 0 < shape[-2] <= MAX_SIDE


def _together(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of calls that release the interpreter's lock; the first is made by this thread."""
    if len(calls) < 2 or (os.cpu_count() or 1) < 2:
        return [call() for call in calls]
    others = [_pool().submit(call) for call in calls[1:]]
    return [calls[0](), *(other.result() for other in others)]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS), thread_name_prefix="pictures")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _zstd() -> Any:
    """This thread's compressor: one must not be used by two."""
    if not hasattr(_threads, "zstd"):
        import zstandard

        _threads.zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
    return _threads.zstd


def _to_rows(array: np.ndarray) -> np.ndarray:
    """What zstd makes small: the difference of each row from the one above, modulo the dtype's range.

    Differences of uint16 are zigzag coded (0, -1, 1, -2, … become 0, 1, 2, 3, …), and all low bytes come before all
    high ones, which are nearly all zero then.
    """
    rows = array.reshape(math.prod(array.shape[:-2]), -1)
    change = np.empty_like(rows)
    change[0] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=change[1:])
    if rows.dtype == np.uint8:
        return change
    signed = change.reshape(-1).view("<i2")
    zigzag = ((signed << 1) ^ (signed >> 15)).view("<u2")
    planes = np.empty((2, zigzag.size), np.uint8)
    planes[0] = zigzag & 0xFF
    planes[1] = zigzag >> 8
    return planes


def _from_rows(body: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_to_rows`."""
    if dtype == np.uint8:
        flat = np.frombuffer(bytearray(body), np.uint8)
    else:
        low, high = np.frombuffer(body, np.uint8).reshape(2, -1)
        flat = high.astype("<u2")
        flat <<= 8
        flat |= low
        sign = flat & 1
        flat >>= 1
        flat ^= np.negative(sign, out=sign)
    rows = flat.reshape(math.prod(shape[:-2]), -1)
    for above, row in zip(rows, rows[1:], strict=False):  # half the time of np.add.accumulate
        np.add(row, above, out=row)
    return rows.reshape(shape)


def _decoded(picture: Encoded) -> np.ndarray:
    try:
        if picture.encoding == "jpeg":
            return _from_jpeg(picture)
        body = _from_zstd(picture.body, math.prod(picture.shape) * picture.dtype.itemsize)
        if picture.encoding == "zstd_rows":
            if picture.dtype == np.float32:
                raise ValueError("rows of float32 have no exact differences")
            return _from_rows(body, picture.dtype, picture.shape)
        return np.frombuffer(body, picture.dtype).reshape(picture.shape)
    except (ValueError, MemoryError) as error:
        raise WireFormatError(
            f"array '{picture.name}' cannot be read as {picture.encoding} of {picture.dtype} {picture.shape}: {error}."
        ) from error


def _from_zstd(body: memoryview, expected: int) -> bytes:
    """What a single zstd frame holds, if that is `expected` bytes.

    Raises:
        ValueError: If it is not.
    """
    import zstandard

    try:
        # Told by the frame's header; the decompressor would allocate whatever it says.
        claimed = zstandard.get_frame_parameters(body).content_size
        if claimed != expected:
            raise ValueError(f"it claims {claimed} bytes, expected {expected}")
        whole = zstandard.ZstdDecompressor().decompress(
            body, max_output_size=expected, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if len(whole) != expected:
        raise ValueError(f"it holds {len(whole)} bytes, expected {expected}")
    return whole


def _from_jpeg(picture: Encoded) -> np.ndarray:
    import simplejpeg

    expected = (math.prod(picture.shape[:-2]), picture.shape[-2])
    if picture.dtype != np.uint8:
        raise ValueError("JPEG is for uint8")
    if (found := _jpeg_size(picture.body)) != expected:
        raise ValueError(f"it claims {found[0]}x{found[1]} pixels, expected {expected[0]}x{expected[1]}")
    out = np.empty((*expected, 3), np.uint8)
    read = simplejpeg.decode_jpeg(picture.body, "RGB", buffer=out)
    if read.shape != out.shape:
        raise ValueError(f"it held {read.shape}, expected {out.shape}")
    return out.reshape(picture.shape)


def _jpeg_size(body: memoryview) -> tuple[int, int]:
    """Height and width of a baseline JPEG of three components in one scan, as `PictureEncoder` makes them.

    Others are refused: a few bytes of a progressive one can ask for any amount of work (ITU-T T.81, annex B).

    Raises:
        ValueError: If it is none.
    """
    if bytes(body[:2]) != b"\xff\xd8":
        raise ValueError("it is no JPEG")
    at, size = 2, None
    while at + _JPEG_SEGMENT.size <= len(body):
        escape, marker, length = _JPEG_SEGMENT.unpack_from(body, at)
        inside = body[at + _JPEG_SEGMENT.size : at + 2 + length]
        if escape != 0xFF or length < 2 or len(inside) != length - 2 or marker in _OTHER_FRAMES:
            break
        if marker == _SOF_BASELINE:
            if size is not None or len(inside) < _JPEG_FRAME.size:
                break
            bits, height, width, components = _JPEG_FRAME.unpack_from(inside)
            if (bits, components) != (8, 3):
                break
            size = height, width
        if marker == _SOS:
            if size is None or not inside or inside[0] != 3:
                break
            return size
        at += 2 + length
    raise ValueError("it is no baseline JPEG of three components in one scan")
