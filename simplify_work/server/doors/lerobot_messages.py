"""What LeRobot's robot client says, typed and checked, and the answer it understands.

Its messages are pickles (lerobot/async_inference/robot_client.py of LeRobot 0.6.1); they are read by `pickles`, which
knows the names listed here and constructs nothing else. The answer is pickled from LeRobot's own classes, which the
client unpickles. Nothing here knows of gRPC or of sessions.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.async_inference.helpers import TimedAction
from lerobot.utils import feature_utils

from simplify_work.server.doors import pickles
from simplify_work.server.doors.numpy_pickles import NUMPY
from simplify_work.server.protocol import Served
from simplify_work.wire.errors import FeatureMismatch, WireFormatError
from simplify_work.wire.features import DTYPES, FeatureSpec, check_features, kind_of
from simplify_work.wire.messages import MAX_TEXT

OBSERVATION = "observation"
MAX_INSTRUCTIONS = 2**20
MAX_OBSERVATION = 64 * 2**20
MAX_FEATURES = 256
MAX_NAME = 256

_MODULE = "lerobot.async_inference.helpers"


class _Record:
    """The fields of one of LeRobot's dataclasses, as the stream has them; not checked yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields: dict[str, Any] = {}


class _RecordKind(pickles.Kind):
    """Reads a dataclass as its fields: a blank one is made, and its `__dict__` is its state."""

    def __init__(self, name: str) -> None:
        self._name = name

    def new(self, *args: Any, **kwargs: Any) -> _Record:
        if args or kwargs:
            raise pickles.PickleRefused(f"{self._name} is made with arguments, expected none.")
        return _Record(self._name)

    def build(self, made: _Record, state: Any) -> None:
        if type(state) is not dict:
            raise pickles.PickleRefused(
                f"{self._name} comes with a {type(state).__name__}, expected its fields."
            )
        made.fields = state

    def parts(self, made: _Record) -> Iterable[Any]:
        return made.fields.values()


# LeRobot annotates the features as PolicyFeature, but sends plain dicts; so that class and its enum are not here.
_INSTRUCTIONS: pickles.Known = {(_MODULE, "RemotePolicyConfig"): _RecordKind("RemotePolicyConfig")}
_OBSERVED: pickles.Known = {(_MODULE, "TimedObservation"): _RecordKind("TimedObservation"), **NUMPY}


@dataclass(frozen=True)
class Instructions:
    """LeRobot's RemotePolicyConfig.

    Attributes:
        policy_type: LeRobot's name of the policy that the client expects.
        checkpoint: Its `pretrained_name_or_path`.
        features: The robot's observation, as features of a dataset: `dtype`, `shape`, `names` of each.
        actions_per_chunk: How many actions of a chunk to send.
        device: Where the client wants the policy to run.
        rename_map: The checkpoint's name of an observation by the robot's.
    """

    policy_type: str
    checkpoint: str
    features: Mapping[str, Mapping[str, Any]]
    actions_per_chunk: int
    device: str
    rename_map: Mapping[str, str]

    def given(self) -> tuple[FeatureSpec, ...]:
        """What the robot gives, under the checkpoint's names; pictures are taken to have a right dtype."""
        specs = []
        for key, feature in self.features.items():
            shape = feature["shape"]
            kind = "vector" if feature["dtype"] == "float32" else kind_of(shape)
            dtypes = ("uint8",) if kind == "image" else DTYPES[kind]
            specs.append(FeatureSpec(self.rename_map.get(key, key), kind, shape, dtypes))
        return tuple(specs)

    def check(self, served: Served) -> None:
        """Refuse a robot that lacks something the policy wants.

        Raises:
            FeatureMismatch: Naming what is missing or different, and listing both sides.
        """
        check_features(served.inputs, self.given(), served.policy_type)

    def frame(self, raw: Mapping[str, Any], served: Served) -> dict[str, np.ndarray]:
        """The arrays that the policy wants, by LeRobot's own rule from a robot's observation to a dataset's frame.

        Args:
            raw: Numbers by joint and arrays by camera or sensor.
            served: What the policy wants.

        Raises:
            FeatureMismatch: If something is missing or is no array.
        """
        for feature in self.features.values():
            for name in feature["names"] if feature["dtype"] == "float32" else ():
                # One array for each of many names would become one of a size that was never sent.
                if not isinstance(raw.get(name, 0.0), int | float | np.number):
                    raise FeatureMismatch(f"'{name:.100}' is {type(raw[name]).__name__}, expected a number.")
        try:
            # Looked up at the call: LeRobot's function takes vectors, force, only once our extension is in place.
            with np.errstate(over="ignore"):  # what becomes infinite is refused later
                frame = feature_utils.build_dataset_frame(dict(self.features), dict(raw), OBSERVATION)
        except (KeyError, TypeError, ValueError) as error:
            raise FeatureMismatch(
                f"the observation does not have what the policy instructions announced ({type(error).__name__}: {error}); "
                f"it has {', '.join(sorted(raw))}."
            ) from None
        frame = {self.rename_map.get(key, key): value for key, value in frame.items()}
        wanted = {spec.name for spec in served.inputs} & frame.keys()
        for name in wanted:
            if not isinstance(frame[name], np.ndarray):
                raise FeatureMismatch(f"{name} is {type(frame[name]).__name__}, expected a numpy array.")
        return {name: frame[name] for name in wanted}


