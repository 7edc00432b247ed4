"""The last check of a repaired dataset: LeRobot itself opens it and shows each episode's first and last frame."""

from __future__ import annotations

from pathlib import Path

from lerobot_ext.recording.repair.read import Track


def check(root: Path, cache: Path, track: Track = lambda items, _: items) -> list[str]:
    """Open a dataset with `LeRobotDataset` and read the ends of every episode.

    Args:
        root: The dataset's folder.
        cache: A folder for the tables that LeRobot unpacks.
        track: Wraps the episodes, to show how far it is.

    Returns:
        A sentence for everything that failed; none if the dataset is as it should be.
    """
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    try:
        try:
            dataset = LeRobotDataset("local/repaired", root=root, video_backend="pyav", return_uint8=True)
        except Exception as error:  # whatever LeRobot raises is what the user would see
            return [f"LeRobotDataset does not open it: {type(error).__name__}: {error}"]
        failures = []
        if len(dataset.hf_dataset) != dataset.meta.total_frames:
            failures.append(f"{len(dataset.hf_dataset)} frames of {dataset.meta.total_frames} are there")
        for index in track(range(dataset.meta.total_episodes), "check"):
            row = dataset.meta.episodes[index]
            ends = ((row["dataset_from_index"], 0), (row["dataset_to_index"] - 1, row["length"] - 1))
            for position, frame in ends:
                try:
                    item = dataset[position]
                    found = int(item["episode_index"]), int(item["frame_index"]), int(item["index"])
                except Exception as error:
                    failures.append(f"episode {index}, frame {frame}: {type(error).__name__}: {error}")
                    continue
                if found != (index, frame, position):
                    failures.append(
                        f"episode {index}, frame {frame}: found (episode, frame, index) {found}, expected "
                        f"{(index, frame, position)}"
                    )
        return failures
    finally:
        datasets.config.HF_DATASETS_CACHE = before
