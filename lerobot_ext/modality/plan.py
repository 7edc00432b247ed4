"""What a selection means for one dataset: feature by feature, what is read, what the network gets, and why.

Pure functions of a selection and LeRobot's feature dictionary (`meta.features`); nothing is read or decoded here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from lerobot_ext.errors import UserError
from lerobot_ext.features import OBS_FORCE, TIP
from lerobot_ext.modality.depth import DepthRange
from lerobot_ext.modality.selection import Selection

OBS_PREFIX = "observation."
IMAGE_PREFIX = "observation.images."
OBS_STATE = "observation.state"
OBS_TIP = "observation.language_tip"
"""Key of the tip in an observation: LeRobot's pipelines carry only keys that they know or that begin so."""

RGB, DEPTH, FORCE, LANGUAGE, OTHER = "rgb", "depth", "force", "tip", "other"


@dataclass(frozen=True)
class Use:
    """What happens to one recorded feature.

    Attributes:
        key: Its key in the dataset.
        kind: `rgb`, `depth`, `force`, `tip` or `other`.
        recorded: Its entry in the dataset's features.
        used: Whether it is read at all.
        why: One phrase for the table.
        seen_as: Key under which the network gets it; None if it does not get it as a feature.
        seen: Its shape there as datasets write it: (H, W, C) for images.
    """

    key: str
    kind: str
    recorded: Mapping[str, Any]
    used: bool
    why: str
    seen_as: str | None = None
    seen: tuple[int, ...] | None = None


def kind_of(key: str, feature: Mapping[str, Any]) -> str:
    """Which kind of feature this is; depth is recognised by the flag that LeRobot recognises it by."""
    if feature["dtype"] in ("image", "video"):
        return DEPTH if _is_depth(feature) else RGB
    return {OBS_FORCE: FORCE, TIP: LANGUAGE}.get(key, OTHER)


def make_plan(selection: Selection, features: Mapping[str, Mapping[str, Any]]) -> list[Use]:
    """Decide for every recorded feature.

    Args:
        selection: What the policy shall see.
        features: `meta.features` of the dataset as recorded.

    Returns:
        One `Use` a feature, in the order of the dataset.

    Raises:
        UserError: If the selection names or switches on something that was not recorded, or has a pattern that
            matches nothing; lists what was recorded.
    """
    excluded = matching(selection.exclude, "exclude", features)
    own = None if selection.include is None else matching(selection.include, "include", features)
    left = {key: feature for key, feature in features.items() if key not in excluded}
    keys_of = {kind: [k for k, f in left.items() if kind_of(k, f) == kind] for kind in (RGB, DEPTH)}
    chosen = _chosen(selection.cameras, keys_of[RGB], "RGB camera")
    if selection.depth:
        _need(keys_of[DEPTH], "depth", "no depth stream", left)
        streams = _chosen(selection.depth.cameras, keys_of[DEPTH], "depth stream")
        chosen |= streams
        if selection.depth.representation == "normals":
            for key in sorted(streams):
                _need_intrinsics(key, left[key])
    if selection.force:
        _need(OBS_FORCE in left, "force", OBS_FORCE, left)
        fused = not selection.force.is_token
        _need(not fused or OBS_STATE in left, "force fusion 'state'", OBS_STATE, left)
    if selection.language_tip and TIP not in left:
        raise UserError(
            f"a language tip is selected, but the dataset has no column '{TIP}'; it has: {_listed(left)}. Record with "
            "dataset.language_tip, or add it: lerobot-ext tip ROOT --all --set='press until it clicks'"
        )

    plan = []
    for key, feature in features.items():
        if key in excluded:
            plan.append(Use(key, kind_of(key, feature), feature, False, f"excluded by '{excluded[key]}'"))
        elif own is not None and key not in own and _is_own(key, feature):
            plan.append(Use(key, OTHER, feature, False, "not in include"))
        else:
            plan.append(_use(key, selection, left, key in chosen))
    return plan