@dataclass(frozen=True)
class Observed:
    """LeRobot's TimedObservation.

    Attributes:
        timestamp: Of the client's clock, seconds since 1970.
        timestep: Of the last action that the client had executed.
        raw: Numbers by joint and arrays by camera or sensor.
        task: What the robot shall do, in words.
        must_go: True if the client has no action left and waits for this observation's.
    """

    timestamp: float
    timestep: int
    raw: Mapping[str, Any]
    task: str
    must_go: bool


def read_instructions(data: bytes) -> Instructions:
    """The client's pickled RemotePolicyConfig.

    Raises:
        WireFormatError: If it is anything else, or a value in it cannot be.
    """
    fields = _read(data, _INSTRUCTIONS, MAX_INSTRUCTIONS)
    features = _field(fields, "lerobot_features", dict)
    if len(features) > MAX_FEATURES:
        raise WireFormatError(
            f"the policy instructions name {len(features)} features, expected {MAX_FEATURES} at most."
        )
    renamed = _field(fields, "rename_map", dict, {})
    if not all(isinstance(name, str) and len(name) <= MAX_NAME for name in renamed.values()):
        raise WireFormatError(
            f"rename_map of the policy instructions is not of names of at most {MAX_NAME} letters."
        )
    count = _field(fields, "actions_per_chunk", int)
    if count < 1:
        raise WireFormatError(f"actions_per_chunk is {count}, expected 1 or more.")
    return Instructions(
        policy_type=_field(fields, "policy_type", str),
        checkpoint=_field(fields, "pretrained_name_or_path", str),
        features={key: _feature(key, feature) for key, feature in features.items()},
        actions_per_chunk=count,
        device=_field(fields, "device", str, "cpu"),
        rename_map=renamed,
    )


def read_observation(data: bytes | memoryview) -> Observed:
    """The client's pickled TimedObservation.

    Raises:
        WireFormatError: If it is anything else, or a value in it cannot be.
    """
    fields = _read(data, _OBSERVED, MAX_OBSERVATION)
    raw = dict(_field(fields, "observation", dict))
    task = raw.pop("task", "")
    if not isinstance(task, str) or len(task) > MAX_TEXT:
        raise WireFormatError(f"the task is not a text of at most {MAX_TEXT} characters.")
    return Observed(
        timestamp=_field(fields, "timestamp", float),
        timestep=_field(fields, "timestep", int),
        raw=raw,
        task=task,
        must_go=_field(fields, "must_go", bool, False),
    )


def pickled_actions(actions: np.ndarray, first: Observed, step_s: float) -> bytes:
    """A chunk as LeRobot's server sends it: action i has the timestep t + i and the timestamp t0 + i * step_s.

    Args:
        actions: (n, dim) float32.
        first: The observation that the chunk is for.
        step_s: Time between two actions.
    """
    # Each action is a tensor of its own: a row of the chunk's tensor would bring the whole chunk into its pickle.
    return pickle.dumps(
        [
            TimedAction(first.timestamp + i * step_s, first.timestep + i, torch.tensor(action))
            for i, action in enumerate(actions)
        ]
    )


def _read(data: bytes | memoryview, known: pickles.Known, max_bytes: int) -> dict[str, Any]:
    record = pickles.read(data, known, max_bytes=max_bytes)
    if not isinstance(record, _Record):
        expected = next(iter(known))[1]
        raise WireFormatError(f"a {type(record).__name__} came, expected LeRobot's {expected}.")
    return record.fields


def _field(fields: Mapping[str, Any], name: str, kind: type, *default: Any) -> Any:
    """A field of that very type: True is no number."""
    value = fields.get(name, *default)
    if type(value) is not kind:
        raise WireFormatError(f"'{name}' is {type(value).__name__}, expected {kind.__name__}.")
    return value


def _feature(key: str, feature: Any) -> dict[str, Any]:
    """The entries that `build_dataset_frame` reads, of types and sizes that cannot surprise it."""
    if not isinstance(feature, dict):
        raise WireFormatError(f"feature '{key:.100}' is {type(feature).__name__}, expected a dict.")
    dtype, shape, names = _field(feature, "dtype", str), feature.get("shape"), feature.get("names")
    if not isinstance(shape, tuple | list) or not all(
        type(size) is int and 0 <= size < 2**31 for size in shape
    ):
        raise WireFormatError(f"feature '{key:.100}' has no shape of whole numbers.")
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise WireFormatError(f"feature '{key:.100}' has no names.")
    if (
        dtype not in ("float32", "image", "video")
        or not 1 <= len(shape) <= 3
        or not 1 <= len(key) <= MAX_NAME
    ):
        raise WireFormatError(
            f"feature '{key:.100}' is {dtype:.40} {tuple(shape)[:8]}: no vector and no picture."
        )
    return {"dtype": dtype, "shape": tuple(shape), "names": list(names)}
