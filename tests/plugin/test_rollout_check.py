"""LeRobot's comparison of the policy's images with the robot's cameras stays right beside a force sensor."""

from types import SimpleNamespace

import pytest
from lerobot.cameras.zmq import ZMQCameraConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.rollout import context
from lerobot.rollout.inference import SyncInferenceConfig

from lerobot_ext.compat import loops
from lerobot_ext.robots import SO101FollowerExtConfig
from lerobot_ext.sensors import AnySkinConfig


def config(tmp_path, cameras, expected, sensors=True, rename_map=None):
    robot = SO101FollowerExtConfig(
        port="/dev/null",
        id="follower",
        calibration_dir=tmp_path,
        cameras={
            name: ZMQCameraConfig(server_address="127.0.0.1", port=1, width=8, height=8, fps=30)
            for name in cameras
        },
        force_sensors={"skin": AnySkinConfig(port="/dev/null")} if sensors else {},
    )
    images = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 8, 8)) for name in expected}
    return SimpleNamespace(
        robot=robot,
        policy=SimpleNamespace(input_features=images),
        inference=SyncInferenceConfig(),
        rename_map=rename_map or {},
    )


def as_lerobot_sees_it(cfg):
    """What LeRobot's function does with the names that we touch: makes the robot, then looks at the map."""
    robot = context.make_robot_from_config(cfg.robot)
    return robot, bool(cfg.rename_map)


build = loops._build_rollout_context(as_lerobot_sees_it)


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [(["side", "wrist"], ["side"]), (["side"], ["side", "wrist"]), (["side"], [])],
)
def test_one_is_a_part_of_the_other(tmp_path, cameras, expected):
    cfg = config(tmp_path, cameras, expected)
    robot, check_is_off = build(cfg)
    assert "force" in robot.observation_features and check_is_off
    assert cfg.rename_map == {}
    assert context.make_robot_from_config.__name__ == "make_robot_from_config"


def test_a_mismatch_names_the_cameras_and_not_the_force(tmp_path):
    with pytest.raises(ValueError, match="name the robot's cameras") as caught:
        build(config(tmp_path, ["side"], ["top"]))
    assert "observation.images.side" in str(caught.value) and "force" not in str(caught.value)


def test_a_map_of_the_users_and_a_robot_without_sensors_are_lerobots_business(tmp_path):
    theirs = {"observation.images.side": "observation.images.top"}
    cfg = config(tmp_path, ["side"], ["top"], rename_map=theirs)
    assert build(cfg)[1] and cfg.rename_map == theirs
    _, check_is_off = build(config(tmp_path, ["side"], ["top"], sensors=False))
    assert not check_is_off
