"""The depth encoder gets the cameras' range, and says honestly what its steps are."""

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.configs.video import DepthEncoderConfig
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.depth_utils import dequantize_depth, quantize_depth

import lerobot_ext
from lerobot_ext.recording import depth_range, episodes
from lerobot_ext.recording.depth_range import describe, range_of, step_m

FPS = 30
KEY = "observation.images.side_depth"
FEATURES = {
    KEY: {
        "dtype": "video",
        "shape": (48, 64, 1),
        "names": ["height", "width", "channels"],
        "info": {"is_depth_map": True},
    },
    "action": {"dtype": "float32", "shape": (1,), "names": ["a"]},
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    lerobot_ext.register()


def camera(low=None, high=None):
    return SimpleNamespace(use_depth=True, config=SimpleNamespace(depth_min_m=low, depth_max_m=high))


def robot(*cameras):
    return SimpleNamespace(cameras=dict(enumerate(cameras)))


def open_dataset(root, **encoder) -> LeRobotDataset:
    given = {"depth_encoder": DepthEncoderConfig(preset="ultrafast", **encoder), "streaming_encoding": True}
    if root.exists():
        return LeRobotDataset.resume("lab/depth", root=root, **given)
    return LeRobotDataset.create("lab/depth", FPS, root=root, features=FEATURES, **given)


def record(dataset, arm, depth_mm=500) -> None:
    with episodes.episode(arm, dataset):
        for _ in range(3):
            depth = np.broadcast_to(np.asarray(depth_mm, np.uint16), (48, 64, 1)).copy()
            dataset.add_frame({KEY: depth, "action": np.zeros(1, np.float32), "task": "look"})
    dataset.save_episode()


def recorded(root) -> dict:
    return json.loads((root / "meta" / "info.json").read_text())["features"][KEY]["info"]


# --- arithmetic ---


@pytest.mark.parametrize("use_log", [True, False])
@pytest.mark.parametrize("depth_m", [0.2, 0.9])
def test_the_step_is_that_of_lerobots_quantiser(use_log, depth_m):
    encoder = DepthEncoderConfig(depth_min=0.1, depth_max=1.1, use_log=use_log)
    params = {name: getattr(encoder, name) for name in ("depth_min", "depth_max", "shift", "use_log")}
    code = quantize_depth(np.full((1, 1), depth_m, np.float32), **params, video_backend=None)
    both = np.concatenate([code, code + 1], axis=1)
    near, far = dequantize_depth(both, **params, output_unit="m", output_tensor=False).ravel()
    assert step_m(encoder, depth_m) == pytest.approx(far - near, rel=2e-3)


def test_the_steps_in_words():
    linear = DepthEncoderConfig(depth_min=0.1, depth_max=1.1, use_log=False)
    assert describe(linear) == "0.1 to 1.1 m in steps of 0.24 mm (linear)"
    assert describe(DepthEncoderConfig()) == "0.01 to 10 m in steps of 1.2 mm near to 4.4 mm far (log)"


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        ([camera(0.2, 1.0), camera(0.1, 0.8)], (0.1, 1.0)),
        ([camera(0.2, 1.0), camera(None, None)], (None, None)),
        ([camera(0.0, 1.0)], (None, 1.0)),
        ([SimpleNamespace(use_depth=True, config=SimpleNamespace())], (None, None)),
        ([], (None, None)),
    ],
)
def test_the_range_of_all_cameras_together(cameras, expected):
    assert range_of(robot(*cameras)) == expected


# --- recordings ---


def test_the_cameras_range_is_taken_where_nobody_chose_one(tmp_path, caplog):
    root = tmp_path / "dataset"
    dataset = open_dataset(root)
    with caplog.at_level(logging.INFO):
        record(dataset, robot(camera(0.1, 1.1)), depth_mm=700)
    dataset.finalize()
    info = recorded(root)
    assert (info["video.depth_min"], info["video.depth_max"]) == pytest.approx((0.099, 1.1))
    assert "in steps of" in caplog.text
    read = LeRobotDataset("lab/depth", root=root, video_backend="pyav")[0][KEY]
    assert np.asarray(read) == pytest.approx(700, abs=1)


def test_a_pixel_without_depth_is_told_from_the_nearest_one(tmp_path):
    root = tmp_path / "dataset"
    dataset = open_dataset(root)
    halves = np.repeat([[[0], [100]]], 32, axis=1)
    record(dataset, robot(camera(0.1, 1.1)), depth_mm=halves)
    dataset.finalize()
    read = LeRobotDataset("lab/depth", root=root, video_backend="pyav")[0][KEY][0]
    none, nearest = float(read[:, :32].max()), float(read[:, 32:].min())
    assert none == pytest.approx(1000 * recorded(root)["video.depth_min"], abs=0.5) and none < nearest


def test_a_chosen_range_stays_and_a_narrower_one_is_warned_of(tmp_path, caplog):
    root = tmp_path / "dataset"
    dataset = open_dataset(root, depth_min=0.3, depth_max=0.6, use_log=False)
    with caplog.at_level(logging.WARNING):
        record(dataset, robot(camera(0.1, 1.1)))
    dataset.finalize()
    assert recorded(root)["video.depth_max"] == 0.6
    assert "0.1 to 1.1 m" in caplog.text and "0.3 to 0.6 m" in caplog.text


def test_depth_that_was_clipped_is_warned_of_once_with_numbers(tmp_path, caplog):
    dataset = open_dataset(tmp_path / "dataset", depth_min=0.3, depth_max=0.6)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            record(dataset, robot(camera()), depth_mm=1500)
    dataset.finalize()
    said = [line.getMessage() for line in caplog.records if "was up to" in line.getMessage()]
    assert len(said) == 1 and "1.5 m in episode 0" in said[0] and "0.6 m" in said[0]


def test_a_resumed_dataset_keeps_what_it_was_begun_with(tmp_path, caplog):
    root = tmp_path / "dataset"
    dataset = open_dataset(root)
    record(dataset, robot(camera(0.1, 1.1)))
    dataset.finalize()
    dataset = open_dataset(root, depth_min=0.2, depth_max=3.0, use_log=False)
    with caplog.at_level(logging.WARNING):
        record(dataset, robot(camera(0.1, 2.0)))
    dataset.finalize()
    assert "was begun with 0.099 to 1.1 m" in caplog.text
    assert dataset.writer.depth_encoder.depth_max == pytest.approx(1.1)
    assert dataset.writer.depth_encoder.use_log is True
    read = LeRobotDataset("lab/depth", root=root, video_backend="pyav")
    assert [float(read[index][KEY].max()) for index in (0, 3)] == pytest.approx([500, 500], abs=1)


def test_datasets_without_depth_are_left_alone(tmp_path):
    features = {key: value for key, value in FEATURES.items() if key != KEY}
    dataset = LeRobotDataset.create("lab/depth", FPS, root=tmp_path / "dataset", features=features)
    with episodes.episode(robot(camera(0.1, math.inf)), dataset):
        depth_range.depth_range.start(robot(camera(0.1, 1.0)))
    dataset.finalize()
