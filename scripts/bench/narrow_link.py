"""From observation to chunk through a narrow link: 100 Mbit/s and 20 ms each way, in a userspace proxy.

Three 480x640 RGB pictures of a camera's structure and noise, 6 joints, 15 force channels; the policy answers at once
and looks at pictures as SmolVLA does (padded to 512x512). Ours with each codec and with `auto`, which has to find the
link out by itself (the proxy's address is one of this machine), against LeRobot's `async_inference`. What the
pictures lose is given as PSNR against what the policy would have seen of the raw ones.

    python scripts/bench/narrow_link.py [--quick] [--bandwidth_mbit=100] [--delay_ms=20]
"""

from __future__ import annotations

import contextlib
import math
import time

import common
import numpy as np
import peers

from lerobot_ext.virtual.network import Link
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.messages import Infer, PictureUse
from simplify_work.wire.pictures import PictureEncoder, downscale

SIZE = (512, 512)
VARIANTS = {
    "ours, auto": {"codec": "auto"},
    "ours, auto, no shrink": {"codec": "auto", "shrink": False},
    "ours, raw": {"codec": "raw"},
    "ours, lossless": {"codec": "lossless"},
    "ours, jpeg": {"codec": "jpeg"},
}


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--bandwidth_mbit", type=float, default=100, help="each way (default %(default)s)")
    parser.add_argument("--delay_ms", type=float, default=20, help="each way (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="turns that each takes (default %(default)s)")
    parser.add_argument("--calls", type=int, default=5, help="calls in a turn (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.calls = 2, 3
    images = peers.pictures(arguments.seed)
    observation = peers.observation(images, arguments.seed)
    with contextlib.ExitStack() as stack:
        everyone = _everyone(arguments, stack)
        times: dict[str, list[float]] = {name: [] for name in everyone}
        for turn in range(arguments.rounds + 1):
            for name, peer in everyone.items():
                for _ in range(arguments.calls):
                    started = time.perf_counter()
                    peer.ask(observation)
                    taken = time.perf_counter() - started
                    if turn:  # the first round warms up, and lets `auto` find its codec
                        times[name].append(taken)
        sent = {name: peer.last for name, peer in everyone.items() if isinstance(peer, peers.Ours)}
    figures = {name: common.percentiles(sample) for name, sample in times.items()}
    theirs = figures["lerobot"]["p50"]
    rows, errors = [], {}
    for name, figure in figures.items():
        chunk = sent.get(name)
        errors[name] = psnr(images, chunk.codec, VARIANTS[name].get("shrink", True)) if chunk else None
        rows.append(
            {
                "milliseconds": name,
                "p50": figure["p50"],
                "p95": figure["p95"],
                "codec": chunk.codec if chunk else "pickle",
                "kB sent": chunk.sent_bytes / 1000 if chunk else None,
                "PSNR dB": errors[name],
                "LeRobot's is": f"{common.ratio(figure['p50'], theirs):.1f} times it",
            }
        )
    common.print_table(
        rows,
        f"From observation to chunk, {arguments.bandwidth_mbit:g} Mbit/s, {arguments.delay_ms:g} ms each way",
    )
    met = 5 * figures["ours, auto"]["p50"] <= theirs
    print(f"\n{'yes' if met else 'NO '}  `auto` takes at most a fifth of LeRobot's time")
    results = {
        "milliseconds": figures,
        "psnr_db": errors,
        "codecs": {name: chunk.codec for name, chunk in sent.items()},
        "sent_bytes": {name: chunk.sent_bytes for name, chunk in sent.items()},
        "goals": {"auto takes at most a fifth of LeRobot's time": met},
    }
    common.save("narrow_link", results, arguments)


def psnr(images: list[np.ndarray], codec: str, shrink: bool) -> float | None:
    """Peak signal-to-noise ratio, in dB, of what the policy sees of pictures that travelled; None if nothing is lost.

    Args:
        images: (480, 640, 3) uint8.
        codec: That they travelled by.
        shrink: They were made smaller first; the policy does the same to raw ones, in float.
    """
    wanted = dict(zip(peers.CAMERAS, images, strict=True))
    if shrink and codec != "raw":
        wanted = {name: downscale(image, PictureUse(name, *SIZE, "pad")) for name, image in wanted.items()}
    _, seen = unpack(pack(Infer(request=0), wanted, PictureEncoder(codec)))
    difference = np.concatenate([(wanted[name].astype(float) - seen[name]).ravel() for name in wanted])
    square = float(np.mean(difference**2))
    return 10 * math.log10(255**2 / square) if square else None


def _everyone(arguments, stack: contextlib.ExitStack) -> dict:
    conditions = {"bandwidth_mbit": arguments.bandwidth_mbit, "delay_ms": arguments.delay_ms}
    everyone = {}
    for name, options in VARIANTS.items():
        # Each has its own server and link, so that none meets what another left in a queue.
        ours = everyone[name] = peers.Ours(size=SIZE)
        link = stack.enter_context(Link("127.0.0.1", int(ours.address.rpartition(":")[2]), **conditions))
        ours.connect(link.address, **options)
        stack.callback(ours.close)
    lerobots = everyone["lerobot"] = peers.LeRobots()
    host, _, port = lerobots.address.partition(":")
    link = stack.enter_context(Link(host, int(port), **conditions))
    lerobots.connect(link.address.removeprefix("tcp://"))
    stack.callback(lerobots.close)
    return everyone


if __name__ == "__main__":
    main()
