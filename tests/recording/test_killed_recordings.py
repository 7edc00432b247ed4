"""SIGKILL at every step on the disk and at random moments: what was saved is there, frame by frame, and goes on."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import killed
import pytest
import small_recording as small

from lerobot_ext.recording.recover import recover

CHECK = Path(__file__).with_name("check_stock.py")
FEATURES = small.features((small.SIDE, small.DEPTH), vectors=("observation.state",))


def check_with_stock(saved: dict[Path, int]) -> None:
    """All in one process: importing LeRobot takes longer than all the checks."""
    arguments = [f"{folder}={least}" for folder, least in saved.items() if least]
    done = subprocess.run([sys.executable, CHECK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]


def go_on(root: Path, least: int) -> int:
    """Resume, record one more, finish; returns the number of episodes before that."""
    dataset = small.resume(root)
    before = dataset.num_episodes
    assert before >= least
    assert recover(root) == []
    small.record(dataset, [before])
    dataset.finalize()
    small.check(root, before + 1)
    left = {path.name for path in root.iterdir()}
    assert left <= {"data", "meta", "videos"}
    assert [path for path in root.rglob("*") if path.name.startswith(".")] == []
    return before


def state_of(root: Path) -> frozenset:
    """What of a folder LeRobot can see."""
    return frozenset(
        (str(path.relative_to(root)), hashlib.sha1(path.read_bytes()).hexdigest())
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(("tmp", ".")) for part in path.relative_to(root).parts)
    )


def states_after_kills(before: Path, open_dataset, steps: Callable) -> dict[Path, int]:
    """Every different state in which a kill leaves a copy of `before`, and how many episodes were saved by then.

    Args:
        before: A recording.
        open_dataset: Opens a copy of it.
        steps: `(dataset, saved, arm)` is run in a child; it touches `saved` when an episode is saved, and calls
            `arm` when the kills shall begin.
    """
    work, found, seen, step, ended = before.with_name("work"), {}, set(), 0, False
    shutil.copytree(before, work)
    dataset = open_dataset(work)
    while not ended:
        step += 1
        saved = before.with_name(f"step{step}.saved")
        ended = killed.run(lambda step=step, saved=saved: steps(dataset, saved, lambda: killed.die_at(step)))
        root = work.rename(before.with_name(f"step{step}"))
        shutil.copytree(before, work)
        state = state_of(root)
        if state not in seen:
            found[root] = saved.exists()
        seen.add(state)
    assert step > len(found)
    return found


@pytest.fixture(scope="module")
def one_saved(tmp_path_factory):
    """A recording with one saved episode, as it is before the second one."""
    root = tmp_path_factory.mktemp("one") / "recording"
    small.record(small.create(root, given=FEATURES), [0])
    return root


def test_a_kill_at_every_step_of_saving_and_consolidating_loses_nothing(one_saved):
    def save_and_finish(dataset, saved, arm):
        small.add_frames(dataset, 1)
        arm()
        dataset.save_episode()
        saved.touch()
        dataset.finalize()

    states = states_after_kills(one_saved, small.resume, save_and_finish)
    saved = {root: 1 + second for root, second in states.items()}
    assert len(states) > 12 and set(saved.values()) == {1, 2}
    check_with_stock(saved)
    counts = [go_on(root, least) for root, least in saved.items()]
    assert counts == sorted(counts) and set(counts) == {1, 2}


def test_a_kill_at_every_step_of_the_first_save_leaves_a_folder_to_go_on_with(tmp_path):
    def save(dataset, saved, arm):
        small.add_frames(dataset, 0)
        arm()
        dataset.save_episode()
        saved.touch()

    before = tmp_path / "recording"
    small.create(before, given=FEATURES)
    states = states_after_kills(before, small.resume, save)
    counts = [go_on(root, int(saved)) for root, saved in states.items()]
    assert len(counts) > 5 and set(counts) == {0, 1}


def test_kills_at_random_moments(tmp_path):
    rng = random.Random(7)

    def record(root):
        with open(f"{root}.saved", "a") as saved:
            dataset = small.create(root, given=FEATURES)
            for episode in range(100):
                small.record(dataset, [episode])
                print(episode, file=saved, flush=True)
                if episode % 3 == 2:
                    dataset.finalize()
                    dataset = small.resume(root)

    saved = {}
    for number in range(5):
        root = tmp_path / f"random{number}"
        assert not killed.run(lambda root=root: record(root), after_s=rng.uniform(0.1, 1.5))
        file = Path(f"{root}.saved")
        saved[root] = len(file.read_text().splitlines()) if file.exists() else 0
    for root, least in saved.items():
        if least:
            found = small.load(root).meta.total_episodes
            assert found >= least
            small.check(root, found)
        if root.exists():
            go_on(root, least)


def test_an_episode_in_progress_is_dropped_with_a_line_and_its_files_removed(one_saved, tmp_path, caplog):
    for streaming in (True, False):
        root = tmp_path / f"recording{streaming}"
        shutil.copytree(one_saved, root)

        def record_some(root=root, streaming=streaming):
            dataset = small.resume(root, streaming=streaming)
            small.add_frames(dataset, 1, 3)
            os.kill(os.getpid(), 9)

        assert not killed.run(record_some)
        assert {path.name[:3] for path in root.iterdir()} - {"dat", "met", "vid"} == {
            "tmp" if streaming else "ima"
        }
        lines = recover(root)
        assert len(lines) == 1 and "episode 1 was in progress when the recording ended: dropped" in lines[0]
        assert {path.name for path in root.iterdir()} == {"data", "meta", "videos"}
        assert recover(root) == []
