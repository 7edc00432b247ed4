"""The doctor's stopwatch: how late a chunk will be on this link, and what follows for the settings.

Measuring itself is done by `simplify_work.local.measure`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lerobot_ext.commands.doctor_checks import OK, WARNING, Finding
from lerobot_ext.commands.doctor_visit import ANSWER_S, Visit
from simplify_work.local import measure
from simplify_work.wire.errors import ServerTimeout

THRESHOLD = 0.5  # the engine's own chunk_size_threshold
SPARE_STEPS = 2  # actions that should still be there when the next chunk comes
SLOW_LINK = 0.4  # share of a round trip from which on the link is worth a word


def look_at_round_trip(visit: Visit) -> Finding:
    """How long does a message of no size take?"""
    with measure.Stopwatch(visit.address, visit.keys, ANSWER_S) as stopwatch:
        visit.small_s = stopwatch.small_s()
    figures = spread_ms(visit.small_s)
    return Finding(OK, f"small messages: {told(figures)} (of {len(visit.small_s)})", figures=figures)


def look_at_chunks(visit: Visit) -> Finding:
    """How long does a chunk for a whole observation take, and where does the time go?"""
    sizes = {spec.name: tuple(spec.shape) for spec in visit.given}
    observation = measure.example_observation(visit.welcome.inputs, sizes, visit.welcome.n_obs_steps)
    visit.chunks = measure.time_chunks(visit.client, observation)
    figures = spread_ms(np.array([chunk.round_trip_s for chunk in visit.chunks]))
    server_ms = 1e3 * float(np.median([chunk.durations.total_s for chunk in visit.chunks]))
    infer_ms = 1e3 * float(np.median([chunk.durations.infer_s for chunk in visit.chunks]))
    last = visit.chunks[-1]
    figures |= {
        "server_ms": server_ms,
        "infer_ms": infer_ms,
        "sent_bytes": last.sent_bytes,
        "codec": last.codec,
    }
    sent = (
        "through shared memory"
        if last.codec == "shared"
        else f"{last.sent_bytes / 1e3:.0f} kB as {last.codec}"
    )
    found = (
        f"full observations: {told(figures)} (of {len(visit.chunks)}); at the server {server_ms:.1f} ms, "
        f"{infer_ms:.1f} of it inference; sent {sent}"
    )
    return Finding(OK, found, figures=figures)


def look_at_bandwidth(visit: Visit) -> Finding:
    """How much goes through the link?"""
    if visit.address.path is not None:
        return Finding(OK, "pictures go through shared memory, no link is between")
    try:
        with measure.Stopwatch(visit.address, visit.keys, ANSWER_S) as stopwatch:
            found = stopwatch.bandwidth_bit_s(visit.small_s)
    except ServerTimeout as error:
        return Finding(WARNING, str(error), "use a cable in place of Wi-Fi, or smaller and fewer pictures")
    if not math.isfinite(found):
        return Finding(OK, "too much to tell")
    return Finding(OK, f"about {rate(found)} towards the server", figures={"bit_s": found})


def look_at_delay(visit: Visit) -> Finding:
    """How many steps late is a chunk, and what follows for the settings?"""
    round_trips = np.array([chunk.round_trip_s for chunk in visit.chunks])
    late_s, fps = float(np.percentile(round_trips, 95)), visit.fps
    steps = math.ceil(late_s * fps)
    size = visit.welcome.chunk_size
    size = max(1, min(size, int(visit.setting("inference", "actions_per_chunk", default=size))))
    needed = math.ceil(20 * (steps + SPARE_STEPS) / size) / 20
    set_to = float(visit.setting("inference", "chunk_size_threshold", default=THRESHOLD))
    found = f"{steps} steps at {fps:g} fps (95 % of the chunks); a chunk lasts {size} steps"
    advice = []
    if steps + SPARE_STEPS > size:
        advice.append(
            "chunks are used up before the next one comes, the arm will wait for each: use a faster GPU or link, longer "
            "chunks, or fewer fps"
        )
    elif visit.setting("inference", "type") == "sync":
        found += f"; with inference.type=sync the arm waits {1e3 * late_s:.0f} ms for each"
        if steps > 1:
            advice.append("use inference.type=async, which asks while the arm moves")
    elif set_to == 0:
        found += (
            f"; chunk_size_threshold is 0, so the next chunk is asked for when the last one is used up, and the arm waits "
            f"{1e3 * late_s:.0f} ms for it ({needed:.2f} or more would move without pauses)"
        )
    elif needed > set_to:
        advice.append(f"set inference.chunk_size_threshold to {needed:.2f} or more (it is {set_to:g})")
    else:
        found += f"; chunk_size_threshold {set_to:g} is enough ({needed:.2f} would be)"
    advice += advice_on_link(visit)
    figures = {"steps": steps, "fps": fps, "actions_per_chunk": size, "least_threshold": min(needed, 1.0)}
    return Finding(WARNING if advice else OK, found, "; ".join(advice), figures)


def advice_on_link(visit: Visit) -> list[str]:
    """What to do about a link that makes chunks late by a step or more; nothing if it does not."""
    total_s = float(np.median([chunk.round_trip_s for chunk in visit.chunks]))
    link_s = float(np.median(measure.link_s(visit.chunks)))
    if link_s * visit.fps < 1 or link_s < SLOW_LINK * total_s:
        return []
    found = f"{1e3 * link_s:.0f} ms of it is the link"
    latency_s = float(np.median(visit.small_s)) if visit.small_s.size else 0.0
    codec = visit.chunks[-1].codec
    if latency_s > link_s / 2:
        return [
            f"{found}, which no codec makes much shorter: use a cable in place of Wi-Fi, or a nearer server"
        ]
    if codec == "jpeg":
        return [f"{found}, with jpeg already: use smaller or fewer pictures, or a cable"]
    return [f"{found}: set server.codec to auto or jpeg (it was {codec})"]


def spread_ms(seconds: np.ndarray) -> dict[str, Any]:
    """Median and 95th percentile in milliseconds."""
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "count": len(seconds),
    }


def told(figures: dict[str, Any]) -> str:
    """Figures of `spread_ms` in words."""
    return f"median {figures['median_ms']:.1f} ms, 95 % below {figures['p95_ms']:.1f} ms"


def rate(bit_s: float) -> str:
    """`98 Mbit/s`."""
    return f"{bit_s / 1e9:.1f} Gbit/s" if bit_s >= 1e9 else f"{bit_s / 1e6:.3g} Mbit/s"
