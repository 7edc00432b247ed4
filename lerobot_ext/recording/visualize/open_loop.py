"""An open-loop evaluation as one HTML page and one PNG: errors by joint and by horizon step, curves over time.

The numbers are `rollout.open_loop`'s, strokes `chart`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize.chart import PALETTE, Chart, ImageCanvas, Line, draw_chart, svg_chart

if TYPE_CHECKING:
    from lerobot_ext.rollout.open_loop import OpenLoop

WIDTH, STEP_HEIGHT, JOINT_HEIGHT = 1200, 260, 190  # points
SCALE, MARGIN = 1.5, 16
SHOWN_EPISODES = 4
GREY = "#9aa5b1"
FIGURES = ("mae", "rmse", "max")
EXPLAINED = "blue: recorded; grey: predicted chunks; orange, dashed: what was sent"

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 1.5rem auto; max-width: 1240px;
  padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p.facts, p.note { color: #52606d; margin: 0 0 .6rem; } p.note { font-size: .85rem; }
svg { max-width: 100%; height: auto; } .joints { display: grid; grid-template-columns: repeat(2, 1fr); gap: 4px 10px; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .15rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #dde3ea; }
"""


def write(result: OpenLoop, report: dict[str, Any], output: Path) -> None:
    """`open_loop.html` and `open_loop.png` in the folder `output`."""
    charts = [(episode, joint_charts(result, episode)) for episode in _shown(result)]
    (output / "open_loop.html").write_text(_page(report, step_chart(report), charts), encoding="utf-8")
    _picture(report, step_chart(report), charts, output / "open_loop.png")


def facts(report: dict[str, Any]) -> str:
    """One line: of what, how many, how wrong on the whole."""
    episodes = ", ".join(map(str, report["episodes"]))
    overall, executed = report["predicted"]["overall"], report["executed"]
    parts = [f"{report['dataset']}, episode {episodes}"]
    if report["chunks"]:
        parts.append(
            f"{report['chunks']} chunks of up to {len(report['predicted']['by_step']['count'])} actions: "
            f"MAE {_number(overall['mae'])}, RMSE {_number(overall['rmse'])}, largest {_number(overall['max'])}"
        )
    if executed["actions"]:
        parts.append(f"{executed['actions']} actions sent: MAE {_number(executed['overall']['mae'])}")
    return "; ".join(parts)


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The table, head first: each joint's errors, at the first and the last step, and of what was sent."""
    predicted = report["predicted"]
    head = ["joint", "MAE", "RMSE", "max", "MAE step 0", "MAE last step", "MAE sent"]
    table = [head]
    for name in report["joints"]:
        steps = predicted["by_joint_and_step"][name]["mae"] or [None]
        figures = [predicted["by_joint"][name][figure] for figure in FIGURES]
        figures += [steps[0], steps[-1], report["executed"]["by_joint"][name]["mae"]]
        table.append([name, *map(_number, figures)])
    return table


def step_chart(report: dict[str, Any]) -> Chart | None:
    """Mean absolute error by horizon step, a curve a joint; None without chunks."""
    by_joint = report["predicted"]["by_joint_and_step"]
    steps = np.arange(len(report["predicted"]["by_step"]["count"]), dtype=float)
    if not len(steps):
        return None
    lines = [
        Line(name, _array(by_joint[name]["mae"]), PALETTE[i % len(PALETTE)])
        for i, name in enumerate(report["joints"])
    ]
    title = "mean absolute error by horizon step, in the action's units"
    return Chart(f"{title} (a step is {report['step_s']:.3g} s)", steps, lines, zero=True, unit="")


def joint_charts(result: OpenLoop, episode: int) -> list[Chart]:
    """Recorded, predicted and sent actions over the time of one episode, a chart a joint."""
    rows_ = result.episodes[episode]
    times_s = result.times_s[rows_.start : rows_.stop]
    chunks = [(row, actions) for row, actions in result.shown if row in rows_]
    sent_rows, sent = result.executed()
    inside = np.isin(sent_rows, rows_)
    charts = []
    for i, name in enumerate(result.names):
        lines = [
            Line(
                "", actions[:, i], GREY, times_s=result.times_s[row] + result.step_s * np.arange(len(actions))
            )
            for row, actions in chunks
        ]
        lines.append(Line("recorded", result.recorded[rows_.start : rows_.stop, i], PALETTE[0]))
        if inside.any():
            at = result.times_s[sent_rows[inside]]
            lines.append(Line("sent", sent[inside, i], PALETTE[1], dashed=True, times_s=at))
        charts.append(Chart(name, times_s, lines, legend=False))
    return charts


def _shown(result: OpenLoop) -> Sequence[int]:
    seen = {result.episode_of(row)[0] for row, _ in result.shown} | {
        result.episode_of(int(row))[0] for row in np.unique(result.executed()[0])
    }
    return [episode for episode in result.episodes if episode in seen][:SHOWN_EPISODES]


def _page(report: dict[str, Any], steps: Chart | None, episodes: list[tuple[int, list[Chart]]]) -> str:
    head, *body = rows(report)
    table = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    table = f"<tr>{table}</tr>" + "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    parts = [
        f'<h1>Open loop</h1><p class="facts">{escape(facts(report))}</p><table>{table}</table>',
        '<p class="note">Errors against the recorded action, in the action\'s units.</p>',
    ]
    if steps is not None:
        parts.append(svg_chart(steps, WIDTH, STEP_HEIGHT))
    for episode, charts in episodes:
        curves = "".join(svg_chart(chart, WIDTH / 2 - 5, JOINT_HEIGHT) for chart in charts)
        parts.append(
            f'<h2>episode {episode}</h2><p class="note">{EXPLAINED}</p><div class="joints">{curves}</div>'
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Open loop</title><style>{STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>\n"
    )


def _picture(
    report: dict[str, Any], steps: Chart | None, episodes: list[tuple[int, list[Chart]]], path: Path
) -> None:
    from PIL import Image

    inner = WIDTH - 2 * MARGIN
    lines = sum(-(-len(charts) // 2) for _, charts in episodes)
    height = (
        60 + (STEP_HEIGHT if steps is not None else 0) + 40 * len(episodes) + JOINT_HEIGHT * lines + MARGIN
    )
    image = Image.new("RGB", (round(WIDTH * SCALE), round(height * SCALE)), "white")
    canvas = ImageCanvas(image, SCALE)
    canvas.text(MARGIN, 28, "Open loop", 17)
    canvas.text(MARGIN, 48, facts(report), 11)
    y = 60.0
    if steps is not None:
        draw_chart(ImageCanvas(image, SCALE, MARGIN, y), steps, inner, STEP_HEIGHT)
        y += STEP_HEIGHT
    for episode, charts in episodes:
        canvas.text(MARGIN, y + 22, f"episode {episode} ({EXPLAINED})", 13)
        y += 40
        for place, chart in enumerate(charts):
            x, down = MARGIN + (place % 2) * inner / 2, (place // 2) * JOINT_HEIGHT
            draw_chart(ImageCanvas(image, SCALE, x, y + down), chart, inner / 2, JOINT_HEIGHT)
        y += -(-len(charts) // 2) * JOINT_HEIGHT
    image.save(path, optimize=True)


def _array(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
