"""The part of a page that moves: pictures and pads of the frame under the slider, a cursor in every chart.

Everything the script needs is in the page; without it the page shows the peak of force and both kinds of curves.
All geometry comes from `pad`, so the script only puts numbers where they belong.
"""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_ext.recording.visualize.depth import PALETTE, DepthScale, to_png
from lerobot_ext.recording.visualize.pad import COLORS, HEAD, HEAD_POINTS, pad_title
from lerobot_ext.recording.visualize.pictures import EpisodePictures

JPEG_QUALITY, FILM_QUALITY = 82, 70
PAD_FRAMES = 2000  # positions of a pad in a page; a longer episode skips frames
TENTHS = 10  # pad geometry is given in tenths of a point

STYLE = """
.player { margin: .6rem 0; } .film { display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start; }
.film figure { flex: 0 1 auto; } .film .shot { width: 300px; max-width: 100%; } .pad svg { width: 230px; }
.controls { display: flex; gap: 10px; align-items: center; margin: .4rem 0; }
.controls input { flex: 1; } .controls button, .switch button { font: inherit; font-size: .85rem; padding: .15rem .7rem;
  border: 1px solid #9aa5b1; border-radius: 4px; background: #fff; cursor: pointer; }
.switch button.on { background: #1f2933; color: #fff; } .clock { font-variant-numeric: tabular-nums; min-width: 4.5em; }
.force.norms .channels, .force.channels .norms { display: none; }
.tip { position: fixed; pointer-events: none; background: #1f2933; color: #fff; font-size: .8rem; padding: .1rem .45rem;
  border-radius: 4px; display: none; z-index: 9; } img.depth { cursor: crosshair; image-rendering: pixelated; }
"""

SCRIPT = """
(() => {
  const here = document.currentScript.closest("section");
  const data = JSON.parse(here.querySelector("script.data").textContent);
  const all = (what) => [...here.querySelectorAll(what)];
  const make = (name, kind) => { const e = document.createElement(name); e.className = kind; return e; };

  const force = here.querySelector(".force");
  if (force) {
    const bar = make("div", "switch");
    const buttons = ["both", "norms", "channels"].map((kind) => {
      const button = make("button", "");
      button.textContent = kind;
      button.onclick = () => { force.className = "force " + kind; mark(); };
      bar.append(button, " ");
      return button;
    });
    const mark = () => buttons.forEach((b) => b.classList.toggle("on", force.classList.contains(b.textContent)));
    force.prepend(bar);
    mark();
  }

  const cursors = all("svg[data-axis]").map((svg) => {
    const [left, right, top, bottom, start, end] = svg.dataset.axis.split(" ").map(Number);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [key, value] of [["y1", top], ["y2", bottom], ["stroke", "#111827"]]) line.setAttribute(key, value);
    svg.append(line);
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const t = start + (x - left) / (right - left) * (end - start);
      show(data.times.reduce((best, s, i) => Math.abs(s - t) < Math.abs(data.times[best] - t) ? i : best, 0));
    });
    return (t) => {
      const x = left + (t - start) / (end - start) * (right - left);
      line.setAttribute("x1", x); line.setAttribute("x2", x);
    };
  });

  const shots = all("img.shot").map((img) => (i) => {
    let best = 0;
    data.film.forEach((p, n) => { if (Math.abs(p - i) < Math.abs(data.film[best] - i)) best = n; });
    const url = data.images[img.dataset.camera][best];
    if (img.getAttribute("src") !== url) img.src = url;
    img.parentNode.querySelector(".at").textContent = data.times[data.film[best]].toFixed(2) + " s";
  });

  const pads = all(".pad").map((div) => {
    const pad = data.pads[div.dataset.pad];
    const discs = [...div.querySelectorAll(".disc")], arrows = [...div.querySelectorAll(".arrow")];
    return (i) => pad.moves[Math.min(Math.floor(i / pad.every), pad.moves.length - 1)].forEach((move, n) => {
      const [dx, dy, radius] = move.slice(0, 3).map((v) => v / data.tenths), [x, y] = pad.centers[n];
      discs[n].setAttribute("r", radius);
      discs[n].setAttribute("fill", data.colors[move[3]]);
      const length = Math.hypot(dx, dy), back = Math.min(data.head[0] * length, data.head[1]) / length;
      const ax = dx * back, ay = dy * back, cx = -dy * back * 0.6, cy = dx * back * 0.6, tx = x + dx, ty = y + dy;
      arrows[n].setAttribute("d", length < 1 ? "" : `M${x} ${y} L${tx} ${ty} M${tx - ax + cx} ${ty - ay + cy} ` +
        `L${tx} ${ty} L${tx - ax - cx} ${ty - ay - cy}`);
    });
  });

  const slider = here.querySelector(".controls input"), clock = here.querySelector(".clock");
  const show = (i) => {
    for (const draw of [...shots, ...pads]) draw(i);
    for (const move of cursors) move(data.times[i]);
    if (slider) { slider.value = i; clock.textContent = data.times[i].toFixed(2) + " s"; }
  };
  if (slider) {
    let since = null;
    const play = here.querySelector(".controls button");
    const stop = () => { since = null; play.textContent = "play"; };
    slider.oninput = () => { stop(); show(Number(slider.value)); };
    play.onclick = () => {
      if (since !== null) return stop();
      const last = data.times.length - 1;
      const from = Number(slider.value) >= last ? 0 : Number(slider.value);
      since = performance.now() - data.times[from] * 1e3;
      play.textContent = "pause";
      const tick = () => {
        if (since === null) return;
        const t = (performance.now() - since) / 1e3;
        let i = data.times.findIndex((s) => s > t);
        i = i < 0 ? last : Math.max(i - 1, 0);
        show(i);
        if (i >= last) stop(); else requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    };
    show(Number(slider.value));
  }

  const tip = make("div", "tip");
  here.append(tip);
  const levels = new Map(data.palette.map((color, level) => [color, level]));
  for (const img of all("img.depth")) {
    let pixels = null, of = null;
    img.onmouseleave = () => { tip.style.display = "none"; };
    img.onmousemove = (event) => {
      if (of !== img.src) {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(img, 0, 0);
        pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
        of = img.src;
      }
      const box = img.getBoundingClientRect();
      const u = Math.floor((event.clientX - box.left) / box.width * img.naturalWidth);
      const v = Math.floor((event.clientY - box.top) / box.height * img.naturalHeight);
      const at = 4 * (v * img.naturalWidth + u);
      const level = levels.get((pixels[at] << 16) + (pixels[at + 1] << 8) + pixels[at + 2]);
      const near = Number(img.dataset.near), far = Number(img.dataset.far), last = data.palette.length - 2;
      const edge = level === 0 ? "at most " : level === last ? "at least " : "";
      tip.textContent = level === undefined ? "" : level > last ? "unknown"
        : edge + (near + level / last * (far - near)).toFixed(3) + " m";
      tip.style.cssText = `display:block;left:${event.clientX + 12}px;top:${event.clientY + 12}px`;
    };
  }
})();
"""


