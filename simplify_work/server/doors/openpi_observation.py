"""From the observation of an openpi client to the arrays that a checkpoint wants: names, layouts, dtypes.

openpi leaves the keys to each robot (`observation/state`, `images: {cam_high: …}`, `prompt`), so a key is taken for
an input only where its name says which. Nothing here knows of sockets or MessagePack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from simplify_work.server.protocol import Served
from simplify_work.wire.errors import FeatureMismatch
from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import MAX_TEXT

TASK_KEYS = ("prompt", "task")
_OBSERVATION, _IMAGES = "observation.", "observation.images."
_THE_PICTURE = ("image", "observation.image")  # where a policy has one colour picture only


def translate(message: Mapping[Any, Any], served: Served) -> tuple[dict[str, np.ndarray], str]:
    """The arrays by the names of `served.inputs`, and the task.

    Keys may be nested or joined by `/` or `.`. Pictures may be (C, H, W), depth (H, W), vectors any kind of number.
    What the policy does not want is left out.

    Args:
        message: As the client sent it.
        served: What the policy wants.

    Raises:
        FeatureMismatch: If something is missing, there twice, or no array; with what was expected under which names.
    """
    given = dict(_flat(message))
    task = _task(given)
    arrays = {}
    for spec in served.inputs:
        keys = [key for key in names_of(spec, served) if key in given]
        if len(keys) != 1:
            raise FeatureMismatch(_fault(spec, keys, given, served))
        arrays[spec.name] = _fitted(keys[0], given[keys[0]], spec)
    return arrays, task


def names_of(spec: FeatureSpec, served: Served) -> tuple[str, ...]:
    """The keys under which an input may come, with dots for slashes; the proper one first."""
    names = [spec.name, spec.name.removeprefix(_OBSERVATION)]
    if spec.name.startswith(_IMAGES):
        camera = spec.name.removeprefix(_IMAGES)
        names += [camera, _OBSERVATION + camera]
    if spec.kind == "image" and sum(other.kind == "image" for other in served.inputs) == 1:
        names += _THE_PICTURE
    return tuple(dict.fromkeys(names))


def _flat(message: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for key, value in message.items():
        if not isinstance(key, str):
            raise FeatureMismatch(f"the observation has the key {key!r:.80}, expected a text.")
        name = prefix + key.strip("/").replace("/", ".")
        for inner, found in _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]:
            if inner in seen:
                raise FeatureMismatch(f"the observation has '{inner}' twice, once nested or with a slash.")
            seen.add(inner)
            yield inner, found


def _task(given: Mapping[str, Any]) -> str:
    found = {key: given[key] for key in TASK_KEYS if given.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, str):
            raise FeatureMismatch(f"'{key}' is {_what(value)}, expected a text: what the robot shall do.")
        if len(value) > MAX_TEXT:
            raise FeatureMismatch(f"'{key}' has {len(value)} characters, expected {MAX_TEXT} at most.")
    if len(set(found.values())) > 1:
        raise FeatureMismatch("'prompt' and 'task' say different things; send one of them.")
    return next(iter(found.values()), "")


def _fitted(key: str, value: Any, spec: FeatureSpec) -> np.ndarray:
    """The array as our own clients send it; what cannot be made so is left to the check of all inputs."""
    try:
        array = np.asarray(value)
        # Of plain bytes numpy would make an array of as many numbers.
        if array.dtype.kind not in "biuf" or isinstance(value, memoryview):
            raise TypeError
    except (TypeError, ValueError):
        raise FeatureMismatch(f"'{key}' is {_what(value)}, expected a numpy array for {spec}.") from None
    if spec.kind == "vector":
        with np.errstate(over="ignore"):  # what becomes infinite is refused later
            return array.astype(np.float32, copy=False)
    channels = spec.shape[-1]
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    if array.ndim == 3 and array.shape[-1] != channels and array.shape[0] == channels:
        array = np.ascontiguousarray(np.moveaxis(array, 0, -1))
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _fault(spec: FeatureSpec, keys: list[str], given: Mapping[str, Any], served: Served) -> str:
    what = f"comes as each of {', '.join(keys)}" if keys else "is missing"
    wanted = "; ".join(f"{each} as {' or '.join(names_of(each, served))}" for each in served.inputs)
    has = ", ".join(f"{key} {_what(value)}" for key, value in sorted(given.items())) or "nothing"
    return (
        f"{spec} {what}. The policy '{served.policy_type}' wants: {wanted} (slashes do for dots, maps may be nested), "
        f"and the task as prompt. The observation has: {has}."
    )[:4000]


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "bytes" if isinstance(value, memoryview) else type(value).__name__
