"""Measures the link with messages of different sizes: a Hello of a session that is known is answered at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from simplify_work.local.channel import Channel
from simplify_work.local.estimate import LinkEstimate
from simplify_work.wire.codec import pack
from simplify_work.wire.messages import Hello

_FIRST_BYTES = 32 * 1024
_CLEAR_S = 0.001  # a transfer that takes so long can be told from chance
_TIMEOUT_S = 1.0
_EVERY_S = 20.0


class Gauge:
    """Keeps a `LinkEstimate` up to date.

    Args:
        link: The estimate.
        channel: To the server.
        requests: Numbers for requests.
        name: Of this client.
        thorough: Measure a few times more, since the machine's own load looks like a slow link.
    """

    def __init__(
        self, link: LinkEstimate, channel: Channel, requests: Iterator[int], name: str, thorough: bool
    ) -> None:
        self._link = link
        self._channel = channel
        self._requests = requests
        self._name = name
        self._thorough = thorough
        self._measured_s = 0.0
        self._every_s = _EVERY_S

    def measure(self, deadline: float) -> None:
        """Learn latency and bandwidth of a new connection, in three round trips or so."""
        link = self._link
        link.forget()
        self._measured_s = time.monotonic()
        deadline = min(deadline, self._measured_s + _TIMEOUT_S)
        nbytes = 0
        try:
            link.add_small(self._timed(0, deadline))
            for nbytes in (_FIRST_BYTES, 0, 0):
                nbytes = nbytes or link.probe_bytes()
                link.add(nbytes, self._timed(nbytes, deadline))
                if link.seconds(nbytes) - link.latency_s > _CLEAR_S and not self._thorough:
                    break
        except TimeoutError:
            link.add(max(nbytes, _FIRST_BYTES), _TIMEOUT_S)

    def now_and_then(self) -> None:
        """Put two Hellos, one of them padded, before the next observation; they are answered while it is waited for."""
        now = time.monotonic()
        if now - self._measured_s < self._every_s:
            return
        self._measured_s = now
        nbytes, small = self._link.probe_bytes(), []

        def learn(seconds: float) -> None:
            if small:  # the answers come in this order
                self._link.add(nbytes, seconds, small[0])

        self._post(0, lambda seconds: (small.append(seconds), self._link.add_small(seconds)))
        self._post(nbytes, learn)

    def _timed(self, nbytes: int, deadline: float) -> float:
        """Seconds of a round trip with so many bytes of padding."""
        request, frames = self._hello(nbytes)
        began = time.perf_counter()
        return self._channel.exchange(frames, request, deadline).received_s - began

    def _post(self, nbytes: int, learn: Callable[[float], None]) -> None:
        request, frames = self._hello(nbytes)
        began = time.perf_counter()
        self._channel.post(frames, request, lambda reply: learn(reply.received_s - began))

    def _hello(self, nbytes: int) -> tuple[int, list[Any]]:
        request = next(self._requests)
        # Random, so that no compression on the way makes it smaller.
        padding = {"padding": np.frombuffer(random.randbytes(nbytes), np.uint8)} if nbytes else None
        return request, pack(Hello(request=request, client=self._name), padding)
