"""The robot's side of a connection: ask a policy server for chunks of actions, with a deadline on every call.

Arrays in, arrays out; nothing here knows of torch, of LeRobot or of a control loop. How threads share the socket is
`channel`'s business, how an observation becomes bytes is `outgoing`'s.
"""

from __future__ import annotations

import itertools
import logging
import platform
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simplify_work.local.action_chunk import ActionChunk
from simplify_work.local.channel import Channel, NotSent, Reply
from simplify_work.local.gauge import Gauge
from simplify_work.local.outgoing import CodecName, Outgoing
from simplify_work.wire.address import DEFAULT_ADDRESS, parse_address
from simplify_work.wire.codec import pack
from simplify_work.wire.errors import (
    PolicyChanged,
    RemoteInferenceError,
    ServerTimeout,
    ServerUnreachable,
    SessionLost,
    WireFormatError,
)
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.keys import ClientKeys
from simplify_work.wire.messages import (
    ACTIONS,
    MODEL_ACTIONS,
    POSTPROCESSOR_OFFSET,
    POSTPROCESSOR_SCALE,
    PREV_CHUNK_LEFT_OVER,
    Bye,
    Chunk,
    Done,
    Hello,
    Infer,
    Reset,
    Rtc,
    Welcome,
)

logger = logging.getLogger(__name__)

# "Within 5 s" includes the time that a program needs to begin.
CONNECT_TIMEOUT_S = 4.5
TIMEOUT_S = 5.0


