"""How many samples a second training's data loader gives: LeRobot's with everything, a filter behind it, and ours.

The dataset is the lab's: two RGB cameras, depth and force, 480x640, encoded by LeRobot with its defaults. LeRobot's loader
is the dataset that `lerobot-train` makes (uint8, windows as ACT asks for them) behind its sampler and its DataLoader, in
random order; the filter drops what is not selected from the finished batch, as people write it by hand. Ours gives the
selection without a cache, with one in memory, and with one on disk that an earlier epoch filled. All in one run, in
turns. Without noise of a real sensor the videos are small; real ones take longer to decode, for all alike.

    python scripts/bench/train_loading.py [--quick] [--workers 0 2] [--resize 224 224]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import common
import lab_dataset

SIZE = (480, 640)
PREFETCH = 4  # LeRobot's default
NEEDED = {"none": 2.0, "disk": 10.0}  # times LeRobot's rate that {one RGB} shall reach


def selections(resize: tuple[int, int] | None) -> dict[str, Any]:
    """What is compared, by name."""
    from lerobot_ext.modality import DepthSelection, ForceSelection, Selection

    return {
        "RGB": Selection(resize=resize),
        "one RGB": Selection(cameras=("wrist",), resize=resize),
        "RGB + depth": Selection(depth=DepthSelection(), resize=resize),
        "RGB + force": Selection(force=ForceSelection(), resize=resize),
    }


def stock_dataset(root: Path) -> Any:
    """The dataset that `lerobot-train` makes, for ACT with its defaults."""
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.datasets.factory import make_train_eval_datasets
    from lerobot.policies.act.configuration_act import ACTConfig

    config = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=lab_dataset.REPO_ID, root=str(root)),
        policy=ACTConfig(device="cpu", push_to_hub=False),
    )
    return make_train_eval_datasets(config)[0]


def batches(dataset: Any, workers: int, arguments: argparse.Namespace, turn: int) -> Iterable[dict]:
    """LeRobot's sampler and DataLoader, as its train makes them."""
    import torch
    from lerobot.datasets import EpisodeAwareSampler

    sampler = EpisodeAwareSampler(
        dataset.meta.episodes["dataset_from_index"],
        dataset.meta.episodes["dataset_to_index"],
        episode_indices_to_use=dataset.episodes,
        shuffle=True,
        seed=arguments.seed + turn,
        absolute_to_relative_idx=dataset.absolute_to_relative_idx,
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        num_workers=workers,
        batch_size=arguments.batch,
        sampler=sampler,
        prefetch_factor=PREFETCH if workers else None,
        persistent_workers=bool(workers),
        multiprocessing_context="spawn" if workers else None,
    )
    while True:
        yield from loader


def rate(
    dataset: Any,
    finish: Callable[[dict], dict],
    workers: int,
    arguments: argparse.Namespace,
    turn: int,
) -> float:
    """Samples per second, after what was loaded ahead."""
    given = batches(dataset, workers, arguments, turn)
    for _ in range(1 + PREFETCH * workers):
        finish(next(given))
    samples, started = 0, time.perf_counter()
    while samples < 2 * arguments.batch or time.perf_counter() - started < arguments.seconds:
        samples += len(finish(next(given))["index"])
    return samples / (time.perf_counter() - started)


