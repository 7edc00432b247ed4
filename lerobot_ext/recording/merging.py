"""Datasets that were recorded with different devices can be merged, though their features' `info` differs.

LeRobot merges datasets whose features are equal, but for how videos were encoded; it keeps what all sources agree on.
The same is done here with what `provenance` writes: which camera, which sensors. Units must be equal.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lerobot_ext.recording.provenance import CAMERA, SENSORS

logger = logging.getLogger(__name__)

DEVICES = (CAMERA, SENSORS)
UNITS = "units"

Features = Mapping[str, Mapping[str, Any]]


def comparable(features: Features, other: Features) -> dict[str, dict[str, Any]]:
    """`features` without what does not keep them from being merged with `other`: devices, units that only one states."""
    found = {}
    for key, feature in features.items():
        theirs = (other.get(key) or {}).get("info") or {}
        left_out = DEVICES if UNITS in theirs else (*DEVICES, UNITS)
        info = {name: value for name, value in (feature.get("info") or {}).items() if name not in left_out}
        found[key] = {name: value for name, value in feature.items() if name != "info"}
        if info:
            found[key]["info"] = info
    return found


def keep_what_is_common(merged: dict[str, dict], sources: list[Features]) -> dict[str, dict]:
    """Take out of the `info` of `merged` (changed in place) every device that is not the same in all sources."""
    for key, feature in merged.items():
        infos = [(source.get(key) or {}).get("info") or {} for source in sources]
        for name in (*DEVICES, UNITS):
            known = [info.get(name) for info in infos]
            if any(value != known[0] for value in known) and name in (feature.get("info") or {}):
                feature["info"] = {k: v for k, v in feature["info"].items() if k != name}
                logger.warning(
                    "%s: the datasets were not all recorded with the same %s, so the merged one does not say which",
                    key,
                    name,
                )
    return merged
