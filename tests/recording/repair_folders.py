"""What must be in the folder of a repaired recording, for the tests of `repair`."""

from pathlib import Path

import numpy as np
import stock_crashes as stock

PLAIN = ["observation.state", "observation.force", "action"]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def open_stock(root: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("stock/crash", root=root, video_backend="pyav", return_uint8=True)


def assert_frame_exact(root: Path, episodes, tolerance_mm: float = 1) -> None:
    """The dataset holds these recorded episodes, each frame with its own numbers and pictures."""
    dataset = open_stock(root)
    assert dataset.num_episodes == len(episodes)
    assert len(dataset) == sum(stock.LENGTHS[episode] for episode in episodes)
    position = 0
    for number, episode in enumerate(episodes):
        row = dataset.meta.episodes[number]
        assert (row["dataset_from_index"], row["length"]) == (position, stock.LENGTHS[episode])
        for frame in range(stock.LENGTHS[episode]):
            item = dataset[position]
            found = [int(item[key]) for key in ("episode_index", "frame_index", "index")]
            assert found == [number, frame, position]
            truth = stock.frame_of(episode, frame, PLAIN)
            for key in PLAIN:
                np.testing.assert_array_equal(item[key].numpy(), truth[key])
            assert item["task"] == truth["task"]
            assert bool(item["pressed"]) == (frame % 3 == 0)
            if stock.SIDE in item:
                picture = item[stock.SIDE].float()
                scale = 255 if picture.max() <= 1 else 1
                assert abs(float(picture.mean()) * scale - stock.brightness(episode, frame)) < 4
            if stock.DEPTH in item:
                depth = float(item[stock.DEPTH].float().mean())
                assert abs(depth - stock.depth_mm(episode, frame)) < tolerance_mm
            position += 1


def statuses(report) -> list[str]:
    return [fate.status for fate in report.episodes]
