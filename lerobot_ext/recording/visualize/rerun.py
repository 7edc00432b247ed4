"""An episode as a Rerun recording (`.rrd`): pictures, metric depth, pads, ages, and every curve under its name.

rerun is imported when an episode is written. How depth and pads are logged is shared with the live view (`rerun_parts`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from lerobot_ext.errors import UserError
from lerobot_ext.recording.visualize.episode import Curves
from lerobot_ext.recording.visualize.force import UNKNOWN_UNIT
from lerobot_ext.recording.visualize.pad import pad_title
from lerobot_ext.recording.visualize.pictures import EpisodePictures, Progress
from lerobot_ext.recording.visualize.rerun_parts import DepthPicture, PadDrawing
from lerobot_ext.recording.visualize.telemetry import SERVER_PARTS, Telemetry

JPEG_QUALITY = 85
TIMELINE = "time"
INCIDENTS_ENTITY = "telemetry/incidents"


def write_rrd(pictures: EpisodePictures, path: Path, progress: Progress = iter) -> None:
    """Write an episode to `path`.

    Args:
        pictures: The episode.
        path: The file; replaced if it exists.
        progress: Wraps the frames' positions, to show how far it is.

    Raises:
        UserError: rerun is not installed.
    """
    try:
        import rerun as rr
        import rerun.blueprint as rrb
    except ModuleNotFoundError as error:
        raise UserError(
            "a Rerun recording needs the package rerun-sdk; run pip install 'lerobot[viz]', or use --no-rrd."
        ) from error

    view, telemetry = pictures.view, pictures.telemetry
    curves = _curves(pictures)
    series = telemetry_series(telemetry) if telemetry is not None else {}
    depths = {key: DepthPicture(_entity(key), scale) for key, scale in pictures.scales.items()}
    pads = [
        PadDrawing(f"pad/{pad.sensor.name}", pad.sensor.pad, pad.picture.scale, pad.sensor.unit)
        for pad in pictures.pads
    ]
    cameras = [
        depths[key].view() if key in depths else rrb.Spatial2DView(origin=_entity(key), name=_entity(key).removeprefix("images/"))
        for key in sorted(view.color_keys + view.depth_keys)
    ]  # fmt: skip
    plots = [rrb.TimeSeriesView(origin=name, name=title) for name, (title, _) in curves.items()]
    plots += [rrb.TimeSeriesView(origin=name, name=name) for name in series]
    texts = [rrb.TextDocumentView(origin="task")]
    if telemetry is not None:
        texts.append(rrb.TextLogView(origin=INCIDENTS_ENTITY, name="incidents"))
    blueprint = rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(
                *cameras,
                *(
                    drawing.view(f"{pad_title(pad.sensor)} ({pad.picture.scale.text(pad.sensor.unit)})")
                    for drawing, pad in zip(pads, pictures.pads, strict=True)
                ),
            ),
            rrb.Grid(*plots),
            rrb.Horizontal(*texts),
            row_shares=[5, 4, 1],
        ),
        collapse_panels=True,
    )
    recording = rr.RecordingStream(
        "lerobot_ext", recording_id=f"{view.dataset.repo_id}/{view.index}", make_default=False
    )
    with recording:
        recording.save(path, default_blueprint=blueprint)
        lines = [view.told, pictures.facts(), *pictures.force_notes(), pictures.report_line()]
        recording.log("task", rr.TextDocument("\n\n".join(lines)), static=True)
        for name, (_, found) in curves.items():
            _send_curves(recording, name, found, view.times_s, np.arange(len(view)))
        for name, (times_s, found) in series.items():
            _send_curves(recording, name, found, times_s, np.round(times_s * view.fps).astype(np.int64))
        if telemetry is not None:
            _send_incidents(recording, telemetry, view.fps)
        for part in (*depths.values(), *pads):
            part.start(recording)
        for position in progress(range(len(view))):
            recording.set_time(TIMELINE, duration=float(view.times_s[position]))
            recording.set_time("frame", sequence=position)
            for key, image in view.pictures(position).items() if cameras else ():
                if key in depths:
                    depths[key].log(recording, image)
                else:
                    recording.log(_entity(key), rr.Image(image).compress(jpeg_quality=JPEG_QUALITY))
            for drawing, pad in zip(pads, pictures.pads, strict=True):
                drawing.log(recording, pad.vectors[position])
        recording.flush()
    recording.disconnect()


def _curves(pictures: EpisodePictures) -> dict[str, tuple[str, Curves]]:
    """By entity, a plot's title and its curves."""
    view, found = pictures.view, {}
    change = view.force_change()
    for sensor in pictures.sensors:
        columns = list(sensor.columns)
        for number, (unit, where) in enumerate(sensor.groups()):
            name = sensor.name if number == 0 else f"{sensor.name}_{number}"
            unit = unit or UNKNOWN_UNIT
            if pictures.options.force in ("both", "channels"):
                values = Curves(
                    tuple(sensor.channels[i] for i in where), view.force.values[:, columns][:, where]
                )
                found[f"force/{name}"] = (f"{sensor.name} [{unit}]", values)
            if pictures.options.force in ("both", "norms"):
                norm = np.linalg.norm(change[:, columns][:, where], axis=1, keepdims=True)
                title = f"{sensor.name}: norm of the change [{unit}]"
                found[f"force_norm/{name}"] = (title, Curves(("norm",), norm))
    report = pictures.report
    if report is not None and report.ages_ms:
        ages = np.stack(list(report.ages_ms.values()), axis=1)
        found["ages_ms"] = ("age at the joint read [ms]", Curves(tuple(report.ages_ms), ages))
    lost = {f"{d}.{kind}": n for d in report.devices() for kind, n in report.counts_of(d).items()} if report else {}  # fmt: skip
    if lost:
        counts = np.stack(list(lost.values()), axis=1).astype(np.float32)
        found["lost"] = ("dropped, repeated, retried at each frame", Curves(tuple(lost), counts))
    for name, curves in (("state", view.state), ("action", view.action)):
        if curves is not None:
            found[name] = (name, curves)
    return found


