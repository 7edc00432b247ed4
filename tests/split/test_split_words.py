"""From `--split` and the config to the inference process's words, and what the operator is asked, on a real terminal."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lerobot_ext.commands import split
from lerobot_ext.commands.split import Options, Split, confirm, log_path, progress, take_options
from lerobot_ext.errors import UserError
from lerobot_ext.rollout import start
from lerobot_ext.rollout.start import PhaseError, SplitConfig

YES = Options(split=True, yes=True)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], Options()),
        (["--split"], Options(split=True)),
        (["--split=TRUE", "--yes=False"], Options(split=True)),
        (["--yes", "--split"], YES),
        (["--split", "--split=false"], Options()),
        (["--split=false", "--yes=false"], Options()),
    ],
)
def test_the_options_that_are_no_keys(words, options):
    others = ["--config_path=a", "--split.load_s=3", "--yes_man=1", "x"]
    assert take_options([*others[:2], *words, *others[2:]]) == (others, options)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--split", "--yes=1"], "--yes is '1'"), (["--split="], "--split is ''"), (["--yes"], "add --split")],
)
def test_options_that_cannot_be_meant(words, said):
    with pytest.raises(UserError, match=said):
        take_options(words)


@pytest.fixture
def made():
    """`made(policy, options)`: a `Split`, closed with the test."""
    closing = []

    def make(options=YES, **policy):
        closing.append(Split({"policy": {"path": "a/checkpoint"} | policy}, options))
        return closing[-1]

    yield make
    for each in closing:
        folder = Path(each._folder.path)
        each.close()
        assert not folder.exists()


@pytest.mark.parametrize("policy", [{"type": "remote"}, {"path": None}, {"path": ""}])
def test_a_policy_that_is_not_here_is_refused(made, policy):
    with pytest.raises(UserError, match="does not have; add `policy: {path: CHECKPOINT}`"):
        made(**policy)


def test_somebody_must_be_able_to_press_enter(made, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UserError, match="add --yes"):
        made(Options(split=True))
    assert made(YES)


def test_the_robots_process_is_told_the_private_address_and_no_keys(made):
    each = made()
    data = {"server": {"keys": "k", "timeout_s": 3}, "fps": 30}
    assert each.remote(data) == {"server": {"timeout_s": 3, "address": each._folder.address}, "fps": 30}
    assert data["server"]["keys"] == "k", "what was given is not changed"
    assert each.remote({})["server"] == {"address": each._folder.address}


BEGIN = ["--policy.path=a/checkpoint", "--max_sessions=2"]


@pytest.mark.parametrize(
    ("policy", "limits", "words"),
    [
        ({}, {}, []),
        ({"device": "cpu"}, {}, ["--device=cpu"]),
        ({"device": "cpu"}, {"device": "cuda:1"}, ["--device=cuda:1"]),
        ({}, {"dtype": "bfloat16", "compile": True}, ["--dtype=bfloat16", "--compile"]),
    ],
)
def test_the_inference_process_s_words(made, policy, limits, words):
    assert made(**policy)._words(SplitConfig(**limits)) == BEGIN + words


def test_where_its_log_is():
    assert log_path(SplitConfig(log="there"), Path("data/set")) == Path("there")
    assert log_path(SplitConfig(), Path("data/set")) == Path("data/set.inference.log")
    assert log_path(SplitConfig(), None).match(f"outputs/inference_*_{os.getpid()}.log")


class Process:
    """Notes what it is made of."""

    pid = 7

    def __init__(self, words, folder, log, **options):
        self.words, self.log, self.options = words, log, options
        self.death, self.did = None, []

    def start(self):
        self.did.append("start")

    def stop(self):
        self.did.append("stop")


@pytest.fixture
def process(monkeypatch):
    monkeypatch.setattr(split, "InferenceProcess", Process)


def run(each, inside=lambda process: None, **limits):
    with each.running(SimpleNamespace(split=SplitConfig(**limits)), Path("data/set")) as process:
        assert start._plans[-1].process is process
        inside(process)
    assert not start._plans
    return process


def test_the_process_is_there_while_the_rollout_runs(made, process, capsys):
    found = run(made(), restarts=3, stop_s=4.0)
    assert found.did == ["start", "stop"]
    assert found.words[-2:] == BEGIN and found.words[-3] == "serve"
    assert found.options == {"environment": {}, "restarts": 3, "stop_s": 4.0}
    assert "inference process 7 starts; its log: data/set.inference.log" in capsys.readouterr().out
    assert run(made(), threads=2).options["environment"] == {"OMP_NUM_THREADS": "2"}


def test_it_ends_with_an_error_too_and_its_death_is_one(made, process):
    seen = []

    def fail(process):
        seen.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made(), fail)

    def die(process):
        seen.append(process)
        process.death = "it was ended by SIGKILL"

    with pytest.raises(PhaseError, match=r"it was ended by SIGKILL\. The arm was left where it was"):
        run(made(), die)
    assert [each.did for each in seen] == [["start", "stop"]] * 2 and not start._plans


def test_only_who_may_be_asked_is_asked(made, process, monkeypatch):
    plans = []
    run(made(), lambda process: plans.append(start._plans[-1]))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    run(made(Options(split=True)), lambda process: plans.append(start._plans[-1]))
    assert [plan.confirm for plan in plans] == [None, confirm]


# --- the terminal ---


@pytest.fixture
def terminal(monkeypatch):
    """The other end of the standard input."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(split, "_LOOK_S", 0.01)
        yield ours
    os.close(ours)


def test_enter_is_waited_for_and_what_was_typed_before_does_not_count(terminal):
    os.write(terminal, b"\n")
    looks = []

    def still_wanted():
        looks.append(True)
        if len(looks) == 3:
            os.write(terminal, b"\n")

    confirm(still_wanted)
    assert len(looks) >= 3


def test_the_question_ends_with_what_it_is_for(terminal):
    def no_more():
        raise PhaseError("it died")

    with pytest.raises(PhaseError, match="it died"):
        confirm(no_more)


def test_a_terminal_that_is_closed_says_nothing(terminal):
    with pytest.raises(UserError, match="the arm did not begin"):
        confirm(lambda: os.write(terminal, b"\x04"))  # Ctrl-D


def test_without_a_terminal_how_things_stand_goes_to_the_log(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress() as show:
        assert show is None
