"""What the live Rerun view shows beyond LeRobot's: pads, metric depth, force by its names, ages and counts of the devices.

LeRobot's `display_data` draws an observation without knowing the robot behind it; `compat` hands each observation to
`show` first, which draws what it understands and gives back the rest. It never breaks the loop (after an error it
leaves everything to LeRobot) and never takes more than a small share of it: depth and pads are drawn PICTURE_HZ
times a second at most, and less often where drawing is slow.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.arms import cameras_of
from lerobot_ext.features import FORCE, OBS_FORCE
from lerobot_ext.recording import episodes
from lerobot_ext.recording.visualize.depth import DepthScale
from lerobot_ext.recording.visualize.force import UNKNOWN_UNIT, SensorView, sensors_of
from lerobot_ext.recording.visualize.pad import PadScale
from lerobot_ext.recording.visualize.rerun_parts import DepthPicture, PadDrawing

if TYPE_CHECKING:
    from rerun import RecordingStream

    from lerobot_ext.robots.observation_report import ObservationReport

logger = logging.getLogger(__name__)

OBSERVATION, ACTION = "observation", "action"  # as LeRobot names its entities
PICTURE_HZ = 10.0
SHARE = 0.05  # of the time, at most, for depth and pads
COUNTS_S = 0.5  # between two updates of the counts
AGES, COUNTS = "ages_ms", "counts"
FLOOR = 20.0  # a pad's scale starts here, in its unit, so that noise does not fill it
FAILED = "live view: %s; from here on LeRobot's own view is shown"


class LiveView:
    """The live view of one robot in one Rerun recording.

    Args:
        robot: The connected robot.
        recording: Where to draw.
    """

    def __init__(self, robot: Any, recording: RecordingStream):
        self._robot, self._recording = weakref.ref(robot), recording
        self._sensors = _sensors(robot)
        self._pads: dict[str, PadDrawing] = {}
        self._depths: dict[str, DepthPicture] = {}
        self._named: dict[str, tuple[str, ...]] = {}  # the curves' names, by entity
        self._counts: dict[str, int] = {}
        self._next_pictures_s = self._next_counts_s = 0.0
        self._arranged: tuple | None = None

    def draw(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Draw what is understood of an observation, as the robot gave it; returns the rest of it."""
        started_s = time.perf_counter()
        pictures = started_s >= self._next_pictures_s
        rest: dict[str, Any] = {}
        for key, value in observation.items():
            name = str(key).removeprefix(f"{OBSERVATION}.")
            if (
                name == FORCE
                and self._sensors
                and _width(value) == sum(len(s.columns) for s in self._sensors)
            ):
                self._force(np.asarray(value, np.float32), pictures)
            elif _is_depth(name, value):
                if pictures:
                    self._depth(name, value)
            else:
                rest[key] = value
        report = getattr(self._robot(), "last_report", None)
        if report is not None:
            self._report(report, started_s)
        if pictures:
            cost_s = time.perf_counter() - started_s
            self._next_pictures_s = started_s + max(1 / PICTURE_HZ, cost_s / SHARE)
        return rest

    def arrange(self, rest: Mapping[str, Any], action: Mapping[str, Any]) -> None:
        """Send the views when there is something new to see; what a person has arranged since then is lost.

        Args:
            rest: What `draw` gave back, which LeRobot has drawn.
            action: What LeRobot has drawn besides.
        """
        pictures, joints = [], []
        for key, value in rest.items():
            if value is not None:
                drawn = isinstance(value, np.ndarray) and value.ndim > 1
                (pictures if drawn else joints).append(_path(OBSERVATION, key))
        actions = [_path(ACTION, key) for key, value in action.items() if value is not None]
        there = (*pictures, "", *joints, "", *actions, "", *self._pads, "", *self._depths, "", *self._named)
        there += (bool(self._counts),)
        if there != self._arranged:
            self._arranged = there
            self._recording.send_blueprint(self._blueprint(pictures, joints, actions))

    def _curves(self, path: str, names: tuple[str, ...], values: NDArray) -> None:
        import rerun as rr

        if self._named.get(path) != names:
            self._named[path] = names
            self._recording.log(path, rr.SeriesLines(names=list(names)), static=True)
        self._recording.log(path, rr.Scalars(np.asarray(values, np.float64)))

    def _force(self, values: NDArray[np.float32], pictures: bool) -> None:
        for sensor in self._sensors:
            samples = values[list(sensor.columns)]
            self._curves(_path(OBSERVATION, f"{FORCE}/{sensor.name}"), sensor.channels, samples)
            if sensor.pad is None or not pictures:
                continue
            vectors = sensor.pad.vectors(samples)
            pad = self._pads.get(sensor.name)
            if pad is None:
                pad = PadDrawing(f"pad/{sensor.name}", sensor.pad, PadScale(FLOOR, FLOOR), sensor.unit)
                self._pads[sensor.name] = pad
                pad.start(self._recording)
            if pad.grow(vectors):
                pad.log_legend(self._recording)
            pad.log(self._recording, vectors)

    def _depth(self, name: str, depth: NDArray) -> None:
        picture = self._depths.get(name)
        if picture is None:
            scale = _range(self._robot(), name) or _seen(depth)
            picture = self._depths[name] = DepthPicture(_path(OBSERVATION, name), scale, static=True)
            picture.start(self._recording)
        picture.log(self._recording, depth)

    def _report(self, report: ObservationReport, now_s: float) -> None:
        import rerun as rr

        if report.ages_ms:
            self._curves(AGES, tuple(report.ages_ms), np.array(list(report.ages_ms.values())))
        if now_s >= self._next_counts_s and dict(report.counts) != self._counts:
            self._next_counts_s = now_s + COUNTS_S
            self._counts = dict(report.counts)
            text = rr.TextDocument(counts_text(self._counts), media_type="text/markdown")
            self._recording.log(COUNTS, text, static=True)

    def _blueprint(self, pictures: list[str], joints: list[str], actions: list[str]) -> Any:
        import rerun.blueprint as rrb

        cameras = {path: rrb.Spatial2DView(origin=path, name=path.partition(".")[2]) for path in pictures}
        cameras |= {depth.entity: depth.view() for depth in self._depths.values()}
        top = [view for _, view in sorted(cameras.items())]
        top += [pad.view(f"{name}: force on the pad") for name, pad in self._pads.items()]
        below = [
            rrb.TimeSeriesView(
                origin=_path(OBSERVATION, f"{FORCE}/{sensor.name}"),
                name=f"{sensor.name} [{', '.join(unit or UNKNOWN_UNIT for unit, _ in sensor.groups())}]",
            )
            for sensor in self._sensors
        ]
        if AGES in self._named:
            below.append(rrb.TimeSeriesView(origin=AGES, name="age at the joint read [ms]"))
        if self._counts:
            below.append(rrb.TextDocumentView(origin=COUNTS, name="dropped, repeated, retried"))
        for name, paths in (("observation", joints), ("action", actions)):
            if paths:
                below.append(rrb.TimeSeriesView(name=name, contents=sorted(paths)))
        rows = [rrb.Horizontal(*views) for views in (top, below) if views]
        return rrb.Blueprint(rrb.Vertical(*rows), collapse_panels=True)