class PolicyClient:
    """A session with a policy server.

    Safe to use from several threads, whose calls overlap. A lost connection is tried again in the background with
    exponential backoff and jitter; a call made meanwhile waits for it, within its deadline, and greets the server anew.

    Args:
        address: `tcp://host:port`, `host:port` or `ipc://path`. On `ipc://` arrays go through shared memory.
        timeout_s: Longest wait for one answer.
        connect_timeout_s: Longest wait for a server to be there.
        name: What the server's log shall call this client; the host's name if None.
        keys: This robot's folder of the keys that `lerobot-ext keys` made; encrypts, and proves who is who.
        codec: How pictures travel over TCP: `raw`; `jpeg` (depth without loss); `lossless`; or `auto`, whichever is
            the quickest over the link, as measured at the beginning and from then on.
        jpeg_quality: 1 to 100.
        shrink: Send pictures no larger than the policy looks at them, unless they travel raw.

    Raises:
        AddressError: If the address is none.
        KeyRefused: If the keys cannot be used.
        ValueError: If the codec or the quality is none.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        name: str | None = None,
        keys: str | Path | None = None,
        codec: CodecName = "auto",
        jpeg_quality: int = 90,
        shrink: bool = True,
    ) -> None:
        self.address = parse_address(address)
        self.timeout_s = timeout_s
        self.connect_timeout_s = connect_timeout_s
        self._name = name or platform.node()
        client_keys = None if keys is None else ClientKeys.load(keys)
        # This machine's memory or CURVE vouch for what is sent.
        safe = self.address.is_loopback or client_keys is not None
        self._outgoing = Outgoing(self.address, codec, jpeg_quality, shrink, checked=not safe)
        self._requests = itertools.count(1)
        # Random, so that no other client can step into this session by chance.
        self._channel = Channel(self.address, b"c" + uuid.uuid4().bytes, client_keys)
        self._greeting = threading.Lock()
        self._greeted_epoch: int | None = None
        self._features: tuple[FeatureSpec, ...] | None = None
        self._welcome: Welcome | None = None
        self._postprocessor: tuple[np.ndarray, np.ndarray] | None = None
        self._gauge = Gauge(
            self._outgoing.link, self._channel, self._requests, self._name, thorough=self.address.is_loopback
        )

    @property
    def welcome(self) -> Welcome | None:
        """What the server serves; None before `connect`."""
        return self._welcome

    @property
    def supports_rtc(self) -> bool:
        """True if the server's policy can continue a chunk; False before `connect`."""
        return self._welcome is not None and self._welcome.supports_rtc

    @property
    def postprocessor(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Scale and offset, (dim,) float64: actions are `model_actions * scale + offset`; None if not of that form."""
        return self._postprocessor

    @property
    def link(self) -> str:
        """What is known of the link, for people to read."""
        return str(self._outgoing.link)

    def connect(self, features: Sequence[FeatureSpec] | None = None) -> Welcome:
        """Meet the server.

        Args:
            features: What the robot gives, for the server to compare with what its policy wants; None if unknown.

        Raises:
            ServerUnreachable: If nobody answers within `connect_timeout_s`.
            KeyRefused: If the server does not admit this client's key, or is not the one that the keys are for.
            FeatureMismatch: If the policy wants more than `features`.
            RemoteError: If the server refuses for another reason.
        """
        if features is not None:
            self._features = tuple(features)
        self._greet(time.monotonic() + self.connect_timeout_s, again=True)
        return self._welcome

    def infer(
        self,
        observation: Mapping[str, np.ndarray],
        *,
        task: str = "",
        robot_type: str = "",
        seed: int | None = None,
        rtc: Rtc | None = None,
        left_over: np.ndarray | None = None,
        model_actions: bool = False,
        timeout_s: float | None = None,
    ) -> ActionChunk:
        """Ask for the chunk of actions that follows an observation.

        Args:
            observation: The arrays that `welcome.inputs` names: images (H, W, 3) uint8, depth (H, W, 1) uint16
                millimetres or float32 metres, vectors (n,) float32; where `welcome.n_obs_steps` is above 1 with a
                leading axis of so many observations or fewer, the oldest first. Not to be written to during the call.
            task: What the robot shall do, in words.
            robot_type: LeRobot's name of the robot.
            seed: Seed of the policy's noise for this chunk.
            rtc: How to continue `left_over`.
            left_over: (n, dim) float32, what is left of the previous chunk's `model_actions`.
            model_actions: Return those, too.
            timeout_s: Instead of the client's.

        Raises:
            ServerUnreachable: If nobody is there, or the connection was lost meanwhile.
            ServerTimeout: If the answer does not come in time.
            ServerStopped: If the server said goodbye meanwhile.
            Superseded: If another thread's newer observation took this one's place while it waited at the server.
            FeatureMismatch: If the observation lacks something.
            RemoteInferenceError: If the policy failed, or its chunk is not finite or not of the announced width.
            PolicyChanged: If the server came back with another policy.
        """
        started = time.perf_counter()
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        arrays = dict(observation)
        if left_over is not None:
            arrays[PREV_CHUNK_LEFT_OVER] = np.asarray(left_over, np.float32)
        for attempt in (1, 2):
            self._greet(deadline)
            if self._outgoing.wants_memory(arrays):
                self._offer_memory(arrays, deadline)
            request = next(self._requests)
            asked = {"task": task, "robot_type": robot_type, "seed": seed, "rtc": rtc}
            message = Infer(request=request, model_actions=model_actions, **asked)
            packed = self._outgoing.packed(message, arrays)
            if packed.codec != "raw" and self._outgoing.measures:
                self._gauge.now_and_then()
            reply = self._ask(packed.frames, request, Chunk, deadline, timeout_s, last=attempt == 2)
            if reply is not None:
                break
        self._outgoing.answered(packed, reply.received_s, reply.message.durations.total_s)
        actions = self._checked(reply.arrays.get(ACTIONS))
        return ActionChunk(
            actions,
            reply.message.durations,
            time.perf_counter() - started,
            self._checked(reply.arrays.get(MODEL_ACTIONS)) if model_actions else None,
            packed.sent_bytes,
            packed.codec,
        )

    def reset(self) -> None:
        """Tell the server that a new episode begins, and wait until it has forgotten the last one.

        Raises:
            RemoteError: As `infer`.
        """
        deadline = time.monotonic() + self.timeout_s
        for attempt in (1, 2):
            self._greet(deadline)
            request = next(self._requests)
            frames = pack(Reset(request=request))
            if self._ask(frames, request, Done, deadline, self.timeout_s, last=attempt == 2) is not None:
                return

    def close(self) -> None:
        """Say goodbye and free the socket; the client may be used again and then connects anew."""
        self._channel.close(pack(Bye(reason="the client closed")))
        self._outgoing.close()

    def __enter__(self) -> PolicyClient:
        """The client itself, not yet connected."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    def _ask(
        self,
        frames: Sequence[Any],
        request: int,
        expected: type,
        deadline: float,
        timeout_s: float,
        last: bool,
    ) -> Reply | None:
        """One request in a greeted session; None if the server does not know the session, unless it is the last try."""
        try:
            reply = self._channel.exchange(frames, request, deadline)
        except SessionLost as error:
            if last:
                raise
            logger.info("%s: %s", self.address.endpoint, error)
            self._greeted_epoch = None
            return None
        except NotSent as error:
            # After bytes that are not ZeroMQ's libzmq gives the connection up for good: the next call needs a new one.
            self._channel.drop_if_idle()
            raise self._unreachable(timeout_s) from error
        except TimeoutError as error:
            # What was not sent yet would delay the next request.
            self._channel.drop_if_idle()
            raise ServerTimeout(
                f"no answer from {self.address.endpoint} within {timeout_s:g} s: the server is busy or stopped, or "
                "the link is down; look at the server's log, or raise timeout_s."
            ) from error
        if not isinstance(reply.message, expected):
            raise WireFormatError(
                f"{self.address.endpoint} answered with {type(reply.message).__name__}, expected {expected.__name__}."
            )
        return reply

    def _greet(self, deadline: float, again: bool = False) -> None:
        """See to it that the server knows this client."""
        if self._greeted_epoch == self._channel.epoch and not again:
            return
        began = time.monotonic()
        deadline = min(deadline, began + self.connect_timeout_s)
        if not self._greeting.acquire(timeout=max(0.0, deadline - began)):
            raise self._unreachable(time.monotonic() - began)
        try:
            if self._greeted_epoch == self._channel.epoch and not again:
                return
            while True:
                try:
                    reply = self._hello(deadline)
                    break
                except ServerUnreachable:  # the connection broke before the answer; it is being tried again
                    continue
                except TimeoutError as error:
                    self._channel.drop_if_idle()
                    raise self._unreachable(time.monotonic() - began) from error
            self._meet(reply)
            self._greeted_epoch = self._channel.epoch
            if self._outgoing.measures:
                self._gauge.measure(deadline)
        finally:
            self._greeting.release()

    def _offer_memory(self, arrays: Mapping[str, np.ndarray], deadline: float) -> None:
        """Agree on shared memory with the server, once a connection; without it arrays are sent."""
        with self._greeting:
            if self._outgoing.wants_memory(arrays):
                name = self._outgoing.make_memory(arrays)
                try:
                    self._outgoing.use_memory(
                        name is not None and self._hello(deadline, name).message.shared_memory
                    )
                except BaseException as error:
                    self._outgoing.close()  # the next observation offers it anew
                    if isinstance(error, TimeoutError):
                        raise self._unreachable(self.timeout_s) from error
                    raise

    def _hello(self, deadline: float, segment: str | None = None) -> Reply:
        request = next(self._requests)
        hello = Hello(request=request, client=self._name, features=self._features, shared_memory=segment)
        return self._channel.exchange(pack(hello), request, deadline)

    def _meet(self, reply: Reply) -> None:
        """Take in a Welcome."""
        welcome = reply.message
        if not isinstance(welcome, Welcome):
            raise WireFormatError(
                f"{self.address.endpoint} answered with {type(welcome).__name__}, expected Welcome."
            )
        if self._welcome is not None and _contract(welcome) != _contract(self._welcome):
            raise PolicyChanged(
                f"{self.address.endpoint} came back with policy '{welcome.policy_type}' ({welcome.action_dim} "
                f"actions wide), this session began with '{self._welcome.policy_type}' "
                f"({self._welcome.action_dim}); end this run and start a new one."
            )
        scale, offset = (reply.arrays.get(name) for name in (POSTPROCESSOR_SCALE, POSTPROCESSOR_OFFSET))
        self._postprocessor = None
        if scale is not None and offset is not None:
            for array in (scale, offset):
                if array.shape != (welcome.action_dim,) or not np.isfinite(array).all():
                    raise WireFormatError(
                        f"{self.address.endpoint} sent a postprocessor of shape {array.shape}, expected "
                        f"({welcome.action_dim},), finite; restart the server."
                    )
            self._postprocessor = scale.astype(np.float64), offset.astype(np.float64)
        self._outgoing.welcome(welcome)
        self._welcome = welcome

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

    def _unreachable(self, waited_s: float) -> ServerUnreachable:
        if self.address.path is not None:
            options = f"--address={self.address.endpoint}"
        else:
            options = f"--host={self.address.host} --port={self.address.port}"
        return ServerUnreachable(
            f"no policy server at {self.address.endpoint} (waited {waited_s:.1f} s); start one there with "
            f"`lerobot-ext serve --policy.path=CHECKPOINT {options}`, wait until it says ready, and check address "
            "and firewall."
        )


def _contract(welcome: Welcome) -> tuple[object, ...]:
    """What must stay the same when a server comes back."""
    return welcome.policy_type, welcome.inputs, welcome.action_dim
