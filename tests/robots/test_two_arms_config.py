"""Configurations of two arms: what is refused, and how they are written."""

import draccus
import pytest
from lerobot.robots import RobotConfig, make_robot_from_config

import lerobot_ext
from lerobot_ext.robots import BiSO100FollowerExtConfig
from lerobot_ext.robots.config_so_follower_ext import SOFollowerExtArmConfig
from lerobot_ext.sensors import AnySkinConfig

lerobot_ext.register()


def arm(port="/dev/a", **more):
    return SOFollowerExtArmConfig(port=port, **more)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"right_arm_config": arm()}, "both arms have port /dev/a"),
        ({"on_error": {"left_skin": "stop"}}, "on_error names 'left_skin', but there is no such"),
        ({"skip_limit_s": -1}, "skip_limit_s is -1"),
        (
            {
                "left_arm_config": arm(force_sensors={"skin": AnySkinConfig(port="/dev/s")}),
                "force_sensors": {"left_skin": AnySkinConfig(port="/dev/t")},
            },
            "force_sensors has 'left_skin' twice",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        BiSO100FollowerExtConfig(
            **({"left_arm_config": arm(), "right_arm_config": arm("/dev/b"), "id": "f"} | wrong)
        )


def test_it_is_written_as_lerobot_writes_it(tmp_path):
    text = """
        type: bi_so100_follower_ext
        id: f
        left_arm_config: {port: /dev/a, reopen_s: 1, on_error: {skin: skip_frame},
                          force_sensors: {skin: {type: anyskin, port: /dev/s}}}
        right_arm_config: {port: /dev/b, max_relative_target: 5}
    """
    (tmp_path / "robot.yaml").write_text(text)
    config = draccus.parse(RobotConfig, tmp_path / "robot.yaml", args=[])
    assert config.all_of("on_error") == {"left_skin": "skip_frame"}
    robot = make_robot_from_config(config)
    assert robot.name == "bi_so100_follower_ext"
    assert robot.left_arm.calibration_fpath.parts[-2:] == ("so_follower", "f_left.json")
    assert robot.left_arm.config.reopen_s == 1 and robot.right_arm.config.max_relative_target == 5
