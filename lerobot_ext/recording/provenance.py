"""Where a dataset's numbers come from: which camera, which depth unit, which sensor, calibrated how.

The robot tells (`feature_metadata`), once it is connected; here it is written into the dataset before its first frame,
and compared when a dataset is gone on with. `meta/info.json` has it in each feature's `info` (what it was for the first
episode), `meta/lerobot_ext/devices.jsonl` has a line for each time that it changed.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lerobot_ext.arms import cameras_of
from lerobot_ext.errors import UserError
from lerobot_ext.features import OBS_FORCE
from lerobot_ext.recording import episodes
from lerobot_ext.recording.episodes import EpisodeListener, add_listener

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset
    from lerobot.robots import Robot

logger = logging.getLogger(__name__)

DEVICES = "meta/lerobot_ext/devices.jsonl"
SENSORS = "sensors"
CAMERA = "camera"
UNIT = "unit"
DEPTH_UNIT = "depth_unit"
MEASURED = "measured_"

MIXED_UNITS = (
    "dataset {root}: {key} was recorded in {recorded}, but {what} now gives {found}. Two units in one dataset cannot "
    "be told apart later: {remedy}, or record into a new dataset.root."
)
OTHER_SENSORS = (
    "dataset {root}: {key} was recorded with the force sensors {recorded}, now there are {found}; configure them as "
    "they were, or record into a new dataset.root."
)
CHANGED = "dataset %s: %s is not what it was for the episodes before: %s. From episode %d on, %s says so."

Metadata = dict[str, dict[str, Any]]


def metadata_of(robot: Robot) -> Metadata:
    """What `robot` knows of its features, by the dataset's keys, made of what JSON has.

    A robot of LeRobot's own has no `feature_metadata`; of its cameras, those are asked that have `metadata`.
    """
    robot = getattr(robot, "inner", robot)
    if hasattr(robot, "feature_metadata"):
        return _plain(robot.feature_metadata())
    found: Metadata = {}
    for name, camera in cameras_of(robot).items():
        if hasattr(camera, "metadata"):
            streams = camera.metadata()
            for stream, suffix in (("color", ""), ("depth", "_depth")):
                if stream in streams:
                    found[f"observation.images.{name}{suffix}"] = {CAMERA: streams[stream]}
    return _plain(found)


def devices(root: str | Path, episode: int) -> Metadata:
    """What the devices were when one episode of the dataset in `root` was recorded, by the dataset's keys.

    Returns:
        `{"observation.images.side": {"camera": {…}}, …}`; empty if nothing is known.
    """
    found: Metadata = {}
    for line in _lines(Path(root) / DEVICES):
        if line["from_episode"] <= episode:
            found = line["features"]
    return found


class Provenance:
    """Writes down, at a dataset's first episode of this session, where its numbers come from."""

    def __init__(self) -> None:
        """No dataset was seen yet."""
        self._dataset: weakref.ref[LeRobotDataset] | None = None

    def start(self, robot: Robot) -> None:
        """Before the first frame: compare with what is there, and write what is new.

        Raises:
            UserError: The dataset was recorded in another unit; nothing has been recorded then.
        """
        dataset = episodes.current().dataset
        if dataset is None or (self._dataset is not None and self._dataset() is dataset):
            return
        found = {key: value for key, value in metadata_of(robot).items() if key in dataset.meta.features}
        if not found:
            return
        if dataset.num_episodes:
            compare(dataset, found)
        _write(dataset, found)
        self._dataset = weakref.ref(dataset)


