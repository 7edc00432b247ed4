"""An episode as a Rerun recording (`.rrd`): pictures, metric depth, and every curve under its name.

rerun is imported when an episode is written; nothing here draws.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lerobot_ext.errors import UserError
from lerobot_ext.recording.visualize_episode import Curves, EpisodeView
from lerobot_ext.recording.visualize_page import DepthScale
from lerobot_ext.recording.visualize_telemetry import SERVER_PARTS, Telemetry

JPEG_QUALITY = 85
TIMELINE = "time"
INCIDENTS_ENTITY = "telemetry/incidents"


def write_rrd(
    view: EpisodeView,
    path: Path,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    telemetry: Telemetry | None = None,
) -> None:
    """Write `view` to `path`.

    Args:
        view: The episode.
        path: The file; replaced if it exists.
        progress: Wraps the frames' positions, to show how far it is.
        telemetry: Of the episode, if there is one.

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

    curves = {
        "force": view.force,
        "force_norm": view.force_norms(),
        "state": view.state,
        "action": view.action,
    }
    curves = {name: found for name, found in curves.items() if found is not None}
    depth_ranges = {}
    if view.depth_keys:
        sample = [view.pictures(position) for position, _ in view.key_frames()]
        for key in view.depth_keys:
            scale = DepthScale.of([frame[key] for frame in sample])
            depth_ranges[key] = (scale.near_m, scale.far_m)

    recording = rr.RecordingStream(
        "lerobot_ext", recording_id=f"{view.dataset.repo_id}/{view.index}", make_default=False
    )
    cameras = [
        rrb.Spatial2DView(origin=_entity(key), name=_entity(key).removeprefix("images/"))
        for key in sorted(view.color_keys + view.depth_keys)
    ]
    series = telemetry_series(telemetry) if telemetry is not None else {}
    plots = [rrb.TimeSeriesView(origin=name, name=name) for name in (*curves, *series)]
    texts = [rrb.TextDocumentView(origin="task")]
    if telemetry is not None:
        texts.append(rrb.TextLogView(origin=INCIDENTS_ENTITY, name="incidents"))
    blueprint = rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(*cameras),
            rrb.Grid(*plots),
            rrb.Horizontal(*texts),
            row_shares=[5, 4, 1],
        )  # fmt: skip
    )
    with recording:
        recording.save(path, default_blueprint=blueprint)
        recording.log("task", rr.TextDocument(view.task), static=True)
        for name, found in curves.items():
            _send_curves(recording, name, found, view.times_s, np.arange(len(view)))
        for name, (times_s, found) in series.items():
            _send_curves(recording, name, found, times_s, np.round(times_s * view.fps).astype(np.int64))
        if telemetry is not None:
            _send_incidents(recording, telemetry, view.fps)
        for position in progress(range(len(view))):
            recording.set_time(TIMELINE, duration=float(view.times_s[position]))
            recording.set_time("frame", sequence=position)
            for key, image in view.pictures(position).items():
                if key in view.depth_keys:
                    metres = np.nan_to_num(image, nan=0.0)
                    entity = rr.DepthImage(
                        (metres * 1000).round().astype(np.uint16),
                        meter=1000.0,
                        colormap=rr.components.Colormap.Viridis,
                        depth_range=tuple(1000 * end for end in depth_ranges[key]),
                    )
                else:
                    entity = rr.Image(image).compress(jpeg_quality=JPEG_QUALITY)
                recording.log(_entity(key), entity)
        recording.flush()
    recording.disconnect()


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
