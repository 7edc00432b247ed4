"""A dataset says where its numbers come from, and is not gone on with in another unit."""

import json
import logging
import time

import pytest
from lerobot.configs.video import DepthEncoderConfig, RGBEncoderConfig
from lerobot.datasets import LeRobotDataset, aggregate_datasets
from lerobot.utils.feature_utils import hw_to_dataset_features
from recording_rig import FPS, create, run, running_rig

import lerobot_ext
from lerobot_ext.cameras import RealSenseRGBDCameraConfig
from lerobot_ext.errors import UserError
from lerobot_ext.recording import provenance
from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.robots.so_follower_ext import SO101FollowerExt
from lerobot_ext.virtual.testing import running_lab

FORCE = "observation.force"
SIDE, DEPTH = "observation.images.side", "observation.images.side_depth"


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    lerobot_ext.register()
    with running_rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    file = tmp_path_factory.mktemp("calibration") / "calibration.json"
    matrix = [[1.0 if row == column else 0.0 for column in range(15)] for row in range(15)]
    names = [f"m{m}_{axis}" for m in range(5) for axis in "xyz"]
    file.write_text(json.dumps({"matrix": matrix, "channels": names, "unit": "mN"}))
    return file


def record(rig, root, **skin) -> LeRobotDataset:
    """One episode; into a new dataset, or one more into that which is there."""
    with rig.robot(**skin) as robot:
        if root.exists():
            dataset = LeRobotDataset.resume("lab/rig", root=root, streaming_encoding=True)
        else:
            dataset = create(root, robot)
        run(robot, dataset, 2)
        dataset.save_episode()
        dataset.finalize()
    return dataset


def info(root) -> dict:
    return json.loads((root / "meta" / "info.json").read_text())


def test_the_unit_of_force_stands_in_the_features_info(rig, tmp_path):
    root = tmp_path / "dataset"
    record(rig, root)
    feature = info(root)["features"][FORCE]["info"]
    assert feature["units"] == ["uT"] * 15
    assert feature["sensors"]["skin"]["driver"] == "anyskin"
    assert provenance.devices(root, 0)[FORCE]["sensors"]["skin"]["calibration"] is None


def test_stock_lerobot_opens_resumes_and_merges_it(rig, tmp_path):
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        record(rig, root)
        record(rig, root)
    aggregate_datasets(["lab/rig"] * 2, "lab/both", roots, tmp_path / "both")
    both = LeRobotDataset("lab/both", root=tmp_path / "both")
    assert both.num_episodes == 4 and both[0][FORCE].shape == (15,)
    assert both.meta.features[FORCE]["info"]["units"] == ["uT"] * 15


def test_recordings_of_different_devices_are_merged_and_only_what_is_common_is_kept(
    rig, tmp_path, calibration
):
    roots = [tmp_path / name for name in "abc"]
    record(rig, roots[0])
    record(rig, roots[1], max_age_ms=400, reduce="mean")
    record(rig, roots[2], calibration=str(calibration))
    aggregate_datasets(["lab/rig"] * 2, "lab/both", roots[:2], tmp_path / "both")
    feature = info(tmp_path / "both")["features"][FORCE]["info"]
    assert feature["units"] == ["uT"] * 15 and "sensors" not in feature
    with pytest.raises(ValueError, match="Same features"):
        aggregate_datasets(["lab/rig"] * 2, "lab/mixed", [roots[0], roots[2]], tmp_path / "mixed")


def test_another_unit_is_refused_before_anything_is_recorded(rig, tmp_path, calibration):
    root = tmp_path / "dataset"
    record(rig, root)
    before = (root / "meta" / "info.json").read_bytes()
    with rig.robot(calibration=str(calibration)) as robot:
        dataset = LeRobotDataset.resume("lab/rig", root=root, streaming_encoding=True)
        with pytest.raises(UserError, match=r"'skin'.* uT, .* mN.*calibration") as refused:
            run(robot, dataset, 2)
        assert not dataset.has_pending_frames()
        dataset.finalize()
    assert "\n" not in str(refused.value)
    assert (root / "meta" / "info.json").read_bytes() == before


def test_another_calibration_in_the_same_unit_is_warned_of_and_written_down(
    rig, tmp_path, calibration, caplog
):
    root = tmp_path / "dataset"
    record(rig, root, calibration=str(calibration))
    other = tmp_path / "other.json"
    other.write_text(calibration.read_text().replace("1.0", "2.0"))
    with caplog.at_level(logging.WARNING):
        record(rig, root, calibration=str(other))
    said = [line.getMessage() for line in caplog.records if "is not what it was" in line.getMessage()]
    assert len(said) == 1 and "calibration" in said[0] and "episode 1 on" in said[0]
    matrices = [
        provenance.devices(root, episode)[FORCE]["sensors"]["skin"]["calibration_matrix"][0][0]
        for episode in (0, 1)
    ]
    assert matrices == [1.0, 2.0]


