"""What the robot's process makes of what its inference process says and does, with a shell in the place of a server."""

import logging
import os
import time

import pytest
from test_companion import wait_for

from lerobot_ext.rollout.companion import LAST_LINES, InferenceProcess
from simplify_work.wire.private import PrivateFolder

STAYS = "exec sleep 600"


@pytest.fixture
def run(tmp_path):
    """`run("echo ready; exec sleep 600")`: a process that is this script; ended with the test."""
    folder, running = PrivateFolder(), []

    def run(script, **options):
        process = InferenceProcess(["/bin/sh", "-c", script], folder, tmp_path / "logs" / "log", **options)
        running.append(process)
        process.start()
        return process

    yield run
    for process in running:
        process.stop()
    folder.close()


def shown(lines, level):
    return [each.getMessage() for each in lines.records if each.levelno == level]


STAMP = "2026-01-02 03:04:05,678"


def test_warnings_and_errors_are_shown_with_the_lines_that_belong_to_them(run, lines):
    said = [
        "loading the policy …",
        f"{STAMP} INFO nobody wants this",
        "nor what belongs to it",
        f"{STAMP} WARNING the camera is slow",
        "  by 3 ms",
        f"{STAMP} ERROR the policy failed",
        "Traceback:",
        f"{STAMP} CRITICAL it burns",
        "ready: act at ipc://x",
        "said after that",
        "error: it cannot go on",
    ]
    process = run("".join(f"echo '{line}';" for line in said) + STAYS)
    wait_for(lambda: "cannot go on" in process.last_lines())
    wait_for(lambda: lines.first("cannot go on"))
    assert shown(lines, logging.WARNING) == ["inference: the camera is slow", "inference:   by 3 ms"]
    assert shown(lines, logging.ERROR) == [
        "inference: the policy failed",
        "inference: Traceback:",
        "inference: it burns",
        "inference: error: it cannot go on",
    ]
    assert "inference: ready: act at ipc://x" in shown(lines, logging.INFO)
    assert process.last_lines().splitlines() == [f"  | {line}" for line in said[-LAST_LINES:]]


def test_a_line_counts_when_it_is_whole_or_the_last(run):
    process = run(
        "printf 'loa'; sleep 0.3; printf 'ding it\\n'; printf '\\303'; sleep 0.3; printf '\\244'; exit 3"
    )
    wait_for(lambda: process.death)
    assert process.last_lines() == "  | loading it\n  | ä"
    assert "exit status 3" in process.death and str(process.log) in process.death


def test_one_that_says_nothing_says_so(run):
    process = run("exit 0")
    wait_for(lambda: process.death)
    assert process.last_lines() == "  | (nothing)"


def test_what_an_earlier_run_wrote_is_kept_and_not_believed(run, tmp_path):
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    log.write_text("ready: the one of yesterday\n")
    process = run("echo loading; " + STAYS)
    wait_for(lambda: process.doing == "loading")
    assert not process.ready and process.loading_s is None
    assert log.read_text().startswith("ready: the one of yesterday\nloading")


def test_it_has_its_variables_and_not_the_terminals_signals(run):
    process = run("echo $ONE $TWO $1; " + STAYS, environment={"ONE": "1", "TWO": "2"})
    wait_for(lambda: "1 2" in process.last_lines())
    assert os.getsid(process.pid) == process.pid, "Ctrl-C in the terminal is for the robot's process"
    assert f"--end_with={os.getpid()}" in process._command and process._command[-2].startswith(
        "--address=ipc://"
    )


def test_one_that_starts_again_is_not_ready_until_it_says_so(run, tmp_path):
    once, go = tmp_path / "once", tmp_path / "go"
    script = f"touch {once}; echo ready; while [ ! -e {go} ]; do sleep 0.05; done"
    process = run(f"if [ -e {once} ]; then echo loading; {STAYS}; fi; {script}", restarts=1)
    wait_for(lambda: process.ready)
    assert process.loading_s is not None
    first, started = process.pid, process.started
    go.touch()
    wait_for(lambda: process.pid != first and process.doing == "loading")
    assert not process.ready and process.loading_s is None and process.started > started
    assert process.death is None


def test_its_death_is_told_once_and_only_for_good(run, tmp_path):
    count = tmp_path / "count"
    count.touch()
    told = []
    process = run(f"echo . >> {count}; echo ready; sleep 0.3; exit 1", restarts=2)
    process.when_dead(lambda: told.append(len(count.read_text().split())))
    wait_for(lambda: process.death)
    wait_for(lambda: told)
    assert told == [3], "it was started twice more"


def test_an_end_that_is_asked_for_is_no_death_and_comes_once(run, lines):
    process = run("echo ready; " + STAYS, restarts=3)
    process.when_dead(lambda: pytest.fail("it did not die"))
    wait_for(lambda: process.ready)
    began = time.monotonic()
    process.stop()
    assert process.death is None and not lines.first("started again") and not lines.first("killed")
    assert time.monotonic() - began < 10, "stop_s is for one that does not listen"
    assert not process._watcher.is_alive() and process._file.closed and process._reader.closed