def _use(key: str, selection: Selection, features: Mapping[str, Mapping[str, Any]], chosen: bool) -> Use:
    """What happens to one feature that no pattern takes away; `chosen` says whether an image was chosen."""
    feature = features[key]
    kind, shape = kind_of(key, feature), shape_of(feature)
    if kind == RGB:
        use = (
            (True, "colour camera", key, _resized(shape, selection)) if chosen else (False, "not in cameras")
        )
    elif kind == DEPTH:
        off = "not in depth.cameras" if selection.depth else "depth is off (use_depth_image)"
        seen = (*_resized(shape, selection)[:2], 3)
        use = (True, _depth_phrase(selection), key, seen) if chosen else (False, off)
    elif kind == FORCE:
        use = (False, "force is off (use_force)")
        if selection.force and selection.force.is_token:
            history = selection.force.force_history
            use = (True, f"last {history} samples as one token", OBS_FORCE, (history, *shape))
        elif selection.force:
            use = (True, f"joined to {OBS_STATE}", OBS_STATE, _fused_shape(features))
    elif kind == LANGUAGE:
        tip = selection.language_tip
        use = (True, "appended to the task") if tip else (False, "the tip is off (use_language_tip)")
    elif key == OBS_STATE and selection.force and not selection.force.is_token:
        use = (True, "joints, then force", key, _fused_shape(features))
    else:
        use = (True, "vector" if key.startswith(OBS_PREFIX) else "for LeRobot", key, shape)
    return Use(key, kind, feature, *use)


def _is_own(key: str, feature: Mapping[str, Any]) -> bool:
    """Whether this is a user's own observation: neither the joints nor what another option decides on."""
    return key.startswith(OBS_PREFIX) and key != OBS_STATE and kind_of(key, feature) == OTHER


def matching(patterns: Iterable[str], option: str, features: Iterable[str]) -> dict[str, str]:
    """Observations that match one of the patterns, and which one; `*` and `?` as in file names.

    Raises:
        UserError: A pattern matches no observation; lists those that there are.
    """
    observations = [key for key in features if key.startswith(OBS_PREFIX)]
    found: dict[str, str] = {}
    for pattern in patterns:
        hits = [key for key in observations if fnmatchcase(key, pattern)]
        if not hits:
            raise UserError(
                f"{option} '{pattern}' matches no observation; the dataset has: {_listed(observations)}."
            )
        found |= {key: found.get(key, pattern) for key in hits}
    return found


def network_features(plan: Iterable[Use]) -> dict[str, dict[str, Any]]:
    """LeRobot features of what the network gets: depth as a colour video, force inside the state or as (H, n)."""
    plan = list(plan)
    force = next((use for use in plan if use.kind == FORCE and use.seen_as == OBS_STATE), None)
    result: dict[str, dict[str, Any]] = {}
    for use in plan:
        if use.seen_as != use.key:
            continue
        feature = {**use.recorded, "shape": use.seen}
        if use.kind in (RGB, DEPTH):
            feature["names"] = ["height", "width", "channels"]
        if use.kind == DEPTH:
            feature.pop("video_info", None)
            feature["info"] = {"is_depth_map": False}
        elif use.key == OBS_STATE and force is not None:
            feature["names"] = [*names_of(use.recorded), *names_of(force.recorded)]
        result[use.key] = feature
    return result


def read_features(plan: Iterable[Use]) -> dict[str, dict[str, Any]]:
    """LeRobot features, as recorded, of what has to be read."""
    return {use.key: dict(use.recorded) for use in plan if use.used}