def test_the_same_devices_are_written_down_once(rig, tmp_path, caplog):
    root = tmp_path / "dataset"
    record(rig, root)
    with caplog.at_level(logging.WARNING):
        record(rig, root)
    assert len((root / provenance.DEVICES).read_text().splitlines()) == 1
    assert "is not what it was" not in caplog.text


def test_a_dataset_from_before_gains_what_is_known_now(rig, tmp_path):
    root = tmp_path / "dataset"
    record(rig, root)
    (root / provenance.DEVICES).unlink()
    older = info(root)
    older["features"][FORCE].pop("info")
    (root / "meta" / "info.json").write_text(json.dumps(older))
    record(rig, root)
    assert info(root)["features"][FORCE]["info"]["units"][0] == "uT"
    assert provenance.devices(root, 0) == {}, "of the older episode nothing is claimed"
    assert provenance.devices(root, 1)[FORCE]


# --- cameras, on the lab ---


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lerobot_ext.register()
    with running_lab(tmp_path_factory.mktemp("l"), no_operator=True, width=160, height=120) as lab:
        yield lab


def record_camera(lab, root, **camera) -> None:
    """One short episode with the RealSense."""
    side = RealSenseRGBDCameraConfig(
        serial_number_or_name=f"virtual:{lab.directory / 'side'}",
        **{"warmup_s": 0, "width": 160, "height": 120, "fps": FPS} | camera,
    )
    robot = SO101FollowerExt(
        SO101FollowerExtConfig(
            port=str(lab.follower), id="follower", calibration_dir=lab.calibration, cameras={"side": side}
        )
    )
    robot.connect()
    try:
        encoders = {
            "streaming_encoding": True,
            "rgb_encoder": RGBEncoderConfig(vcodec="h264", preset="ultrafast"),
            "depth_encoder": DepthEncoderConfig(preset="ultrafast"),
        }
        if root.exists():
            dataset = LeRobotDataset.resume("lab/rig", root=root, **encoders)
        else:
            features = hw_to_dataset_features(robot.observation_features, "observation")
            features |= hw_to_dataset_features(robot.action_features, "action")
            dataset = LeRobotDataset.create(
                "lab/rig", FPS, root=root, robot_type=robot.name, features=features, **encoders
            )
        try:
            run(robot, dataset, 3)
            dataset.save_episode()
        finally:
            dataset.finalize()
    finally:
        robot.disconnect()


@pytest.fixture(scope="module")
def with_camera(lab, tmp_path_factory):
    root = tmp_path_factory.mktemp("camera") / "dataset"
    record_camera(lab, root)
    return root


def test_a_camera_says_who_it_is_and_lerobot_keeps_its_own_words(lab, with_camera):
    features = info(with_camera)["features"]
    truth = lab.client.status().camera
    camera = features[DEPTH]["info"]["camera"]
    assert camera["serial"] == truth.serial == features[SIDE]["info"]["camera"]["serial"]
    assert camera["depth_unit_m"] == pytest.approx(truth.depth_units_m)
    assert camera["intrinsics"]
    for key in ("is_depth_map", "depth_unit", "video.depth_max", "video.codec"):
        assert key in features[DEPTH]["info"]


def test_another_camera_is_warned_of(lab, with_camera, tmp_path, caplog):
    path = with_camera / provenance.DEVICES
    serial = lab.client.status().camera.serial
    path.write_text(path.read_text().replace(serial, "999888777666"))
    with caplog.at_level(logging.WARNING):
        record_camera(lab, with_camera)
    said = [line.getMessage() for line in caplog.records if "is not what it was" in line.getMessage()]
    assert [DEPTH in said[0] or DEPTH in said[1], len(said)] == [True, 2]
    assert f'camera.serial "999888777666" -> "{serial}"' in said[0]
    serials = [provenance.devices(with_camera, episode)[SIDE]["camera"]["serial"] for episode in (0, 1)]
    assert serials == ["999888777666", serial]


def test_metres_are_not_mixed_with_millimetres(lab, with_camera):
    time.sleep(0.1)
    with pytest.raises(UserError, match=r"recorded in mm, .* m\b.*depth_dtype"):
        record_camera(lab, with_camera, depth_dtype="float32")