def counts_text(counts: Mapping[str, int]) -> str:
    """Markdown: a row a device, a column a kind; counts of what went well are left out."""
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in counts)
    kinds = [kind for kind in kinds if kind != "received"]
    devices = dict.fromkeys(name.rpartition(".")[0] for name in counts)
    lines = [f"| | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for device in devices:
        cells = [str(counts.get(f"{device}.{kind}", "")) for kind in kinds]
        lines.append(f"| {device} | {' | '.join(cells)} |")
    return "\n".join(lines)


class _Stage:
    """Whose live view is drawn where; one for the process, as Rerun has one recording for it."""

    def __init__(self) -> None:
        self.robot: weakref.ref[Any] | None = None
        self.view: LiveView | None = None
        self.of: tuple[int, str] | None = None  # the robot and the recording that `view` is for
        self.failed = False


_stage = _Stage()


def watch(robot: Any) -> None:
    """The robot whose observations come from now on, for loops that have no episodes."""
    try:
        _stage.robot = weakref.ref(getattr(robot, "inner", robot))
    except TypeError:  # nothing that a robot of LeRobot's would be
        _stage.robot = None


def show(display_mode: str, observation: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Draw what is understood of `observation` in the live view, and give back what is left for LeRobot to draw.

    Everything is left as it is when the view is not Rerun's, or when the robot is not known.

    Args:
        display_mode: As in LeRobot: `rerun` or `foxglove`.
        observation: What LeRobot is about to draw.
    """
    if display_mode != "rerun" or not observation or _stage.failed:
        return observation
    try:
        view = _current_view()
        return observation if view is None else view.draw(observation)
    except Exception as error:
        _fail(error)
        return observation


def arrange(display_mode: str, rest: Mapping[str, Any] | None, action: Mapping[str, Any] | None) -> None:
    """Lay out the views, after LeRobot has drawn `rest` and `action` and laid out its own."""
    if display_mode != "rerun" or _stage.view is None or _stage.failed:
        return
    try:
        _stage.view.arrange(rest or {}, action or {})
    except Exception as error:
        _fail(error)


def reset() -> None:
    """Forget the robot, the view and any failure."""
    _stage.robot = _stage.view = _stage.of = None
    _stage.failed = False


def _fail(error: Exception) -> None:
    _stage.failed = True
    logger.warning(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _current_view() -> LiveView | None:
    """The view of the robot of the current episode, or of the robot known last between episodes."""
    import rerun as rr

    going_on = episodes.current()
    if going_on is not None:
        watch(going_on.robot)
    robot = _stage.robot() if _stage.robot is not None else None
    recording = rr.get_global_data_recording()
    if robot is None or recording is None:
        _stage.view = None
        return None
    of = (id(robot), recording.get_recording_id())
    if _stage.view is None or _stage.of != of:
        _stage.view, _stage.of = LiveView(robot, recording), of
    return _stage.view


def _path(kind: str, name: Any) -> str:
    """An entity's path, as LeRobot makes it."""
    return str(name) if str(name).startswith(f"{kind}.") else f"{kind}.{name}"


def _sensors(robot: Any) -> list[SensorView]:
    """The force sensors of a robot, by the names of its feature; none if it has no force."""
    names = getattr((getattr(robot, "observation_features", None) or {}).get(FORCE), "names", None)
    if not names:
        return []
    metadata = robot.feature_metadata() if hasattr(robot, "feature_metadata") else {}
    return sensors_of(list(names), metadata.get(OBS_FORCE))


def _width(value: Any) -> int:
    return value.shape[0] if isinstance(value, np.ndarray) and value.ndim == 1 else -1


def _is_depth(name: str, value: Any) -> bool:
    return (
        isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 1 and name.endswith("_depth")
    )


def _range(robot: Any, name: str) -> DepthScale | None:
    """The depth range of the camera's configuration, if it has one."""
    camera = cameras_of(robot).get(name.removesuffix("_depth"))
    config = getattr(camera, "config", None)
    near, far = getattr(config, "depth_min_m", None), getattr(config, "depth_max_m", None)
    if near is None or far is None or not near < far:
        return None
    return DepthScale(float(near), float(far), "the camera's range")


def _seen(depth: NDArray) -> DepthScale:
    """The range of one picture, with a margin: it stays for the whole session."""
    metres = depth.astype(np.float32) / (1000 if depth.dtype == np.uint16 else 1)
    scale = DepthScale.of([metres[metres > 0]])
    return DepthScale(max(0.0, 0.8 * scale.near_m), 1.2 * scale.far_m, scale.source)
