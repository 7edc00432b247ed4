"""How long a policy server takes to answer, measured on the robot's own clock: bare messages, and whole chunks.

Only asks and counts; what the figures mean for a robot is the business of whoever asks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import zmq
from numpy.typing import NDArray

from simplify_work.local.client import ActionChunk, PolicyClient
from simplify_work.wire import sockets
from simplify_work.wire.address import Address
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import ServerTimeout, from_wire
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.keys import ClientKeys
from simplify_work.wire.messages import Bye, Error, Hello, Welcome

_WARM_UP = 3  # the first observations are slower, and let the codec `auto` get to know the link
_NOISE = 4  # grey levels of a picture's noise, about that of a webcam
_LEAST_BYTES, _MOST_BYTES = 128 * 1024, 8 * 1024 * 1024
_PLAUSIBLE_S = 1e-4  # a transfer shorter than this is lost in the noise of a round trip


def example_observation(
    inputs: Sequence[FeatureSpec],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    n_obs_steps: int = 1,
) -> dict[str, NDArray]:
    """One valid observation that costs what a real one does: its pictures compress about as well as a camera's.

    Args:
        inputs: What the policy wants.
        shapes: By name, what the robot gives in place of the size that the policy was trained with.
        n_obs_steps: Of the Welcome; above 1, each array has a leading axis of one observation.

    Returns:
        Images (H, W, 3) uint8 and depth (H, W, 1) uint16 millimetres, by structure and noise; vectors (n,), or
        windows of them, of zeros.
    """
    rng = np.random.default_rng(0)
    observation = {}
    for spec in inputs:
        shape = tuple((shapes or {}).get(spec.name, spec.shape))
        if spec.kind == "vector":
            array = np.zeros(spec.sent.shape, np.float32)
        else:
            v, u = np.mgrid[: shape[0], : shape[1]]
            levels = 90 + 60 * v / max(shape[0], 1) + 40 * np.sin(u / 23) + 25 * ((u // 37 + v // 29) % 3)
            levels = levels[..., None] + rng.normal(0, _NOISE, shape)
            array = levels.clip(0, 255).astype(np.uint8)
            if spec.kind == "depth":
                array = (3 * levels).clip(0, 65535).astype(np.uint16)
        observation[spec.name] = array if n_obs_steps == 1 else array[None]
    return observation


class Stopwatch:
    """Times Hellos, which the server answers at once, whatever its policy is at; one connection of its own.

    Args:
        address: Of the server.
        keys: This robot's folder of keys, if the server has keys.
        timeout_s: Longest wait for one answer.

    Raises:
        KeyRefused: If the keys cannot be used.
    """

    def __init__(self, address: Address, keys: str | Path | None = None, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._requests = itertools.count(1)
        identity = b"m" + uuid.uuid4().bytes
        loaded = None if keys is None else ClientKeys.load(keys)
        self._socket = sockets.dealer(zmq.Context.instance(), address, identity, loaded)

    def __enter__(self) -> Stopwatch:
        """Itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Say goodbye and close."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart(pack(Bye(reason="measured")), zmq.NOBLOCK)
        self._socket.close(linger=200)

    def time(self, nbytes: int = 0) -> float:
        """Seconds until a Hello with so many bytes of padding was answered.

        Raises:
            ServerTimeout: If it was not in time.
            RemoteError: If the server refuses.
        """
        request = next(self._requests)
        padding = {"padding": np.frombuffer(random.randbytes(nbytes), np.uint8)} if nbytes else None
        frames = pack(Hello(request=request, client="lerobot-ext doctor"), padding)
        started = time.perf_counter()
        self._socket.send_multipart(frames, copy=False)
        while self._socket.poll(max(0, round(1e3 * (started + self._timeout_s - time.perf_counter())))):
            reply, _ = unpack(sockets.receive(self._socket))
            if isinstance(reply, Error):
                raise from_wire(reply.error, reply.text)
            if isinstance(reply, Welcome) and reply.request == request:
                return time.perf_counter() - started
        raise ServerTimeout(
            f"a message of {nbytes} bytes was not answered within {self._timeout_s:g} s; the link is too slow or lossy, "
            "look at it with `ping`."
        )

    def small_s(self, count: int = 40, limit_s: float = 2.0) -> NDArray[np.float64]:
        """Seconds of messages of no size: (n,), n from 1 to `count`.

        Raises:
            RemoteError: As `time`.
        """
        self.time()  # the connection itself is made here
        return self._repeat(0, count, limit_s)

    def bandwidth_bit_s(self, small_s: NDArray[np.float64], limit_s: float = 3.0) -> float:
        """Bits a second towards the server; infinite if the bytes make no difference that can be measured.

        Args:
            small_s: From `small_s`.
            limit_s: About how long to look; what is sent grows until it takes a good part of that, or is 8 MB.

        Raises:
            RemoteError: As `time`.
        """
        latency_s = float(np.median(small_s))
        end = time.monotonic() + limit_s
        nbytes = _LEAST_BYTES
        transfer_s = self.time(nbytes) - latency_s
        while nbytes < _MOST_BYTES and transfer_s < limit_s / 10 and time.monotonic() < end:
            nbytes *= 4
            transfer_s = self.time(nbytes) - latency_s
        more = self._repeat(nbytes, 4, end - time.monotonic()) - latency_s
        transfer_s = float(np.median([transfer_s, *more]))
        return 8 * nbytes / transfer_s if transfer_s > _PLAUSIBLE_S else math.inf

    def _repeat(self, nbytes: int, count: int, limit_s: float) -> NDArray[np.float64]:
        end = time.monotonic() + limit_s
        taken = [self.time(nbytes)]
        while len(taken) < count and time.monotonic() < end:
            taken.append(self.time(nbytes))
        return np.array(taken)


def time_chunks(
    client: PolicyClient,
    observation: Mapping[str, NDArray],
    count: int = 20,
    limit_s: float = 5.0,
    task: str = "",
) -> list[ActionChunk]:
    """At least one chunk for `observation`, asked for one after another; the first ones are not among them.

    Raises:
        RemoteError: As `PolicyClient.infer`.
    """
    end = time.monotonic() + limit_s
    chunks: list[ActionChunk] = []
    for turn in range(_WARM_UP + count):
        chunk = client.infer(observation, task=task)
        late = time.monotonic() > end
        if turn >= _WARM_UP or late:
            chunks.append(chunk)
        if late:
            break
    return chunks


def link_s(chunks: Sequence[ActionChunk]) -> NDArray[np.float64]:
    """Seconds of each round trip that the server did not account for: the way there and back, and the packing."""
    return np.array([max(chunk.round_trip_s - chunk.durations.total_s, 0.0) for chunk in chunks])
