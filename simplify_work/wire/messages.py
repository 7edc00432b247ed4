"""The messages of the protocol, typed; how they become bytes is in `codec`.

A client says Hello and gets Welcome; then Infer gets Chunk and Reset gets Done, or any of them an Error. Every
request carries a number that its reply repeats. Either side may say Bye. Times are durations in seconds, measured
by one machine; clocks of two machines are never compared. The reader refuses fields it does not know, so any change
of a message is a new PROTOCOL_VERSION.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from simplify_work.wire.features import Dim, FeatureSpec

PROTOCOL_VERSION = 1

MAX_TEXT = 8192
MAX_ARRAYS = 64
MAX_NDIM = 8

# Reserved name of the array with RTC's leftover of the previous chunk, (n, action_dim) float32.
PREV_CHUNK_LEFT_OVER = "rtc.prev_chunk_left_over"
# Name of the array in a Chunk, (chunk_size, action_dim) float32.
ACTIONS = "actions"

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
RequestId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class ArrayInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is in one of the frames after the header.

    Attributes:
        name: Unique within the message.
        dtype: A key of `codec.WIRE_DTYPES`.
        shape: At most MAX_NDIM dimensions; with the dtype it gives the frame's exact length.
        checksum: `codec.checksum` of the frame.
    """

    name: Name
    dtype: str
    shape: Annotated[tuple[Dim, ...], msgspec.Meta(max_length=MAX_NDIM)]
    checksum: Annotated[int, msgspec.Meta(ge=0)]


Arrays = Annotated[tuple[ArrayInfo, ...], msgspec.Meta(max_length=MAX_ARRAYS)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=str.lower):
    """Base of all messages. `arrays` is filled in by the codec."""

    arrays: Arrays = ()


class Hello(Message):
    """First word of a client, also after the server came back.

    Attributes:
        request: Number of the request.
        client: Who is calling, for the server's log.
        features: What the robot gives; None if it is not known yet, then the first Infer is checked.
    """

    request: RequestId
    client: Text
    features: Annotated[tuple[FeatureSpec, ...], msgspec.Meta(max_length=256)] | None = None


class Welcome(Message):
    """What the server serves.

    Attributes:
        request: That of the Hello.
        server: Name and version of the server's program.
        policy_type: LeRobot's name of the policy, `act` for example.
        inputs: What the policy wants from the robot, before any preprocessing.
        action_dim: Width of an action.
        action_names: Names of the action's entries if the checkpoint knows them.
        chunk_size: Actions in a chunk.
        n_action_steps: Actions of a chunk that the checkpoint's config says to execute.
        postprocessed: True if the chunk comes in the robot's units.
    """

    request: RequestId
    server: Text
    policy_type: Text
    inputs: Annotated[tuple[FeatureSpec, ...], msgspec.Meta(max_length=256)]
    action_dim: Count
    action_names: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1024)] | None
    chunk_size: Count
    n_action_steps: Count
    postprocessed: bool


class Infer(Message):
    """One observation, as its arrays; asks for a Chunk.

    Attributes:
        request: Number of the request.
        task: What the robot shall do, in words.
        robot_type: LeRobot's name of the robot.
        seed: Seed of the policy's noise for this chunk; None leaves the server's generator alone.
        inference_delay: RTC: steps that will have been executed when the chunk arrives; None without RTC.
    """

    request: RequestId
    task: Text = ""
    robot_type: Text = ""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    inference_delay: Count | None = None


class Durations(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the server spent on one chunk, by its own clock."""

    queue_s: Seconds
    preprocess_s: Seconds
    infer_s: Seconds
    postprocess_s: Seconds

    @property
    def total_s(self) -> float:
        """All of them together."""
        return self.queue_s + self.preprocess_s + self.infer_s + self.postprocess_s


class Chunk(Message):
    """The actions, as the array ACTIONS."""

    request: RequestId
    durations: Durations


class Reset(Message):
    """A new episode begins: forget everything about the last one."""

    request: RequestId


class Done(Message):
    """The Reset of that number was carried out."""

    request: RequestId


class Bye(Message):
    """The sender goes away."""

    reason: Text = ""


class Error(Message):
    """The request of that number (or, with None, something that could not be read) was refused.

    Attributes:
        request: Number of the request.
        error: A kind of `errors`.
        text: One sentence.
    """

    request: RequestId | None
    error: Text
    text: Text


AnyMessage = Hello | Welcome | Infer | Chunk | Reset | Done | Bye | Error
