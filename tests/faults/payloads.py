"""Bytes that would create a file if anything unpickled them, and bytes that would exhaust or confuse a careless reader.

Only bytes are made here; `test_attack` sends them.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zlib
from pathlib import Path

import numpy as np

from simplify_work.wire.codec import MAGIC, pack
from simplify_work.wire.messages import PROTOCOL_VERSION, Hello, Infer, Reset

# ZMTP 3.0: signature, version, mechanism, as-server, filler (https://rfc.zeromq.org/spec/23/)
ZMTP_SIGNATURE = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"
ZMTP_GREETING = ZMTP_SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
ZMTP_READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"


class Evil:
    """Unpickling this creates a file, in two ways."""

    def __init__(self, proof: Path, *, shell: bool) -> None:
        self.proof, self.shell = proof, shell

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.proof}",)) if self.shell else (open, (str(self.proof), "w"))


def pickles(proof: Path) -> dict[str, bytes]:
    """Pickles of several protocols, and what carries pickles in disguise."""
    made = {f"pickle protocol {n}": pickle.dumps(Evil(proof, shell=False), n) for n in (0, 2, 5)}
    made["pickle that runs a program"] = pickle.dumps(Evil(proof, shell=True))
    objects = io.BytesIO()
    np.save(objects, np.array([Evil(proof, shell=False)], dtype=object), allow_pickle=True)
    made["npy of objects"] = objects.getvalue()
    return made


def byte_streams(proof: Path) -> dict[str, tuple[bytes, ...]]:
    """What somebody who knows the port, and not what listens there, writes to it.

    Returns:
        By name, the parts; before each but the first, the peer's answer to the one before is awaited.
    """
    evil = pickle.dumps(Evil(proof, shell=True))
    long_frame = struct.pack(">BQ", 2, 2**62)
    http = f"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: {len(evil)}\r\n\r\n".encode()
    grpc = b"\0" + struct.pack(">I", len(evil)) + evil
    body = zlib.compress(evil)
    hello = (ZMTP_GREETING, ZMTP_READY)
    return {name: (data,) for name, data in pickles(proof).items()} | {
        "pickle in ZMTP frames": (*hello, frame(evil, more=True) + frame(evil)),
        "pickle in a hurry in ZMTP frames": (ZMTP_GREETING + ZMTP_READY + frame(evil),),
        "pickle in ZMTP 1 frames": (b"\x01\x00" + v1_frame(b"", more=True) + v1_frame(evil),),
        "ZMTP frame of 2**62 bytes": (*hello, long_frame + evil),
        "ZMTP message of too many frames": (*hello, frame(evil[:9], more=True) * 3000 + frame(evil)),
        "ZMTP 1 frame of 2**62 bytes": (b"\xff" + struct.pack(">Q", 2**62) + b"\x00" + evil,),
        "ZMTP command that is too long": (ZMTP_GREETING, struct.pack(">BQ", 6, 2**40) + evil),
        "half a ZMTP signature": (ZMTP_SIGNATURE[:5],),
        "half a ZMTP greeting": (ZMTP_GREETING[:31],),
        "ZMTP greeting of another mechanism": (ZMTP_GREETING[:12] + b"PICKLE".ljust(20, b"\0") + b"\0" * 32,),
        "half a ZMTP message": (*hello, frame(evil)[:-7]),
        "HTTP with a pickle": (http + evil,),
        "HTTP with an endless line": (b"GET /" + b"A" * 70_000,),
        "HTTP that announces 2**62 bytes": (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % 2**62 + evil,),
        "gRPC with a pickle": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + h2_data(grpc),),
        "zlib of a pickle": (struct.pack(">I", len(body)) + body,),
        "length of 4 GB": (b"\xff\xff\xff\xff" + evil,),
        "servo packet with a pickle": (servo_packets(evil),),
        "JSON with a pickle": (b'{"op": "' + evil.hex().encode() + b'", "py/object": "os.system"}',),
        "deep JSON": (b"[" * 60_000,),
        "random bytes": (random.Random(7).randbytes(40_000),),
    }


def messages(proof: Path) -> dict[str, list[bytes]]:
    """Frames for a peer that speaks ZeroMQ and this product's protocol, and means harm."""
    evil = pickle.dumps(Evil(proof, shell=True))
    array = np.frombuffer(evil, np.uint8)
    infer = Infer(request=1, task=evil.decode("latin-1"))
    objects = pickles(proof)["npy of objects"]
    ext = b"\xc7" + bytes([len(evil)]) + b"\x2a" + evil  # msgpack ext 8, application type 42
    header = pack(infer, {"observation.state": array})[0]
    made = {name: [data] for name, data in pickles(proof).items()}
    return made | {
        "pickle after an empty frame": [b"", evil],
        "many pickles": [evil] * 200,
        "pickle behind a valid header": [pack(Reset(request=1))[0], evil],
        "pickle as the text of a hello": pack(Hello(request=1, client=evil.decode("latin-1"))),
        "pickle as the task and the array": list(map(bytes, pack(infer, {"observation.state": array}))),
        "pickle in place of the array": [header, objects],
        "array of dtype object": [with_body(header, b"uint8", b"objec"), evil],
        "array of dtype O": [with_body(header, b"\xa5uint8", b"\xa1O"), evil],
        "array of 2**60 bytes": [
            with_body(header, bytes([len(evil)]), b"\xcf" + struct.pack(">Q", 2**60)),
            evil,
        ],
        "pickle as a message type": [packed(b"\x81\xa4type" + b"\xd9" + bytes([len(evil)]) + evil)],
        "class name as a message type": [packed(b"\x81\xa4type\xa9os.system")],
        "msgpack ext type": [packed(ext), evil],
        "msgpack ext in the map": [packed(b"\x82\xa4type\xa5Infer\xa7request" + ext)],
        "msgpack timestamp": [packed(b"\xd7\xff" + evil[:8])],
        "msgpack map of 2**32 entries": [packed(b"\xdf\xff\xff\xff\xff")],
        "msgpack text of 2**32 bytes": [packed(b"\xdb\xff\xff\xff\xff" + evil)],
        "msgpack nested 60000 deep": [packed(b"\x91" * 60_000)],
        "half a header": [header[: len(header) // 2]],
        "header of another version": [MAGIC + struct.pack(">H", 999) + header[6:]],
        "header that is too long": [MAGIC * 100_000],
        "JSON request with a pickle": [b'{"op": "status", "pose": "' + evil.hex().encode() + b'"', evil],
        "nothing": [b""],
    }


def packed(body: bytes) -> bytes:
    """A header with a right checksum around any body."""
    return MAGIC + struct.pack(">HI", PROTOCOL_VERSION, zlib.crc32(body)) + body


def with_body(header: bytes, old: bytes, new: bytes) -> bytes:
    """The header with a changed body and a checksum that is right again."""
    body = header[10:]
    assert old in body
    return packed(body.replace(old, new))


def frame(data: bytes, *, more: bool = False) -> bytes:
    """One frame of ZMTP 3."""
    return struct.pack(">BQ", 2 | more, len(data)) + data


def v1_frame(data: bytes, *, more: bool = False) -> bytes:
    """One frame of ZMTP 1."""
    return bytes([len(data) + 1, more]) + data


def h2_data(data: bytes) -> bytes:
    """An HTTP/2 DATA frame that ends stream 1."""
    return struct.pack(">I", len(data))[1:] + b"\0\1" + struct.pack(">I", 1) + data


def servo_packets(data: bytes) -> bytes:
    """Feetech packets with a right checksum, an instruction that does not exist and these bytes as parameters."""
    packets = b""
    for start in range(0, len(data), 100):
        part = data[start : start + 100]
        body = bytes([1, len(part) + 2, 0x50]) + part
        packets += b"\xff\xff" + body + bytes([~sum(body) & 0xFF])
    return packets
