"""Language tips on the command line: recorded, told to a policy, listed and changed."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import standin
import yaml
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_ext.commands import tip_option
from lerobot_ext.commands.main import main
from lerobot_ext.commands.tip import numbers
from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording import tips
from lerobot_ext.recording.tips import TipPlan

SHORT = {"dataset.episode_time_s": 0.7, "dataset.reset_time_s": 0.1}


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """LeRobot's init_logging takes pytest's handlers away, its parser reads sys.argv."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def with_tips(words: str, value) -> str:
    """The same YAML with `dataset.language_tip`."""
    path = Path(words.partition("=")[2])
    data = yaml.safe_load(path.read_text())
    data["dataset"][TIP] = value
    path.write_text(yaml.safe_dump(data))
    return words


# --- on the lab ---


def test_record_go_on_change(config, lab, tmp_path, capsys):
    root = tmp_path / "dataset"
    words = with_tips(
        config("collect.yaml", **SHORT, **{"dataset.num_episodes": 2}), {0: "gently", 1: "quickly"}
    )
    assert main(["record", words]) == 0
    shown = capsys.readouterr().out
    assert "language tips   'gently' 1, 'quickly' 1" in " ".join(shown.split("\n"))
    assert main(["record", words, "--resume=true", "--dataset.num_episodes=1", f"--dataset.{TIP}=a: b"]) == 0
    assert tips.read(root) == {0: "gently", 1: "quickly", 2: "a: b"}
    dataset = LeRobotDataset("lab/press", root=root, video_backend="pyav")
    assert {dataset[i][TIP] for i in range(len(dataset))} == {"gently", "quickly", "a: b"}

    capsys.readouterr()
    assert main(["tip", str(root), "--episodes=1-2", "--set", "until it  clicks"]) == 0
    expected = ["episode 0: gently", "episodes 1 to 2: until it clicks"]
    assert capsys.readouterr().out.splitlines() == expected
    assert main(["tip", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    dataset = LeRobotDataset("lab/press", root=root, video_backend="pyav")
    assert dataset[len(dataset) - 1][TIP] == "until it clicks"


def test_evaluate_tells_the_policy_and_records_the_tip(config, lab, tmp_path, monkeypatch):
    monkeypatch.setenv("ENV", "local")
    runner = standin.StandIn(240, 424, takes_tip=True)
    server, address = standin.start(runner)
    changes = {"server.address": address, "visualize": False, **SHORT}
    try:
        assert main(["evaluate", config("evaluate_record.yaml", **changes), f"--dataset.{TIP}=slowly"]) == 0
    finally:
        server.stop()
    dataset = LeRobotDataset("lab/rollout_press", root=tmp_path / "dataset", video_backend="pyav")
    task = dataset[0]["task"]
    assert dataset[0][TIP] == "slowly" and "Tip:" not in task
    assert {request.task for request in runner.seen} == {f"{task} Tip: slowly"}


# --- without devices ---


def test_a_dataset_without_the_column(config, tmp_path, capsys):
    import lerobot_ext

    lerobot_ext.register()
    root = tmp_path / "dataset"
    features = {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]}}
    dataset = LeRobotDataset.create("test/plain", 10, features, root=root, robot_type="none")
    for _ in range(3):
        dataset.add_frame({"observation.state": np.zeros(2, np.float32), "task": "press"})
    dataset.save_episode()
    dataset.finalize()
    assert main(["tip", str(root)]) == 0
    assert "1 episodes without language tips" in capsys.readouterr().out
    words = config("collect.yaml")
    assert main(["record", words, "--resume=true", f"--dataset.{TIP}=gently"]) == 2
    said = capsys.readouterr().err
    assert f"lerobot-ext tip {root} --all --set=''" in said
    assert main(["tip", str(root), "--all", "--set="]) == 0
    assert capsys.readouterr().out == "episode 0: no tip\n"


def test_the_option_is_taken_out_before_lerobot_reads():
    words, given = tip_option.take_option([f"--dataset.{TIP}", "a b", "--resume=true", f"--dataset.{TIP}=c"])
    assert (words, given) == (["--resume=true"], "c")
    data = {"dataset": {"fps": 30, TIP: ["a", "b"]}}
    assert tip_option.take(data, None, "x.yaml") == TipPlan(("a", "b")) and data == {"dataset": {"fps": 30}}
    assert tip_option.take(data, None, "x.yaml") is None
    assert tip_option.take(data, "[c, d]", "x.yaml") == TipPlan(("c", "d"))
    assert tip_option.take(data, "press: slowly", "x.yaml") == TipPlan(("press: slowly",))
    assert tip_option.take(data, "{0: c}", "x.yaml") == TipPlan(by_episode={0: "c"})
    assert tip_option.take(data, "", "x.yaml") == TipPlan(("",))
    with pytest.raises(
        UserError, match=r"x.yaml: .*'dataset.langage_tip'; did you mean 'dataset.language_tip'"
    ):
        tip_option.take({"dataset": {"langage_tip": "a"}}, None, "x.yaml")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["record", "--dataset.language_tip=[a, 3]"], "dataset.language_tip is 3; expected a text"),
        (["evaluate", "--dataset.language_tip=[a, b]"], "has several texts; a policy is told one"),
        (["tip", "/nowhere"], "holds no LeRobot dataset"),
        (["tip", "/nowhere", "--set=a"], "a change needs --set=TEXT and either --all or --episodes=LIST"),
        (["tip", "/nowhere", "--all"], "a change needs --set=TEXT"),
    ],
)
def test_mistakes_are_sentences(words, sentence, capsys):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_lists_of_episodes():
    assert numbers("0-2, 7") == [0, 1, 2, 7]
    for wrong in ("", "a", "3-", "-3", "3-1"):
        with pytest.raises(UserError, match="is no episode"):
            numbers(wrong)