def compare(dataset: LeRobotDataset, found: Metadata) -> None:
    """Refuse other units than those that `dataset` was recorded in, and warn of every other difference.

    Raises:
        UserError: A unit differs, or the force sensors do.
    """
    before = devices(dataset.root, dataset.num_episodes - 1)
    before, found = _lasting(before), _lasting(found)
    for key, now in found.items():
        # A dataset whose devices.jsonl was lost, in a merge say, still has the features' info.
        info = dataset.meta.features[key].get("info") or {}
        recorded = before.get(key) or {name: info[name] for name in now if name in info}
        _refuse_other_units(dataset, key, recorded, now)
        differences = list(_differences(recorded, now)) if recorded else []
        if differences:
            shown = ", ".join(differences[:6]) + (", …" if len(differences) > 6 else "")
            logger.warning(CHANGED, dataset.root, key, shown, dataset.num_episodes, DEVICES)


def _refuse_other_units(dataset: LeRobotDataset, key: str, recorded: Metadata, now: Metadata) -> None:
    old, new = recorded.get(SENSORS) or {}, now.get(SENSORS) or {}
    if old and list(old) != list(new):
        names = {"recorded": ", ".join(old), "found": ", ".join(new) or "none"}
        raise UserError(OTHER_SENSORS.format(root=dataset.root, key=key, **names))
    for name, sensor in new.items():
        unit = (old.get(name) or {}).get(UNIT)
        if unit is not None and unit != sensor[UNIT]:
            raise UserError(
                MIXED_UNITS.format(
                    root=dataset.root,
                    key=f"{key} of '{name}'",
                    recorded=unit,
                    what=f"the sensor '{name}'",
                    found=sensor[UNIT],
                    remedy=f"configure '{name}' as it was (its calibration: file decides the unit)",
                )
            )
    depth_unit = (dataset.meta.features[key].get("info") or {}).get(DEPTH_UNIT)
    found = (now.get(CAMERA) or {}).get(DEPTH_UNIT, depth_unit)
    if depth_unit is not None and found != depth_unit:
        raise UserError(
            MIXED_UNITS.format(
                root=dataset.root,
                key=key,
                recorded=depth_unit,
                what="the camera",
                found=found,
                remedy="set the camera's depth_dtype as it was (uint16 is mm, float32 is m)",
            )
        )


def _write(dataset: LeRobotDataset, found: Metadata) -> None:
    from lerobot_ext.recording import files

    changed = False
    for key, metadata in found.items():
        feature = dataset.meta.features[key]
        info = feature.get("info") or {}
        told = _for_info(key, _lasting(metadata))
        new = {name: value for name, value in told.items() if name not in info}
        if new:
            feature["info"] = info | new
            changed = True
    if changed:
        files.replace_json(Path(dataset.root) / "meta" / "info.json", dataset.meta.info.to_dict())
    if _lasting(devices(dataset.root, dataset.num_episodes)) != _lasting(found):
        line = json.dumps({"from_episode": dataset.num_episodes, "features": found})
        files.append_line(Path(dataset.root) / DEVICES, line)


def _for_info(key: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata`, for force with the unit of each of its numbers, in the order of the feature's names."""
    if key != OBS_FORCE or SENSORS not in metadata:
        return metadata
    return metadata | {"units": [unit for sensor in metadata[SENSORS].values() for unit in sensor["units"]]}


def _lasting(value: Any) -> Any:
    """`value` without what is measured anew each time: two datasets of the same devices can then be merged."""
    if not isinstance(value, dict):
        return value
    return {key: _lasting(each) for key, each in value.items() if not key.startswith(MEASURED)}


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """`camera.serial '1' -> '2'` for every leaf of two nested dicts that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield f"{path} {_cut(before)} -> {_cut(now)}"


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of the file; one that was cut off is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
            if isinstance(found["from_episode"], int) and isinstance(found["features"], dict):
                yield found
        except (ValueError, KeyError, TypeError):
            logger.debug("%s: a line that cannot be read: %.80s", path, line)


def _plain(value: Any) -> Any:
    """`value` as it would come back from JSON, so that it can be compared with what did."""

    def default(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)

    return json.loads(json.dumps(value, default=default))


provenance = Provenance()


def install() -> None:
    """Write down where the numbers of every dataset come from, from now on."""
    add_listener(EpisodeListener(name="provenance", on_start=provenance.start, order=5))
