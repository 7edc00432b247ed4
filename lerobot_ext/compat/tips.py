"""Language tips: a column that a recording has beside what the robot gives, and the keys that choose one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext import patching
from lerobot_ext.extension import Extension


def _create(original: Callable) -> Callable:
    signature = patching.signature_of(original)

    def create(*args: Any, **kwargs: Any) -> Any:
        from lerobot_ext.recording import tips

        given = signature.bind(*args, **kwargs)
        given.arguments["features"] = tips.with_column(given.arguments["features"])
        return original(*given.args, **given.kwargs)

    return create


def _sanity_check(original: Callable) -> Callable:
    def sanity_check_dataset_robot_compatibility(dataset: Any, robot: Any, fps: int, features: dict) -> None:
        from lerobot_ext.features import TIP

        # No robot gives it, so what the dataset says of it is what will be recorded.
        kept = {TIP: dataset.features[TIP]} if TIP in dataset.features else {}
        original(dataset, robot, fps, {**features, **kept})

    return sanity_check_dataset_robot_compatibility


def _create_key_listener(original: Callable) -> Callable:
    def create_key_listener(dispatch: Callable[[str], None], *, controls_help: str = "") -> Any:
        from lerobot_ext.recording.tips import tips

        if not tips.to_choose:
            return original(dispatch, controls_help=controls_help)

        def both(name: str) -> None:
            tips.key(name)
            dispatch(name)

        return original(both, controls_help=f"{controls_help}; 1 to 9 choose the language tip")

    return create_key_listener


EXTENSIONS = (
    Extension(
        "lerobot.datasets.lerobot_dataset",
        "LeRobotDataset.create",
        "Knows only what the robot gives: a recording with language tips gets the column `language_tip`.",
        "cls repo_id fps features root robot_type use_videos tolerance_s image_writer_processes image_writer_threads "
        "video_backend batch_encoding_size rgb_encoder depth_encoder metadata_buffer_size streaming_encoding "
        "encoder_queue_maxsize encoder_threads video_files_size_in_mb data_files_size_in_mb",
        _create,
    ),
    Extension(
        "lerobot.common.control_utils",
        "sanity_check_dataset_robot_compatibility",
        "Refuses to go on with a dataset that has a column which the robot does not give: `language_tip` may be there.",
        "dataset robot fps features",
        _sanity_check,
    ),
    Extension(
        "lerobot.utils.keyboard_input",
        "create_key_listener",
        "Knows its own keys only: digits choose the language tip, where there are several.",
        "dispatch controls_help",
        _create_key_listener,
    ),
)
