"""What `evaluate` takes from a recording that it plays, unless the config says otherwise."""

from types import SimpleNamespace

import pytest

from lerobot_ext.commands.open_loop import is_replay, with_defaults
from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.robots import recorded


@pytest.fixture(autouse=True)
def meta(monkeypatch):
    """Three episodes at 30 Hz, the last with another task."""
    meta = SimpleNamespace(
        fps=30, features={}, episodes=[{"tasks": ["press"]}, {"tasks": ["press"]}, {"tasks": ["pull"]}]
    )
    monkeypatch.setattr(recorded, "metadata", lambda root, repo_id: meta)
    monkeypatch.setattr(recorded, "check_episodes", lambda *args: None)
    return meta


def defaults(plan=None, robot=None, **data):
    return with_defaults({"robot": {"type": "replay", "root": "there"} | (robot or {})} | data, plan)


def test_rate_task_and_strategy_are_the_recording_s():
    data, plan = defaults(robot={"episode": [0, 1], "stride": 2, "speed": 3.0})
    assert (data["fps"], data["task"], data["strategy"]) == (45, "press", {"type": "base"}) and plan is None
    assert data["return_to_initial_position"] is False
    assert defaults(robot={"speed": 0})[0]["fps"] == 30, "as fast as it is asked"


def test_what_the_config_says_stays():
    data, _ = defaults(fps=10, task="mine", strategy={"type": "dagger"}, return_to_initial_position=True)
    assert (data["fps"], data["task"], data["strategy"]["type"]) == (10, "mine", "dagger")
    assert data["return_to_initial_position"] is True
    data, _ = defaults(dataset={"fps": 5, "single_task": "mine"})
    assert data["dataset"] == {"fps": 5, "single_task": "mine"} and data["fps"] == 5


def test_what_is_recorded_has_the_rate_and_task_of_what_is_played(meta):
    meta.fps = 29.97
    data, _ = defaults(dataset={"repo_id": "a/b"})
    assert data["dataset"] == {"repo_id": "a/b", "fps": 30, "single_task": "press"} and data["fps"] == 30
    assert "strategy" not in data and "task" not in data
    assert "single_task" not in defaults(dataset={"repo_id": "a/b"}, task="mine")[0]["dataset"]


def test_several_tasks_are_none(meta):
    with pytest.raises(UserError, match=r"different texts \('press', 'pull'\).*--task=TEXT"):
        defaults(robot={"episode": [0, 2]})
    with pytest.raises(UserError, match=r"--dataset.single_task=TEXT"):
        defaults(robot={"episode": [0, 2]}, dataset={"repo_id": "a/b"})
    assert defaults(robot={"episode": [0, 2]}, task="mine")[0]["task"] == "mine"


def test_the_tip_is_the_recording_s_unless_one_is_given(meta, monkeypatch):
    meta.features = {TIP: {}}
    tips = {0: "soft", 1: "soft", 2: "hard"}
    monkeypatch.setattr(
        recorded, "Recording", lambda *args: SimpleNamespace(told=lambda episode: ("press", tips[episode]))
    )
    _, plan = defaults(robot={"episode": [0, 1]})
    assert plan is not None
    with pytest.raises(UserError, match=r"\('soft', 'hard'\).*--dataset.language_tip=TEXT"):
        defaults(robot={"episode": [0, 2]})
    given = object()
    assert defaults(plan=given, robot={"episode": [0, 1]})[1] is given
    tips.update({0: ""})
    assert defaults(robot={"episode": 0})[1] is None


def test_one_after_the_other_needs_no_clock_and_records_nothing():
    data, _ = defaults(open_loop={"every": 4}, robot={"speed": 1.0})
    assert data["robot"]["speed"] == 0 and data["fps"] == 30
    for wrong, said in (
        ({"open_loop": {"every": True}}, "every is True"),
        ({"open_loop": {"every": 1.5}}, "every is 1.5"),
        ({"open_loop": {"every": 2}, "dataset": {"repo_id": "a/b"}}, "leave dataset out"),
        ({"open_loop": {"every": 2}, "inference": {"type": "sync"}}, "inference.type is sync"),
        ({"open_loop": {"every": 2}, "robot": {"loop": True}}, "it would never end"),
    ):
        with pytest.raises(UserError, match=said):
            defaults(**wrong)
    assert defaults(open_loop={"every": None})[0]["robot"].get("speed") != 0


def test_a_comparison_needs_a_recording():
    assert is_replay({"robot": {"type": "replay"}, "open_loop": {"every": 1}})
    assert not is_replay({"robot": {"type": "so101_follower"}}) and not is_replay({})
    with pytest.raises(UserError, match=r"robot.type is None; set robot.type: replay"):
        is_replay({"open_loop": {"every": 1}})
