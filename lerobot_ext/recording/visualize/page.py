"""An episode as one HTML page, complete in itself: pictures, numbers and script inside, nothing fetched.

What there is to show is gathered in `pictures`; what moves is in `player`; curves are drawn in
`chart`. The same as a PNG: `png`.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from lerobot_ext.recording.visualize import player
from lerobot_ext.recording.visualize.chart import svg_chart
from lerobot_ext.recording.visualize.control import control_html
from lerobot_ext.recording.visualize.depth import DepthScale
from lerobot_ext.recording.visualize.pictures import NORMS, EpisodePictures
from lerobot_ext.recording.visualize.player import data_url, picture_html, player_html, script_html
from lerobot_ext.recording.visualize.strip import svg_strip

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

WIDTH = 1200  # points of charts and strip
NORM_HEIGHT, CHANNELS_HEIGHT, JOINT_HEIGHT = 190, 280, 170

STYLE = (
    """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 1.5rem auto; max-width: 1240px;
  padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
p.facts { color: #52606d; margin: 0 0 .6rem; } p.note { color: #52606d; font-size: .85rem; margin: .2rem 0; }
.row { display: flex; gap: 6px; } figure { margin: 0; flex: 1 1 0; min-width: 0; }
figure img { width: 100%; display: block; border-radius: 3px; }
figcaption { font-size: .78rem; color: #52606d; text-align: center; }
svg { max-width: 100%; height: auto; } .joints { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px 10px; }
.bar { display: flex; align-items: center; gap: 8px; font-size: .8rem; color: #52606d; margin: .2rem 0; }
.bar img { height: 12px; width: 320px; border-radius: 2px; }
"""
    + player.STYLE
)


def episode_page(dataset: LeRobotDataset, episode_index: int) -> str:
    """A self-contained HTML page of one episode: key frames, depth with a metric colour bar, force, pads, joints.

    Args:
        dataset: The dataset that holds it.
        episode_index: Which episode.

    Returns:
        The page's text; well below 2 MB.

    Raises:
        UserError: There is no such episode.
    """
    return render_page(EpisodePictures(dataset, episode_index))


def render_page(pictures: EpisodePictures) -> str:
    """See `episode_page`."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(pictures.title)}</title>'
        f"<style>{STYLE}</style></head><body>{render_body(pictures)}</body></html>\n"
    )


def render_body(pictures: EpisodePictures) -> str:
    """What stands on the page of one episode, for pages that show several; to be shown with STYLE."""
    view = pictures.view
    parts = [
        f"<h1>{escape(pictures.title)}</h1>",
        f'<p class="facts">task: <b>{escape(view.told)}</b> · {escape(pictures.facts())}</p>',
        player_html(pictures),
        f'<p class="note">{escape(pictures.report_line())}</p>',
    ]
    if pictures.report is not None:
        parts.append(svg_strip(pictures.report, view.times_s, view.fps, WIDTH))
    captions = [escape(caption) for caption in pictures.captions()]
    for row in pictures.rows:
        figures = "".join(
            f"<figure>{picture_html(image, row.scale, f'{row.title} at {caption}')}"
            f"<figcaption>{caption}</figcaption></figure>"
            for image, caption in zip(row.images, captions, strict=True)
        )
        parts.append(f'<h2>{escape(row.title)}</h2><div class="row">{figures}</div>')
        if row.scale is not None:
            parts.append(_bar(row.scale))
    panels = pictures.force_panels()
    if panels:
        notes = "<br>".join(map(escape, pictures.force_notes()))
        charts = "".join(
            f'<div class="{panel.kind}">'
            f"{svg_chart(panel.chart, WIDTH, NORM_HEIGHT if panel.kind == NORMS else CHANNELS_HEIGHT)}</div>"
            for panel in panels
        )
        parts.append(
            f'<h2>force</h2><div class="force {pictures.options.force}"><p class="note">{notes}</p>{charts}</div>'
        )
    joints = pictures.joint_charts()
    if joints:
        charts = "".join(svg_chart(chart, 390, JOINT_HEIGHT) for chart in joints)
        parts.append(
            '<h2>joints</h2><p class="note">blue: state; orange, dashed: action. Thin vertical lines: the '
            f'pictures above.</p><div class="joints">{charts}</div>'
        )
    if pictures.telemetry is not None:
        parts.append(control_html(pictures.telemetry, view.times_s))
    return f"<section>{''.join(parts)}{script_html(pictures)}</section>"


def _bar(scale: DepthScale) -> str:
    return (
        f'<div class="bar"><span>{scale.near_m:.3f} m</span><img alt="colour bar" '
        f'src="{data_url(scale.index_bar(), scale)}"><span>{scale.far_m:.3f} m</span>'
        f"<span>grey: unknown; range: {escape(scale.source)}; a colour is {1e3 * scale.step_m:.1f} mm; point at a "
        "picture to read its depth</span></div>"
    )
