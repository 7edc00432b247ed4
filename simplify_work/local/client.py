"""The robot's side of a connection: ask a policy server for chunks of actions, with a deadline on every call.

Arrays in, arrays out; nothing here knows of torch, of LeRobot or of a control loop.
"""

from __future__ import annotations

import itertools
import logging
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from simplify_work.wire import sockets
from simplify_work.wire.address import DEFAULT_ADDRESS, parse_address
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import (
    PolicyChanged,
    RemoteError,
    RemoteInferenceError,
    ServerStopped,
    ServerTimeout,
    ServerUnreachable,
    SessionLost,
    WireFormatError,
    from_wire,
)
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import (
    ACTIONS,
    AnyMessage,
    Bye,
    Chunk,
    Done,
    Durations,
    Error,
    Hello,
    Infer,
    Reset,
    Welcome,
)

logger = logging.getLogger(__name__)

# "Within 5 s" includes the time that a program needs to begin.
CONNECT_TIMEOUT_S = 4.5
TIMEOUT_S = 5.0

_BYE_LINGER_MS = 200


@dataclass(frozen=True)
class ActionChunk:
    """What came back for one observation.

    Attributes:
        actions: (n, dim) float32, in the robot's units, all finite; the caller's own.
        durations: What the server spent, by its clock.
        round_trip_s: From handing over the observation to having the actions, by this machine's clock.
    """

    actions: np.ndarray
    durations: Durations
    round_trip_s: float


