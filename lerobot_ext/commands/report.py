"""The demo's report: figures and episodes on one page that needs nothing but a browser."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from lerobot_ext.recording.visualize.telemetry import Telemetry, load_if_there, summarize

SHOWN = 5  # episodes of the evaluation whose pictures and curves are on the page


def successes(episodes: list[dict[str, Any]]) -> str:
    """`4 of 5`."""
    return f"{sum(episode['success'] for episode in episodes)} of {len(episodes)}"


def telemetries(folder: str | Path | None) -> list[Telemetry]:
    """The telemetry of every episode in a folder, in their order; none if there is no such folder."""
    if folder is None:
        return []
    files = sorted(Path(folder).glob("episode_*.jsonl"))
    return [telemetry for file in files if (telemetry := load_if_there(file)) is not None]


def control_summary(episodes: list[Telemetry]) -> list[str]:
    """How chunks became motion over all episodes, in one line of text; none without telemetry."""
    if not episodes:
        return []
    merges = "/".join(sorted({episode.merge for episode in episodes if episode.merge})) or "unknown"
    cut = sum(not episode.complete for episode in episodes)
    line = f"control over {len(episodes)} episodes (merge {merges}): {summarize(episodes).sentence()}"
    return [line + (f"; {cut} of the episodes cut off" if cut else "")]


def summary(figures: dict[str, Any]) -> str:
    """The figures in a few lines of text.

    Args:
        figures: The demo's. `telemetry_dir` (files of the engine `async`) may be missing.
    """
    control = control_summary(telemetries(figures.get("telemetry_dir")))
    losses = figures["losses"]
    lines = [
        f"demonstrations that succeeded: {successes(figures['demonstrations'])}",
        f"evaluated episodes that succeeded: {successes(figures['evaluations'])}  (the lab's verdict)",
    ]
    lines += control
    if losses:
        lines.append(
            f"training loss: {losses[0][1]:.3f} at step {losses[0][0]}, {losses[-1][1]:.3f} at the end"
        )
    lines.append(f"whole demo: {figures['seconds_total']:.0f} s")
    return "\n".join(lines)


def write(output: Path, figures: dict[str, Any]) -> Path:
    """Write `output/report.html`, and `output/picture.png` of one evaluated episode; returns the page's path."""
    from lerobot_ext.recording.visualize.episode import open_dataset
    from lerobot_ext.recording.visualize.page import STYLE, render_body
    from lerobot_ext.recording.visualize.pictures import EpisodePictures
    from lerobot_ext.recording.visualize.png import render_png

    parts = [
        "<h1>lerobot_ext demo: press the block</h1>",
        '<p class="facts">',
        "<br>".join(map(escape, summary(figures).splitlines())),
        "</p><h2>what took how long</h2>",
        table(("step", "seconds"), [(name, f"{s:.0f}") for name, s in figures["seconds"].items()]),
    ]
    for title, key in (("the operator's demonstrations", "demonstrations"), ("the policy", "evaluations")):
        parts += [f"<h2>{title}: {successes(figures[key])} succeeded</h2>", verdicts(figures[key])]
    dataset = open_dataset(output / "rollout_dataset")
    telemetry_dir = figures.get("telemetry_dir")
    best = next((i for i, e in enumerate(figures["evaluations"]) if e["success"]), 0)
    for index in range(min(SHOWN, dataset.num_episodes)):
        telemetry = (
            load_if_there(Path(telemetry_dir) / f"episode_{index:06d}.jsonl") if telemetry_dir else None
        )
        pictures = EpisodePictures(dataset, index, telemetry)
        parts.append(render_body(pictures))
        if index == best:
            render_png(pictures, output / "picture.png")
    page = output / "report.html"
    page.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lerobot_ext demo</title>'
        f"<style>{STYLE} table {{ border-collapse: collapse; }} td, th {{ text-align: left; "
        "padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #dde3ea; font-size: .9rem; }</style></head>"
        f"<body>{''.join(parts)}</body></html>\n",
        encoding="utf-8",
    )
    return page


def verdicts(episodes: list[dict[str, Any]]) -> str:
    """The lab's verdicts as a table."""
    rows = [
        (
            str(number),
            "success" if episode["success"] else "failure",
            f"{episode['block_height_m'] * 1e3:.0f} mm",
            f"{episode['peak_force_n']:.1f} N",
            f"{episode['hold_s']:.2f} s",
            episode["reason"],
        )
        for number, episode in enumerate(episodes)
    ]
    return table(("episode", "verdict", "block", "peak force", "held 1 to 3 N", "why"), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """An HTML table of texts."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
