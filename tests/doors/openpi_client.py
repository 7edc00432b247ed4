"""openpi's client, written from its protocol (Physical-Intelligence/openpi, packages/openpi-client): connect, infer."""

import contextlib

import msgspec
import numpy as np
from websockets.sync.client import connect


def pack_array(value):
    """As openpi_client/msgpack_numpy.py."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "VOc":
            raise ValueError(f"Unsupported dtype: {value.dtype}")
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(type(value))


def pack(value) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=pack_array)


def unpack(data: bytes):
    return _arrays(msgspec.msgpack.decode(data))


def _arrays(value):
    if isinstance(value, list):
        return [_arrays(each) for each in value]
    if not isinstance(value, dict):
        return value
    if b"__ndarray__" in value:
        return np.ndarray(
            buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=tuple(value[b"shape"])
        )
    if b"__npgeneric__" in value:
        return np.dtype(value[b"dtype"]).type(value[b"data"])
    return {key: _arrays(each) for key, each in value.items()}


class WebsocketClientPolicy:
    """The methods of openpi's class of that name."""

    def __init__(self, uri: str) -> None:
        self._open = contextlib.ExitStack()
        self.socket = self._open.enter_context(connect(uri, compression=None, max_size=None))
        self._metadata = unpack(self.socket.recv())

    def get_server_metadata(self) -> dict:
        return self._metadata

    def infer(self, observation: dict) -> dict:
        self.socket.send(pack(observation))
        response = self.socket.recv()
        if isinstance(response, str):
            raise RuntimeError(f"Error in inference server:\n{response}")
        return unpack(response)

    def reset(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._open.close()