class PolicyClient:
    """A session with a policy server.

    Safe to use from several threads; calls wait for one another, within their deadlines. After any error the next
    call connects anew by itself.

    Args:
        address: `tcp://host:port`, `host:port` or `ipc://path`.
        timeout_s: Longest wait for one answer.
        connect_timeout_s: Longest wait for a server to be there.
        name: What the server's log shall call this client; the host's name if None.

    Raises:
        AddressError: If the address is none.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        name: str | None = None,
    ) -> None:
        self.address = parse_address(address)
        self.timeout_s = timeout_s
        self.connect_timeout_s = connect_timeout_s
        self._name = name or platform.node()
        # Random, so that no other client can step into this session by chance.
        self._identity = b"c" + uuid.uuid4().bytes
        self._requests = itertools.count(1)
        self._lock = threading.Lock()
        self._socket: zmq.Socket | None = None
        self._features: tuple[FeatureSpec, ...] | None = None
        self._welcome: Welcome | None = None
        self._greeted = False

    @property
    def welcome(self) -> Welcome | None:
        """What the server serves; None before `connect`."""
        return self._welcome

    def connect(self, features: Sequence[FeatureSpec] | None = None) -> Welcome:
        """Meet the server.

        Args:
            features: What the robot gives, for the server to compare with what its policy wants; None if unknown.

        Raises:
            ServerUnreachable: If nobody answers within `connect_timeout_s`.
            FeatureMismatch: If the policy wants more than `features`.
            RemoteError: If the server refuses for another reason.
        """
        deadline = time.monotonic() + self.connect_timeout_s
        with self._turn(deadline, self.connect_timeout_s):
            if features is not None:
                self._features = tuple(features)
            return self._greet(deadline)

    def infer(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        task: str = "",
        robot_type: str = "",
        seed: int | None = None,
        timeout_s: float | None = None,
    ) -> ActionChunk:
        """Ask for the chunk of actions that follows an observation.

        Args:
            observation: The arrays that `welcome.inputs` names: images (H, W, 3) uint8, depth (H, W, 1) uint16
                millimetres or float32 metres, vectors (n,) float32. Not to be written to during the call.
            task: What the robot shall do, in words.
            robot_type: LeRobot's name of the robot.
            seed: Seed of the policy's noise for this chunk.
            timeout_s: Instead of the client's.

        Raises:
            ServerUnreachable: If nobody is there.
            ServerTimeout: If the answer does not come in time.
            ServerStopped: If the server said goodbye meanwhile.
            FeatureMismatch: If the observation lacks something.
            RemoteInferenceError: If the policy failed, or its chunk is not finite or not of the announced width.
            PolicyChanged: If the server came back with another policy.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        started = time.perf_counter()
        request = next(self._requests)
        frames = pack(Infer(request=request, task=task, robot_type=robot_type, seed=seed), observation)
        reply, arrays = self._ask(frames, request, Chunk, timeout_s)
        actions = self._checked(arrays.get(ACTIONS))
        return ActionChunk(actions, reply.durations, time.perf_counter() - started)

    def reset(self) -> None:
        """Tell the server that a new episode begins, and wait until it has forgotten the last one.

        Raises:
            RemoteError: As `infer`.
        """
        request = next(self._requests)
        self._ask(pack(Reset(request=request)), request, Done, self.timeout_s)

    def close(self) -> None:
        """Say goodbye and free the socket; the client may be used again and then connects anew."""
        with self._lock:
            if self._socket is not None and self._greeted:
                try:
                    self._socket.send_multipart(pack(Bye(reason="the client closed")), zmq.NOBLOCK)
                except zmq.ZMQError:
                    logger.debug("no goodbye to %s", self.address.endpoint, exc_info=True)
            self._drop(linger_ms=_BYE_LINGER_MS)

    def __enter__(self) -> PolicyClient:
        """The client itself, not yet connected."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    @contextmanager
    def _turn(self, deadline: float, timeout_s: float) -> Iterator[None]:
        """Hold the socket; whatever fails inside, the next turn begins with a new one."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise ServerTimeout(
                f"another call of this client still waits for {self.address.endpoint} after {timeout_s:g} s; "
                "give each thread its own client, or raise timeout_s."
            )
        try:
            yield
        except (RemoteError, zmq.ZMQError, KeyboardInterrupt):
            self._drop()
            raise
        finally:
            self._lock.release()

    def _ask(
        self, frames: list[Any], request: int, expected: type[AnyMessage], timeout_s: float
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Send a request in a greeted session and return its reply."""
        deadline = time.monotonic() + timeout_s
        with self._turn(deadline, timeout_s):
            self._read_goodbyes()
            for attempt in (1, 2):
                if not self._greeted:
                    self._greet(min(deadline, time.monotonic() + self.connect_timeout_s))
                try:
                    return self._exchange(frames, request, expected, deadline)
                except SessionLost as error:
                    if attempt == 2:
                        raise
                    logger.info("%s: %s", self.address.endpoint, error)
                    self._greeted = False
                except TimeoutError as error:
                    raise ServerTimeout(
                        f"no answer from {self.address.endpoint} within {timeout_s:g} s: the server is busy or "
                        "stopped, or the link is down; look at the server's log, or raise timeout_s."
                    ) from error
        raise AssertionError("unreachable")

    def _greet(self, deadline: float) -> Welcome:
        request = next(self._requests)
        hello = pack(Hello(request=request, client=self._name, features=self._features))
        began = time.monotonic()
        try:
            welcome, _ = self._exchange(hello, request, Welcome, deadline)
        except TimeoutError as error:
            raise ServerUnreachable(
                f"no policy server at {self.address.endpoint} (waited {time.monotonic() - began:.1f} s); start one "
                f"there with `lerobot-ext serve --policy.path=CHECKPOINT {self._serve_options()}`, wait until it "
                "says ready, and check address and firewall."
            ) from error
        if self._welcome is not None and _contract(welcome) != _contract(self._welcome):
            raise PolicyChanged(
                f"{self.address.endpoint} came back with policy '{welcome.policy_type}' ({welcome.action_dim} "
                f"actions wide), this session began with '{self._welcome.policy_type}' "
                f"({self._welcome.action_dim}); end this run and start a new one."
            )
        self._welcome, self._greeted = welcome, True
        return welcome

    def _serve_options(self) -> str:
        if self.address.path is not None:
            return f"--address={self.address.endpoint}"
        return f"--host={self.address.host} --port={self.address.port}"

    def _exchange(
        self, frames: list[Any], request: int, expected: type[AnyMessage], deadline: float
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Send a request and return the reply of its number, dropping those of older ones.

        Raises:
            TimeoutError: At the deadline.
            RemoteError: As described by the server, or if the reply is not valid.
        """
        if self._socket is None:
            self._socket = sockets.dealer(zmq.Context.instance(), self.address, self._identity)
        self._wait(zmq.POLLOUT, deadline)
        self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        while True:
            self._wait(zmq.POLLIN, deadline)
            reply, arrays = unpack(sockets.receive(self._socket))
            if isinstance(reply, Bye):
                raise ServerStopped(f"the server at {self.address.endpoint} said goodbye: {reply.reason}")
            if getattr(reply, "request", request) not in (request, None):
                continue
            if isinstance(reply, Error):
                raise from_wire(reply.error, reply.text)
            if not isinstance(reply, expected):
                raise WireFormatError(
                    f"{self.address.endpoint} answered with {type(reply).__name__}, expected {expected.__name__}."
                )
            return reply, arrays

    def _wait(self, event: int, deadline: float) -> None:
        """Wait until the socket can be read from or written to."""
        remaining_ms = max(0, round((deadline - time.monotonic()) * 1000))
        if not self._socket.poll(remaining_ms, event):
            raise TimeoutError

    def _read_goodbyes(self) -> None:
        """Notice a goodbye (and drop late replies) that came while nobody was waiting."""
        while self._socket is not None and self._socket.poll(0):
            message, _ = unpack(sockets.receive(self._socket))
            if isinstance(message, Bye):
                logger.info("%s said goodbye: %s", self.address.endpoint, message.reason)
                self._drop()

    def _drop(self, linger_ms: int = 0) -> None:
        """Forget the socket with all that waits in it."""
        if self._socket is not None:
            self._socket.close(linger=linger_ms)
        self._socket, self._greeted = None, False

    def _checked(self, actions: np.ndarray | None) -> np.ndarray:
        """The caller's own copy of a chunk that may be executed."""
        dim = self._welcome.action_dim
        if actions is None or actions.dtype != np.float32 or actions.ndim != 2 or actions.shape[1] != dim:
            found = "none" if actions is None else f"{actions.dtype} {actions.shape}"
            raise RemoteInferenceError(
                f"{self.address.endpoint} sent actions {found}, expected float32 (n, {dim}); restart the server."
            )
        if not np.isfinite(actions).all():
            raise RemoteInferenceError(
                f"{self.address.endpoint} sent actions that are not finite numbers; the chunk was refused, check "
                "the checkpoint and the observation."
            )
        return actions.copy()


def _contract(welcome: Welcome) -> tuple[object, ...]:
    """What must stay the same when a server comes back."""
    return welcome.policy_type, welcome.inputs, welcome.action_dim