def player_html(pictures: EpisodePictures) -> str:
    """Pictures and pads of one frame with a slider; nothing if there is neither."""
    film = pictures.film
    if not film.positions and not pictures.pads:
        return ""
    still = first_frame(pictures)
    parts = []
    if film.positions:
        nearest = int(np.abs(np.array(film.positions) - still).argmin())
        at = pictures.view.times_s[film.positions[nearest]]
        for row in pictures.rows:
            parts.append(
                f"<figure>{picture_html(film.images[row.title][nearest], row.scale, row.title, row.title)}"
                f'<figcaption>{escape(row.title)} · <span class="at">{at:.2f} s</span></figcaption></figure>'
            )
    parts += [
        pad.picture.svg(pad_title(pad.sensor), pad.sensor.unit, pad.vectors[still], pad.sensor.name)
        for pad in pictures.pads
    ]
    last = len(pictures.view) - 1
    scales = "".join(
        f'<p class="note">{escape(pad.sensor.name)}, the same scale in the whole episode: '
        f"{escape(pad.picture.scale.text(pad.sensor.unit))}; change since the episode's start. Red: positive, blue: "
        "negative, along the board's z axis.</p>"
        for pad in pictures.pads
    )
    return (
        f'<div class="player"><div class="film">{"".join(parts)}</div><div class="controls"><button>play</button>'
        f'<input type="range" min="0" max="{last}" value="{still}" aria-label="frame"><span class="clock">'
        f"{pictures.view.times_s[still]:.2f} s</span></div>{scales}</div>"
    )


def first_frame(pictures: EpisodePictures) -> int:
    """The frame that is shown before anybody moves the slider: the peak of force, else the start."""
    return pictures.pads[0].peak if pictures.pads else 0


def script_html(pictures: EpisodePictures) -> str:
    """The numbers and the script that moves what is on the page."""
    film = pictures.film
    data: dict[str, Any] = {
        "times": [round(float(t), 3) for t in pictures.view.times_s],
        "film": film.positions,
        "images": {
            row.title: [data_url(image, row.scale, FILM_QUALITY) for image in film.images[row.title]]
            for row in pictures.rows
            if film.positions
        },
        "pads": {pad.sensor.name: pad_moves(pad) for pad in pictures.pads},
        "colors": COLORS,
        "head": [HEAD, HEAD_POINTS],
        "tenths": TENTHS,
        "palette": [(int(r) << 16) + (int(g) << 8) + int(b) for r, g, b in PALETTE]
        if pictures.scales
        else [],
    }
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return f'<script type="application/json" class="data">{text}</script><script>{SCRIPT}</script>'


def pad_moves(pad) -> dict[str, Any]:
    """A pad's geometry of every frame, for the script: whole tenths of a point, and an index of COLORS."""
    every = -(-len(pad.vectors) // PAD_FRAMES)
    moves = pad.picture.geometry(pad.vectors[::every])
    moves[..., :3] *= TENTHS
    return {
        "centers": [[round(float(v), 1) for v in center] for center in pad.picture.centers],
        "every": every,
        "moves": np.rint(moves).astype(int).tolist(),
    }


def picture_html(
    image: NDArray[np.uint8], scale: DepthScale | None, alt: str, camera: str | None = None
) -> str:
    """An `<img>`; of depth one that answers with metres where the mouse is. `camera`: the script changes it."""
    kinds = [*(["shot"] if camera else []), *(["depth"] if scale else [])]
    extra = f' class="{" ".join(kinds)}"' if kinds else ""
    if camera:
        extra += f' data-camera="{escape(camera)}"'
    if scale is not None:
        extra += f' data-near="{scale.near_m:.6g}" data-far="{scale.far_m:.6g}"'
    return f'<img alt="{escape(alt)}"{extra} src="{data_url(image, scale, FILM_QUALITY if camera else JPEG_QUALITY)}">'  # fmt: skip


def data_url(image: NDArray[np.uint8], scale: DepthScale | None, quality: int = JPEG_QUALITY) -> str:
    """RGB as JPEG, depth indices as PNG, inside the address."""
    if scale is not None:
        kind, coded = "png", to_png(image)
    else:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        kind, coded = "jpeg", cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return f"data:image/{kind};base64,{base64.b64encode(coded).decode('ascii')}"
