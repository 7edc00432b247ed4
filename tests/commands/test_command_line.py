"""What LeRobot's parsers are shown as the command line is taken away again, however the command ends."""

import sys

import pytest
from lerobot.configs import parser

from lerobot_ext.commands.config import command_line


@pytest.fixture(autouse=True)
def left_by_somebody(monkeypatch):
    monkeypatch.setattr(parser, "_config_path_args", {"policy": "an/old/checkpoint"})
    monkeypatch.setattr(parser, "_config_yaml_overrides", {"policy": ["--old=1"]})


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_and_nothing_was_there(error):
    before = sys.argv
    with pytest.raises(error or ZeroDivisionError), command_line("record", ["--a=1", "--b"]):
        assert sys.argv == ["lerobot-ext record", "--a=1", "--b"]
        assert not parser._config_path_args and not parser._config_yaml_overrides
        parser._config_path_args["policy"] = "a/checkpoint"
        parser._config_yaml_overrides["policy"] = ["--device=cpu"]
        raise error or ZeroDivisionError
    assert sys.argv is before
    assert not parser._config_path_args and not parser._config_yaml_overrides
