"""The ACT servers' messages: what a client asks, as arrays of our names, and what it is told.

Requests are the pickled text 'RESET' or a dict of `qpos` and `images`; they are read by `pickles` and checked against
what the checkpoint wants. Nothing here knows of sockets or of sessions.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from lerobot_ext.errors import UserError
from simplify_work.server.doors.pickles import NUMPY, read
from simplify_work.server.protocol import Served
from simplify_work.wire.errors import FeatureMismatch, WireFormatError
from simplify_work.wire.features import FeatureSpec

# Four pictures of 1080p; a longer request is refused.
MAX_REQUEST_BYTES = 32 * 1024 * 1024

RESET = "RESET"
QPOS, IMAGES = "qpos", "images"
_STATE, _IMAGE = "observation.state", "observation.images."

_PROTOCOL = 4  # of replies: the newest that Python 3.4 to 3.7 read
_MAX_TEXT = 2000
_MAX_LISTED = 20
_EXPECTED = "expected the text 'RESET' or {'qpos': array, 'images': {name: array}}"


class Translator:
    """Between an ACT client's words and one checkpoint's.

    Args:
        served: The checkpoint's policy.

    Raises:
        UserError: If it wants something that an ACT client has no word for.
    """

    def __init__(self, served: Served) -> None:
        self._policy = served.policy_type
        self._resized = {use.name for use in served.pictures}
        self._qpos: FeatureSpec | None = None
        self._images: dict[str, FeatureSpec] = {}
        for spec in served.inputs:
            if spec.name == _STATE:
                self._qpos = spec
            elif spec.name.startswith(_IMAGE):
                self._images[spec.name.removeprefix(_IMAGE)] = spec
            else:
                raise UserError(
                    f"policy '{served.policy_type}' wants {spec}, and an ACT client sends `qpos` and `images` only; leave "
                    "out --door=act_zmq, or serve a checkpoint that was trained without it."
                )

    @property
    def wanted(self) -> str:
        """What a request must hold, in the client's words."""
        parts = [] if self._qpos is None else [f"qpos {self._qpos.shape} float32 or float64"]
        parts += [
            f"images['{name}'] {spec.shape} {'/'.join(spec.dtypes)}" for name, spec in self._images.items()
        ]
        return ", ".join(parts)

    def observation(self, request: Any) -> dict[str, np.ndarray]:
        """The arrays that the policy wants, under its names; others that the client sends are left out.

        Args:
            request: From `read_request`.

        Raises:
            FeatureMismatch: With everything that is missing or different, what was expected and what was found.
        """
        images = request.get(IMAGES, {})
        faults, found = [], {}
        if not isinstance(images, dict):
            faults.append(f"images is a {type(images).__name__}, expected a dict")
            images = {}
        if self._qpos is not None:
            faults += _fault_of_qpos(request.get(QPOS), self._qpos)
        for name, spec in self._images.items():
            faults += self._fault_of_image(name, images.get(name), spec)
        if faults:
            raise FeatureMismatch(
                f"the observation does not fit policy '{self._policy}': {'; '.join(faults)}. "
                f"Expected: {self.wanted}. Found: {_described(request, images)}."
            )
        if self._qpos is not None:
            found[_STATE] = np.ascontiguousarray(request[QPOS], np.float32)
        return found | {spec.name: images[name] for name, spec in self._images.items()}

    def _fault_of_image(self, name: str, value: Any, spec: FeatureSpec) -> list[str]:
        what = f"images['{name}']"
        if value is None:
            return [f"{what} is missing"]
        if not isinstance(value, np.ndarray):
            return [f"{what} is a {type(value).__name__}, expected an array"]
        # Only a policy that resizes by itself sees the same in a picture of another size.
        same = value.shape == spec.shape
        if spec.name in self._resized:
            same = value.ndim == 3 and value.shape[2] == spec.shape[2] and 0 not in value.shape
        if not same:
            return [f"{what} has shape {value.shape}, expected {spec.shape}"]
        if value.dtype.name not in spec.dtypes:
            return [f"{what} is {value.dtype.name}, expected {' or '.join(spec.dtypes)}"]
        return []


def read_request(data: bytes | memoryview) -> dict[str, Any] | None:
    """What a client asks: an observation, not checked yet; None for RESET.

    Raises:
        WireFormatError: If it is anything else.
    """
    request = read(data, NUMPY, max_bytes=MAX_REQUEST_BYTES)
    if type(request) is dict:
        return request
    if type(request) is not str:
        raise WireFormatError(f"the request is a {type(request).__name__}, {_EXPECTED}.")
    if request != RESET:
        raise WireFormatError(f"the request is the text '{request:.50}', {_EXPECTED}.")
    return None


def done() -> bytes:
    """The answer to RESET."""
    return pickle.dumps({"status": "OK"}, _PROTOCOL)


def action(values: np.ndarray) -> bytes:
    """The answer to an observation.

    Args:
        values: (action_dim,) float32.
    """
    return pickle.dumps({"status": "OK", "action": _Array(values)}, _PROTOCOL)


def error(text: str) -> bytes:
    """The answer to anything that was refused."""
    return pickle.dumps({"status": "ERROR", "message": text[:_MAX_TEXT]}, _PROTOCOL)


class _Array:
    """Pickled so that any numpy reads it: an array's own pickle names a module that numpy before 1.26 does not have."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __reduce__(self) -> tuple:
        return np.frombuffer, (bytearray(self._array.tobytes()), self._array.dtype.str)


def _fault_of_qpos(value: Any, spec: FeatureSpec) -> list[str]:
    if value is None:
        return ["qpos is missing"]
    if not isinstance(value, np.ndarray):
        return [f"qpos is a {type(value).__name__}, expected an array"]
    if value.shape != spec.shape:
        return [f"qpos has shape {value.shape}, expected {spec.shape}"]
    if value.dtype.name not in ("float32", "float64"):
        return [f"qpos is {value.dtype.name}, expected float32 or float64"]
    if not (np.abs(value) <= np.finfo(np.float32).max).all():  # false for nan, too
        return ["qpos has a value that is not finite, or too large for float32"]
    return []


def _described(request: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """What a request holds, in its own words."""
    others = {name: value for name, value in request.items() if name != IMAGES}
    named = [(name[:50], value) for name, value in others.items()]
    named += [(f"images['{name:.50}']", value) for name, value in images.items()]
    parts = [
        f"{name} {value.shape} {value.dtype.name}"
        if isinstance(value, np.ndarray)
        else f"{name} ({type(value).__name__})"
        for name, value in named[:_MAX_LISTED]
    ]
    more = f" and {len(named) - _MAX_LISTED} more" if len(named) > _MAX_LISTED else ""
    return (", ".join(parts) or "nothing") + more