def raw_observation(plan: Iterable[Use]) -> dict[str, dict[str, Any]]:
    """What the step takes from an observation, as JSON: kind, shape and, where there are any, names and limits.

    Force that becomes a token also says of how many samples, `history`; its shape is that of one.
    """
    result: dict[str, dict[str, Any]] = {}
    for use in plan:
        if not use.used or not use.key.startswith(OBS_PREFIX):
            continue
        entry: dict[str, Any] = {"kind": use.kind, "shape": list(shape_of(use.recorded))}
        if use.kind == DEPTH:
            limits = depth_range(use.recorded)
            entry |= {"lowest_m": limits.lowest_m, "highest_m": limits.highest_m}
            if (intrinsics := intrinsics_of(use.recorded)) is not None:
                entry["intrinsics"] = intrinsics
        elif use.kind != RGB:
            entry["names"] = names_of(use.recorded)
        if use.kind == FORCE and use.seen_as == OBS_FORCE:
            entry["history"] = use.seen[0]
        result[use.key] = entry
    return result


def depth_range(feature: Mapping[str, Any]) -> DepthRange:
    """What a recorded depth stream can hold; depth kept as images has no limits that matter."""
    if feature["dtype"] != "video":
        return DepthRange(0.0, 65.535)
    from lerobot.configs import DepthEncoderConfig

    encoder = DepthEncoderConfig.from_video_info(feature.get("info"))
    return DepthRange(float(encoder.depth_min), float(encoder.depth_max))


def intrinsics_of(feature: Mapping[str, Any]) -> dict[str, float] | None:
    """Focal lengths, centre and size in pixels that were recorded with a depth stream; None if they were not."""
    camera = (feature.get("info") or {}).get("camera") or {}
    found = camera.get("intrinsics") or {}
    names = ("width", "height", "fx", "fy", "ppx", "ppy")
    return {name: found[name] for name in names} if all(name in found for name in names) else None


def shape_of(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a recorded feature; (H, W, C) for images, also where a ported dataset has channels first."""
    shape = tuple(int(n) for n in feature["shape"])
    if feature["dtype"] in ("image", "video") and feature["names"][2] not in ("channel", "channels"):
        return (*shape[1:], shape[0])
    return shape


def names_of(feature: Mapping[str, Any]) -> list[str]:
    """Names of a vector's numbers; numbered if it was recorded without."""
    names = feature.get("names")
    if isinstance(names, Mapping):  # older datasets: {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return [str(name) for name in names] if names else [str(i) for i in range(feature["shape"][0])]


def camera_name(key: str) -> str:
    """`wrist` for `observation.images.wrist`."""
    return key.removeprefix(IMAGE_PREFIX)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info, video_info = feature.get("info") or {}, feature.get("video_info") or {}
    return bool(
        info.get("is_depth_map") or info.get("video.is_depth_map") or video_info.get("video.is_depth_map")
    )


def _chosen(names: tuple[str, ...] | None, keys: list[str], what: str) -> set[str]:
    if names is None:
        return set(keys)
    known = {camera_name(key): key for key in keys}
    for name in map(camera_name, names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise UserError(f"there is no {what} '{name}'; the dataset has: {_listed(known)}{hint}")
    return {known[camera_name(name)] for name in names}


def _need(there: Any, what: str, missing: str, features: Mapping[str, Any]) -> None:
    if not there:
        missing = missing if missing.startswith("no ") else f"no {missing}"
        raise UserError(f"{what} is selected, but the dataset has {missing}; it has: {_listed(features)}.")


def _need_intrinsics(key: str, feature: Mapping[str, Any]) -> None:
    if intrinsics_of(feature) is None:
        raise UserError(
            f"depth.representation 'normals' needs the intrinsics of {key}, which were not recorded (only realsense_rgbd "
            "writes them); choose gray or turbo, or write them into features."
            f"{key}.info.camera.intrinsics of meta/info.json (width, height, fx, fy, ppx, ppy in pixels)."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _resized(shape: tuple[int, ...], selection: Selection) -> tuple[int, ...]:
    return (*(selection.resize or shape[:2]), shape[2])


def _depth_phrase(selection: Selection) -> str:
    depth = selection.depth
    return f"depth as {depth.representation}, {depth.near_m:g} to {depth.far_m:g} m"


def _fused_shape(features: Mapping[str, Mapping[str, Any]]) -> tuple[int]:
    return (features[OBS_STATE]["shape"][0] + features[OBS_FORCE]["shape"][0],)
