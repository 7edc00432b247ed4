"""The messages of the protocol, typed; how they become bytes is in `codec`.

A client says Hello and gets Welcome; then Infer gets Chunk and Reset gets Done, or any of them an Error. Every
request carries a number that its reply repeats. Either side may say Bye. Times are durations in seconds, measured
by one machine; clocks of two machines are never compared. The reader refuses fields it does not know, so any change
of a message is a new PROTOCOL_VERSION.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from simplify_work.wire.features import Dim, FeatureSpec

PROTOCOL_VERSION = 4

MAX_GUIDANCE_WEIGHT = 1e6
MAX_TEXT = 8192
MAX_ARRAYS = 64
MAX_NDIM = 8

# Array of an Infer: what is left of the previous chunk, (n, action_dim) float32 in the model's units.
PREV_CHUNK_LEFT_OVER = "rtc.prev_chunk_left_over"
# Arrays of a Chunk, both (chunk_size, action_dim) float32: in the robot's units, and before postprocessing.
ACTIONS = "actions"
MODEL_ACTIONS = "actions.model"
# Arrays of a Welcome, both (action_dim,) float64: the postprocessor, where it is `model * scale + offset`.
POSTPROCESSOR_SCALE = "postprocessor.scale"
POSTPROCESSOR_OFFSET = "postprocessor.offset"

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
RequestId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

# `zstd_rows` is described at `pictures._to_rows`.
Encoding = Literal["raw", "jpeg", "zstd", "zstd_rows"]


class ArrayInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is in one of the frames after the header.

    Attributes:
        name: Unique within the message.
        dtype: A key of `codec.WIRE_DTYPES`.
        shape: At most MAX_NDIM dimensions; with the dtype it gives the exact number of bytes, once decoded.
        checksum: `codec.checksum` of the bytes as they travel; None where the sender relies on what carries them. In
            shared memory the stamp that is there as long as they are whole.
        encoding: How they travel; anything but `raw` is for pictures only.
        offset: Where they begin in the sender's shared memory; None if they are a frame of the message.
    """

    name: Name
    dtype: str
    shape: Annotated[tuple[Dim, ...], msgspec.Meta(max_length=MAX_NDIM)]
    checksum: Annotated[int, msgspec.Meta(ge=0)] | None
    encoding: Encoding = "raw"
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None


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
        shared_memory: Name of the segment that this client's arrays are in; on `ipc://` only.
    """

    request: RequestId
    client: Text
    features: Annotated[tuple[FeatureSpec, ...], msgspec.Meta(max_length=256)] | None = None
    shared_memory: Annotated[str, msgspec.Meta(pattern=r"^lrx_[0-9a-f]{32}$")] | None = None


class PictureUse(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The size at which a policy looks at a picture; a larger one may be made smaller before it is sent.

    Attributes:
        name: Of the input.
        height: Pixels.
        width: Pixels.
        fit: `pad`: resized with its aspect ratio kept, until it fits inside, then padded. `stretch`: to that size.
    """

    name: Name
    height: Dim
    width: Dim
    fit: Literal["pad", "stretch"]


class Welcome(Message):
    """What the server serves.

    Attributes:
        request: That of the Hello.
        server: Name and version of the server's program.
        policy_type: LeRobot's name of the policy, `act` for example.
        inputs: What the policy wants from the robot, before any preprocessing; those with a `history` are sent as
            windows.
        action_dim: Width of an action.
        action_names: Names of the action's entries if the checkpoint knows them.
        chunk_size: Actions in a chunk.
        n_action_steps: Actions of a chunk that the checkpoint's config says to execute.
        n_obs_steps: Observations that the policy looks at. If above 1, every array of an Infer has a leading axis
            of 1 to n_obs_steps observations, one control step apart, the oldest first.
        supports_rtc: True if an Infer may have `rtc`.
        takes_tip: True if the policy was trained on tasks with language tips; they are part of an Infer's task.
        pictures: At what size the policy looks at them; those it takes at any size are not listed.
        shared_memory: True if the server reads the segment that the Hello named; else arrays come as frames.
        temporal_ensemble_coeff: ACT's, if the checkpoint has one: the client asks at every step and hands out the
            mean of what all chunks say for that step, chunk i (the oldest is 0) weighing exp(-coeff * i).

    The arrays POSTPROCESSOR_SCALE and POSTPROCESSOR_OFFSET come with it if the postprocessor is of that form.
    """

    request: RequestId
    server: Text
    policy_type: Text
    inputs: Annotated[tuple[FeatureSpec, ...], msgspec.Meta(max_length=256)]
    action_dim: Count
    action_names: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1024)] | None
    chunk_size: Count
    n_action_steps: Count
    n_obs_steps: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    supports_rtc: bool = False
    takes_tip: bool = False
    pictures: Annotated[tuple[PictureUse, ...], msgspec.Meta(max_length=256)] = ()
    shared_memory: bool = False
    temporal_ensemble_coeff: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] | None = None


class Rtc(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Guide the new chunk to continue the one that is being executed (Real-Time Chunking, arXiv 2506.07339).

    Attributes:
        inference_delay: Steps that will have been executed when the chunk arrives (the paper's d).
        execution_horizon: Steps from which on nothing binds the new chunk (the paper's H - s).
        guidance: `jacobian`: the error goes back through the denoiser, as in the paper; `identity`: LeRobot's, which
            takes the error itself.
        schedule: How the weights fall between `inference_delay` and `execution_horizon`, LeRobot's names.
        max_guidance_weight: Clamp of the guidance (the paper's beta).
    """

    inference_delay: Count
    execution_horizon: Count
    guidance: Literal["identity", "jacobian"] = "identity"
    schedule: Literal["zeros", "ones", "linear", "exp"] = "linear"
    max_guidance_weight: Annotated[float, msgspec.Meta(gt=0, le=MAX_GUIDANCE_WEIGHT)] = 10.0


class Infer(Message):
    """One observation, as its arrays; asks for a Chunk.

    Attributes:
        request: Number of the request.
        task: What the robot shall do, in words.
        robot_type: LeRobot's name of the robot.
        seed: Seed of the policy's noise for this chunk; None leaves the server's generator alone.
        rtc: How to continue the array PREV_CHUNK_LEFT_OVER; None without RTC. Without that array nothing is guided.
        model_actions: Send MODEL_ACTIONS, too.
    """

    request: RequestId
    task: Text = ""
    robot_type: Text = ""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    rtc: Rtc | None = None
    model_actions: bool = False


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
    """The actions, as the array ACTIONS, and MODEL_ACTIONS if they were asked for."""

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
