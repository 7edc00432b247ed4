"""How chunks became motion in one episode: charts and sentences of its telemetry, for page, picture and report.

Reading telemetry is the business of `telemetry`, strokes that of `chart`.
"""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize.chart import PALETTE, Chart, Event, Line, svg_chart
from lerobot_ext.recording.visualize.telemetry import Incident, Telemetry, summarize

TITLE = "from chunks to motion"
INCIDENT_COLORS = {"fault": "#c1121f", "refused": "#d97706", "resumed": "#2a7f3f"}
# What the server spent, in the order in which it is spent; the rest of a round trip is drawn below them.
PARTS = (
    ("queue_s", "waiting there", PALETTE[4]),
    ("preprocess_s", "preprocess", PALETTE[5]),
    ("infer_s", "inference", PALETTE[1]),
    ("postprocess_s", "postprocess", PALETTE[3]),
)
SHOWN_INCIDENTS = 200  # sentences on a page; their lines are drawn all the same


def control_charts(telemetry: Telemetry, times_s: NDArray) -> list[Chart]:
    """Queue, delay, jump and round trip over the time of the episode.

    Args:
        telemetry: Of the episode.
        times_s: (frames,) seconds of the recorded frames, so that the axis is at least that of the other charts.
    """
    ticks, chunks = telemetry.ticks, telemetry.chunks
    axis = np.array([0.0, max(float(times_s[-1]), telemetry.end_s())])
    marks = events(telemetry)
    shades = starved_spans(ticks.time_s, ticks.starved)
    blue, orange = PALETTE[:2]
    # The queue falls by one a tick: its corners say it all, in a tenth of the page.
    corners = np.ones(len(ticks.queue), dtype=bool)
    corners[1:-1] = np.diff(ticks.queue, 2) != 0

    def chart(title: str, lines: list[Line]) -> Chart:
        return Chart(title, axis, lines, zero=True, shades=shades, events=marks)

    charts = [
        chart(
            "actions in the queue (red ground: none, the arm holds)",
            [Line("queue", ticks.queue[corners], blue, times_s=ticks.time_s[corners])],
        )
    ]
    if len(chunks.time_s):
        charts += [
            chart(
                "delay of each chunk, in steps",
                [
                    Line("forecast", chunks.forecast, orange, dashed=True, times_s=chunks.time_s),
                    Line("delay", chunks.delay, blue, times_s=chunks.time_s, dots=True),
                ],
            ),
            chart(
                "jump at each merge, in the action's units",
                [Line("jump", chunks.jump, PALETTE[2], times_s=chunks.time_s, dots=True)],
            ),
            chart("round trip of each chunk, in ms", round_trip_lines(telemetry)),
        ]
    return charts


def round_trip_lines(telemetry: Telemetry) -> list[Line]:
    """Bars that stack to the round trip in ms: what the server did not spend, then what it did."""
    chunks = telemetry.chunks
    spent = {key: np.nan_to_num(1e3 * chunks.server_s[key]) for key, _, _ in PARTS}
    total = 1e3 * chunks.round_trip_s
    level = np.zeros_like(total)
    lines = []
    rest = np.clip(total - sum(spent.values()), 0, None)
    for name, color, part in (
        ("link and the rest", PALETTE[0], rest),
        *((name, color, spent[key]) for key, name, color in PARTS),
    ):
        if np.any(np.isfinite(part) & (part > 0)):
            lines.append(Line(name, level + part, color, times_s=chunks.time_s, base=level))
            level = level + np.nan_to_num(part)
    return lines or [Line("round trip", total, PALETTE[0], times_s=chunks.time_s, dots=True)]


def starved_spans(time_s: NDArray, starved: NDArray) -> list[tuple[float, float]]:
    """From when to when no action was there; a span ends where the next tick had one."""
    known = np.isfinite(time_s)
    time_s, starved = time_s[known], starved[known]
    spans: list[tuple[float, float]] = []
    since = None
    for t, empty in zip(time_s, starved, strict=True):
        if empty and since is None:
            since = float(t)
        elif not empty and since is not None:
            spans.append((since, float(t)))
            since = None
    if since is not None:
        spans.append((since, float(time_s[-1])))
    return spans


def events(telemetry: Telemetry) -> list[Event]:
    """Incidents as lines in the charts, labelled by the numbers of their sentences."""
    return [
        Event(incident.time_s, INCIDENT_COLORS[incident.kind], str(number))
        for number, incident in enumerate(telemetry.incidents, start=1)
        if np.isfinite(incident.time_s)
    ]


def sentences(telemetry: Telemetry) -> list[str]:
    """`1. at 3.20 s, fault: …` for each incident, the first SHOWN_INCIDENTS of them."""
    shown = [
        f"{number}. {_when(incident)}{incident.kind}: {incident.text}"
        for number, incident in enumerate(telemetry.incidents[:SHOWN_INCIDENTS], start=1)
    ]
    left = len(telemetry.incidents) - len(shown)
    return [*shown, f"… and {left} more"] if left else shown


def summary_line(telemetry: Telemetry) -> str:
    """One line of figures, with the merge rule and what is wrong with the file, if anything."""
    merge = [f"merge {telemetry.merge}"] if telemetry.merge else []
    return "; ".join([*merge, summarize([telemetry]).sentence(), *telemetry.notes()])


def control_html(telemetry: Telemetry, times_s: NDArray) -> str:
    """The part of a page that shows the telemetry."""
    parts = [f'<h2>{TITLE}</h2><p class="note">{escape(summary_line(telemetry))}</p>']
    parts += [svg_chart(chart, 1200, 170) for chart in control_charts(telemetry, times_s)]
    if telemetry.incidents:
        lines = [
            f'<span style="color:{INCIDENT_COLORS[incident.kind]}">{escape(sentence)}</span>'
            for incident, sentence in zip(telemetry.incidents, sentences(telemetry), strict=False)
        ]
        lines += [escape(more) for more in sentences(telemetry)[SHOWN_INCIDENTS:]]
        parts.append(f'<p class="note">{"<br>".join(lines)}</p>')
    return "".join(parts)


def _when(incident: Incident) -> str:
    return f"at {incident.time_s:.2f} s, " if np.isfinite(incident.time_s) else ""