def spawn_viewer(path: Path) -> None:
    """Open the Rerun viewer on a file, in its own process that outlives this one."""
    subprocess.Popen(
        [sys.executable, "-m", "rerun", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def telemetry_series(telemetry: Telemetry) -> dict[str, tuple[np.ndarray, Curves]]:
    """Curves of a telemetry under their entities' names, each with its own times; what has no time is left out."""
    ticks, chunks = telemetry.ticks, telemetry.chunks
    server_ms = {key.removesuffix("_s"): 1e3 * chunks.server_s[key] for key in SERVER_PARTS}
    columns = {
        "queue": (ticks.time_s, {"queue": ticks.queue, "starved": ticks.starved.astype(np.float64)}),
        "delay": (chunks.time_s, {"delay": chunks.delay, "forecast": chunks.forecast}),
        "jump": (chunks.time_s, {"jump": chunks.jump}),
        "round_trip_ms": (chunks.time_s, {"round_trip": 1e3 * chunks.round_trip_s, **server_ms}),
    }
    series = {}
    for name, (times_s, curves) in columns.items():
        known = np.isfinite(times_s)
        if known.any():
            values = np.stack(list(curves.values()), axis=1)[known].astype(np.float32)
            series[f"telemetry/{name}"] = (times_s[known], Curves(tuple(curves), values))
    return series


def _send_incidents(recording, telemetry: Telemetry, fps: int) -> None:
    import rerun as rr

    for incident in telemetry.incidents:
        if np.isfinite(incident.time_s):
            recording.set_time(TIMELINE, duration=incident.time_s)
            recording.set_time("frame", sequence=round(incident.time_s * fps))
            level = "INFO" if incident.kind == "resumed" else "WARN"
            entry = rr.TextLog(f"{incident.kind}: {incident.text}", level=level)
            recording.log(INCIDENTS_ENTITY, entry)


def _send_curves(recording, name: str, curves: Curves, times_s: np.ndarray, frames: np.ndarray) -> None:
    import rerun as rr

    recording.log(name, rr.SeriesLines(names=list(curves.names)), static=True)
    indexes = [
        rr.TimeColumn(TIMELINE, duration=times_s),
        rr.TimeColumn("frame", sequence=frames),
    ]
    recording.send_columns(name, indexes=indexes, columns=rr.Scalars.columns(scalars=curves.values.astype(np.float64)))  # fmt: skip


def _entity(key: str) -> str:
    return key.removeprefix("observation.").replace(".", "/")
