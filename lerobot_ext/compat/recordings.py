"""Recordings: an interrupt waits for the disk, every saved episode survives, and what devices there were is told."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lerobot_ext import patching
from lerobot_ext.extension import Extension


def _undisturbed(doing: str) -> Callable[[Callable], Callable]:
    def make(original: Callable) -> Callable:
        def undisturbed(*args: Any, **kwargs: Any) -> Any:
            from lerobot_ext.recording.interrupts import deferred_interrupts

            with deferred_interrupts(doing):
                return original(*args, **kwargs)

        return undisturbed

    return make


def _replacing_json(content: Callable[[Any], Any], path: str) -> Callable[[Callable], Callable]:
    def make(original: Callable) -> Callable:
        def write(value: Any, local_dir: Path) -> None:
            from lerobot_ext.recording.files import replace_json

            replace_json(Path(local_dir) / path, content(value))

        return write

    return make


def _serialized(stats: dict) -> dict:
    from lerobot.datasets.utils import serialize_dict

    return serialize_dict(stats)


def _write_tasks(original: Callable) -> Callable:
    def write_tasks(tasks: Any, local_dir: Path) -> None:
        from lerobot.datasets.utils import DEFAULT_TASKS_PATH

        from lerobot_ext.recording.files import replacing

        with replacing(Path(local_dir) / DEFAULT_TASKS_PATH) as temp:
            tasks.to_parquet(temp)

    return write_tasks


def _instance_of(module: str, name: str) -> Callable[[Callable], Callable]:
    """Instances of a class of LeRobot's are of our subclass instead, which is imported when the first one is made."""

    def make(original: Callable) -> Callable:
        def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            ours = getattr(importlib.import_module(module), name)
            return object.__new__(ours if issubclass(ours, cls) else cls)

        return __new__

    return make


def _resume(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def resume(*args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording import recover

        root = signature.bind(*args, **kwargs).arguments.get("root")
        if root:
            recover.check_resumable(root)
            recover.logged(root)
        return original(*args, **kwargs)

    return resume


def _features_equal_for_merge(original: Callable) -> Callable:
    def features_equal_for_merge(features_a: dict, features_b: dict) -> bool:
        from lerobot_ext.recording.merging import comparable

        return original(comparable(features_a, features_b), comparable(features_b, features_a))

    return features_equal_for_merge


def _merge_video_feature_info(original: Callable) -> Callable:
    def merge_video_feature_info_for_aggregate(all_metadata: list) -> dict:
        from lerobot_ext.recording.merging import keep_what_is_common

        return keep_what_is_common(original(all_metadata), [each.features for each in all_metadata])

    return merge_video_feature_info_for_aggregate


EXTENSIONS = (
    Extension(
        "lerobot.datasets.lerobot_dataset",
        "LeRobotDataset.save_episode",
        "Can be interrupted between videos and table, which leaves a folder that cannot be opened: Ctrl-C waits.",
        "self episode_data parallel_encoding",
        _undisturbed("saving the episode"),
    ),
    Extension(
        "lerobot.datasets.lerobot_dataset",
        "LeRobotDataset.finalize",
        "Can be interrupted before the files have their ends: Ctrl-C waits.",
        "self",
        _undisturbed("finishing the dataset"),
    ),
    Extension(
        "lerobot.datasets.dataset_writer",
        "DatasetWriter.__new__",
        "Keeps tables open and metadata in memory until the end: ours has each episode on disk when it is saved.",
        "meta root rgb_encoder depth_encoder encoder_threads batch_encoding_size streaming_encoder initial_frames",
        _instance_of("lerobot_ext.recording.writer", "DurableWriter"),
    ),
    Extension(
        "lerobot.datasets.video_utils",
        "StreamingVideoEncoder.__new__",
        "Drops frames when an encoder is slow, which makes the episode unreadable: ours waits.",
        "fps rgb_encoder depth_encoder queue_maxsize encoder_threads",
        _instance_of("lerobot_ext.recording.encoding", "PatientStreamingEncoder"),
    ),
    Extension(
        "lerobot.datasets.lerobot_dataset",
        "LeRobotDataset.resume",
        "Expects a folder as a finished recording leaves it: what a kill left is tidied up first.",
        "cls repo_id root tolerance_s revision force_cache_sync video_backend batch_encoding_size rgb_encoder "
        "depth_encoder encoder_threads image_writer_processes image_writer_threads streaming_encoding "
        "encoder_queue_maxsize token",
        _resume,
    ),
    Extension(
        "lerobot.datasets.io_utils",
        "write_info",
        "Empties the file before it writes it: it is replaced at once.",
        "info local_dir",
        _replacing_json(lambda info: info.to_dict(), "meta/info.json"),
    ),
    Extension(
        "lerobot.datasets.io_utils",
        "write_stats",
        "Empties the file before it writes it: it is replaced at once.",
        "stats local_dir",
        _replacing_json(_serialized, "meta/stats.json"),
    ),
    Extension(
        "lerobot.datasets.io_utils",
        "write_tasks",
        "Empties the file before it writes it: it is replaced at once.",
        "tasks local_dir",
        _write_tasks,
    ),
    Extension(
        "lerobot.datasets.feature_utils",
        "features_equal_for_merge",
        "Refuses to merge datasets whose features tell of different cameras or sensors: units must be equal, devices not.",
        "features_a features_b",
        _features_equal_for_merge,
    ),
    Extension(
        "lerobot.datasets.aggregate",
        "merge_video_feature_info_for_aggregate",
        "Takes the first dataset's word for all: the merged one tells of a camera or sensor only if it was the same in all.",
        "all_metadata",
        _merge_video_feature_info,
    ),
)
