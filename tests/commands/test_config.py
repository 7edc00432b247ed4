"""Misspelt keys are named with their nearest neighbour; options override the YAML."""

import sys

import pytest
from lerobot.rollout.configs import RolloutConfig
from lerobot.scripts.lerobot_record import RecordConfig

import lerobot_ext
from lerobot_ext.commands import config as config_files
from lerobot_ext.errors import UserError

lerobot_ext.register()


@pytest.mark.parametrize(
    ("config_class", "data", "expected"),
    [
        (RecordConfig, {"datset": {}}, "'datset'; did you mean 'dataset'?"),
        (RecordConfig, {"dataset": {"fpss": 3}}, "'dataset.fpss'; did you mean 'dataset.fps'?"),
        (RecordConfig, {"robot": {"type": "so100_folower"}}, "did you mean 'so100_follower'?"),
        (
            RecordConfig,
            {"robot": {"type": "so100_follower_ext", "prot": "x"}},
            "'robot.prot'; did you mean 'robot.port'?",
        ),
        (
            RecordConfig,
            {
                "robot": {
                    "type": "so100_follower_ext",
                    "cameras": {"side": {"type": "realsense_rgbd", "widht": 3}},
                }
            },
            "did you mean 'robot.cameras.side.width'?",
        ),
        (
            RecordConfig,
            {"robot": {"type": "so100_follower_ext", "force_sensors": {"s": {"type": "anyskn"}}}},
            "did you mean 'anyskin'?",
        ),
        (RolloutConfig, {"policy": {"path": "nobody/knows", "zzz": 3}}, "there is no key 'policy.zzz'"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_one(config_class, data, expected):
    with pytest.raises(UserError, match="^collect.yaml: ") as error:
        config_files.check_keys(config_class, data, "collect.yaml")
    assert expected in str(error.value)


def test_right_keys_pass():
    data = config_files.load_yaml("configs/collect.yaml")
    config_files.check_keys(RecordConfig, data)


def test_options_are_laid_over_the_file_without_changing_it():
    data = {"dataset": {"fps": 30, "root": "a"}, "resume": False}
    merged = config_files.merge_options(data, ["--dataset.root=b", "--resume", "--robot.port", "/dev/x"])
    assert merged == {
        "dataset": {"fps": 30, "root": "b"},
        "resume": True,
        "robot": {"port": "/dev/x"},
    }
    assert data == {"dataset": {"fps": 30, "root": "a"}, "resume": False}


def test_a_word_that_is_no_option_is_refused():
    with pytest.raises(UserError, match="'configs/collect.yaml' is not an option"):
        config_files.merge_options({}, ["configs/collect.yaml"])


@pytest.mark.parametrize(
    ("text", "expected"), [("[1, 2]", "holds list"), ("a: [", "not valid YAML"), (None, "is not there")]
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, expected):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected):
        config_files.load_yaml(path)


def test_a_command_leaves_nothing_to_a_config_that_is_made_after_it(act):
    """LeRobot's parser keeps the `policy.path` of a YAML, which every later config of the process would load."""
    from lerobot.robots.so_follower import SO100FollowerConfig
    from lerobot.rollout.configs import BaseStrategyConfig

    from lerobot_ext.commands import evaluate
    from lerobot_ext.policies.remote.configuration_remote import RemoteConfig

    before = list(sys.argv)
    robot = {"type": "so100_follower", "port": "/dev/null"}
    strategy = {"type": "base"}
    parsed = evaluate.parse(
        {"policy": {"path": str(act), "device": "cpu"}, "robot": robot, "strategy": strategy, "task": "press"}
    )
    assert parsed.policy.type == "act"
    assert sys.argv == before
    made = evaluate.EvaluateConfig(
        robot=SO100FollowerConfig(port="/dev/null"),
        policy=RemoteConfig(address="ipc:///nowhere"),
        strategy=BaseStrategyConfig(),
    )
    assert made.policy.type == "remote"


def test_any_key_of_the_yaml_is_an_option_of_record():
    """LeRobot's parser knows no options below names that the user chooses, as those of cameras are."""
    from lerobot_ext.commands import record

    data, source = record.merged_config(
        ["--config_path=configs/collect.yaml", "--robot.cameras.side.on_error=skip_frame"]
    )
    config_files.check_keys(RecordConfig, data, source)
    assert record.parse(RecordConfig, data).robot.cameras["side"].on_error == "skip_frame"