def limits(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """What no loader passes on one core: one frame's decoding for each item, and copying its bytes."""
    import numpy as np
    import torch

    from lerobot_ext.modality import decoding

    rng = np.random.default_rng(arguments.seed)
    found = {}
    for key in (lab_dataset.WRIST, lab_dataset.DEPTH):
        path = next((root / "videos" / key).rglob("*.mp4"))
        wanted = decoding.DEPTH_FORMAT if key == lab_dataset.DEPTH else decoding.RGB_FORMAT
        times = rng.integers(0, arguments.frames // 2, 60) / lab_dataset.FPS
        decoding.read_frames(path, [0.0], 1e-4, wanted)
        started = time.perf_counter()
        for moment in times:
            decoding.read_frames(path, [float(moment)], 1e-4, wanted)
        found[f"decode {key.rsplit('.', 1)[-1]}, frames/s"] = len(times) / (time.perf_counter() - started)
    source = torch.zeros(64, 1 << 20, dtype=torch.uint8)
    target = torch.ones_like(source)
    started = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    found["memcpy, GB/s"] = 20 * source.numel() / (time.perf_counter() - started) / 1e9
    size = 3 * arguments.resize[0] * arguments.resize[1]
    found["copies of one picture at that size /s"] = found["memcpy, GB/s"] * 1e9 / size
    return found


def loaders(root: Path, work: Path, workers: int, arguments: argparse.Namespace) -> tuple[dict, dict]:
    """(selection, what) -> (dataset, what is done with its batch), and seconds that each cache took to fill."""
    from lerobot_ext.modality.view import select_dataset

    resize = tuple(arguments.resize)
    stock = stock_dataset(root)
    made: dict[tuple[str, str], tuple] = {("everything", "LeRobot"): (stock, _as_it_is)}
    took = {}
    for name, selection in selections(None).items():
        if workers and name not in arguments.with_workers:
            continue
        view = select_dataset(stock, selection)
        kept = set(view[0])
        made[name, "filter"] = (stock, partial(_filtered, kept))
        made[name, "ours"] = (view, _as_it_is)
        smaller = selections(resize)[name]
        made[name, "ours, resized"] = (select_dataset(stock, smaller), _as_it_is)
        for what, folder in (("memory", None), ("disk", work / "frames")):
            started = time.perf_counter()
            cached = select_dataset(stock, smaller, arguments.cache_gb, workers > 0, folder)
            took[f"{name}, {what}"] = time.perf_counter() - started
            made[name, f"ours, {what}"] = (cached, _as_it_is)
    return made, took


def _as_it_is(batch: dict) -> dict:
    return batch


def _filtered(kept: set[str], batch: dict) -> dict:
    return {key: value for key, value in batch.items() if key in kept}


def measure(root: Path, work: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each loader and number of workers."""
    rows = []
    for workers in arguments.workers:
        made, took = loaders(root, work, workers, arguments)
        rates: dict[tuple[str, str], list[float]] = {which: [] for which in made}
        for turn in common.progress(range(arguments.turns), f"{workers} workers", "turn"):
            # whoever comes first meets the machine as the turn before left it
            for which in list(made) if turn % 2 == 0 else reversed(made):
                rates[which].append(rate(*made[which], workers, arguments, turn))
        stock = statistics.median(rates["everything", "LeRobot"])
        for (name, what), values in rates.items():
            ours = statistics.median(values)
            rows.append(
                {
                    "workers": workers,
                    "selection": name,
                    "loader": what,
                    "pictures": "x".join(map(str, arguments.resize if "," in what else SIZE)),
                    "samples/s": ours,
                    "lowest": min(values),
                    "highest": max(values),
                    "times LeRobot": ours / stock,
                    "filled in s": took.get(f"{name}, {what.removeprefix('ours, ')}"),
                }
            )
    return rows


def main() -> None:
    """Measure, print, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=Path, default=common.RESULTS / "cache", help="for datasets and caches")
    parser.add_argument("--frames", type=int, help="in the dataset (default 600; quick 240)")
    parser.add_argument("--seconds", type=float, help="a measurement lasts at least (default 4; quick 1)")
    parser.add_argument("--turns", type=int, help="(default 5; quick 1)")
    parser.add_argument("--batch", type=int, default=8, help="samples (default %(default)s, as LeRobot's)")
    parser.add_argument("--workers", type=int, nargs="+", help="worker processes (default 0 2; quick 0)")
    parser.add_argument(
        "--with_workers", nargs="+", default=["one RGB"], help="selections measured with workers, too"
    )
    parser.add_argument("--resize", type=int, nargs=2, default=(224, 224), help="the policy's size")
    parser.add_argument("--cache_gb", type=float, default=4.0, help="most in a cache")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.frames = arguments.frames or (240 if quick else 600)
    arguments.seconds = arguments.seconds or (1.0 if quick else 4.0)
    arguments.turns = arguments.turns or (1 if quick else 5)
    arguments.workers = arguments.workers or ([0] if quick else [0, 2])
    logging.disable(logging.WARNING)  # torchcodec without ffmpeg says so in every worker

    root = lab_dataset.lab_dataset(arguments.work, arguments.frames, arguments.seed, SIZE)
    rows = measure(root, arguments.work, arguments)
    backend = stock_dataset(root).reader._video_backend
    common.print_table(
        rows,
        f"Samples per second, batch {arguments.batch}, random order, {arguments.frames} frames of {SIZE[0]}x{SIZE[1]}, "
        f"LeRobot decodes colour with {backend}; median of {arguments.turns} turns",
    )
    physical = limits(root, arguments)
    common.print_table([{"limit on one core": name, "value": value} for name, value in physical.items()])
    for row in rows:
        needed = NEEDED.get({"ours": "none", "ours, disk": "disk"}.get(row["loader"], ""))
        if row["selection"] == "one RGB" and needed:
            said = "reached" if row["times LeRobot"] >= needed else "NOT reached"
            print(
                f"{row['workers']} workers, one RGB, {row['loader']}: {row['times LeRobot']:.1f} times LeRobot's loader "
                f"with everything (goal {needed:g}: {said})"
            )
    print(
        "LeRobot's loader always decodes every camera; its ACT and SmolVLA stop at the depth map, and leave force out. "
        "A filter saves none of the decoding."
    )
    common.save("train_loading", {"rows": rows, "limits": physical, "video_backend": backend}, arguments)


if __name__ == "__main__":
    main()
