"""Language tips: one an episode, in every frame, for whoever opens the dataset; and changed afterwards."""

import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import small_recording as small
from torch.utils.data import DataLoader

from lerobot_ext.errors import UserError
from lerobot_ext.features import TIP
from lerobot_ext.recording import commit, episodes, files, parquet_footer, repair, set_tips, tips
from lerobot_ext.recording.summary import render, summarize
from lerobot_ext.recording.tips import TipPlan
from lerobot_ext.recording.visualize.episode import EpisodeView

VECTORS = small.features(videos=())
ROBOT = SimpleNamespace(name="none", robot_type="none")


@pytest.fixture
def session():
    """`session(value)`: tips as a YAML says them, until the test ends."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda value: stack.enter_context(tips.tips.session(TipPlan.of(value)))


def record(dataset, number: int, during=lambda index: None, save=True) -> None:
    """One episode as LeRobot's loop records it."""
    with episodes.episode(ROBOT, dataset):
        for index in range(small.length_of(number)):
            given = small.frame(number, index)
            dataset.add_frame({k: v for k, v in given.items() if k == "task" or k in VECTORS})
            during(index)
    if save:
        dataset.save_episode()


def tips_in_frames(root: Path) -> dict[int, set]:
    """The tips in the frames of each episode, as LeRobot's dataset gives them."""
    dataset = small.load(root)
    found: dict[int, set] = {}
    for item in (dataset[i] for i in range(len(dataset))):
        found.setdefault(item["episode_index"].item(), set()).add(item[TIP])
    return found


def recorded(root: Path, session, values=("press slowly", ""), **kwargs):
    """A finished dataset whose episodes have these tips."""
    session(dict(enumerate(values)))
    dataset = small.create(root, given=VECTORS, **kwargs)
    for number in range(len(values)):
        record(dataset, number)
    dataset.finalize()
    tips.tips.plan = None


# --- what a YAML may say ---


def test_what_a_yaml_may_say():
    assert TipPlan.of("  press\n slowly ").at(7) == "press slowly"
    assert TipPlan.of(["a", "b"]).at(0, chosen=1) == "b"
    plan = TipPlan.of({"3": "from three on", 0: "first"})
    assert [plan.at(index) for index in (0, 2, 3, 9)] == ["first", "first", "from three on", "from three on"]
    assert TipPlan.of({2: "late"}).at(1) == ""


@pytest.mark.parametrize(
    "value", [3, ["a", 4], [], {}, {"first": "a"}, {True: "a"}, {-1: "a"}, list("0123456789")]
)
def test_what_it_may_not_say(value):
    with pytest.raises(UserError, match=r"dataset\.language_tip .* expected a text"):
        TipPlan.of(value)


# --- recording ---


def test_every_frame_has_its_episodes_tip_and_lerobot_reads_it(tmp_path, session):
    recorded(tmp_path / "ds", session)
    dataset = small.load(tmp_path / "ds")
    assert dataset.meta.features[TIP] == {"dtype": "string", "shape": (1,), "names": None}
    assert TIP not in dataset.meta.stats
    assert tips_in_frames(tmp_path / "ds") == {0: {"press slowly"}, 1: {""}}
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    assert batch[TIP] == ["press slowly"] * small.length_of(0) + [""] * small.length_of(1)


def test_without_tips_nothing_is_added(tmp_path):
    dataset = small.create(tmp_path / "ds", given=VECTORS)
    record(dataset, 0)
    dataset.finalize()
    assert TIP not in small.load(tmp_path / "ds").meta.features
    assert tips.read(tmp_path / "ds") == {}


def test_a_digit_chooses_for_the_episode_that_is_recorded_or_for_the_next(tmp_path, session, caplog):
    caplog.set_level("INFO")
    session(["gently", "until it clicks", "quickly"])
    dataset = small.create(tmp_path / "ds", given=VECTORS)
    record(dataset, 0, during=lambda index: tips.tips.key("2") if index == 2 else None)
    tips.tips.key("3")
    record(dataset, 1)
    record(dataset, 2, save=False)  # recorded again: the choice stands
    dataset.clear_episode_buffer()
    for ignored in ("9", "0", "n", "right", "²"):
        tips.tips.key(ignored)
    record(dataset, 2)
    dataset.finalize()
    assert tips_in_frames(tmp_path / "ds") == {0: {"until it clicks"}, 1: {"quickly"}, 2: {"quickly"}}
    said = caplog.text
    assert "language tip of episode 0: 'gently' (keys: 1 'gently', 2 'until it clicks', 3 'quickly')" in said
    assert "this episode's language tip: 'until it clicks'" in said
    assert "the next episode's language tip: 'quickly'" in said
    assert "there is no language tip 9" in said


def test_keys_of_a_terminal_reach_the_choice_and_lerobot(session, monkeypatch):
    from lerobot.utils import keyboard_input

    session(["gently", "quickly"])
    leader, follower = os.openpty()
    monkeypatch.setattr(keyboard_input, "pynput_can_capture", lambda: False)
    with os.fdopen(follower) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        listener, events = keyboard_input.init_keyboard_listener()
        try:
            os.write(leader, b"2n")
            give_up = time.monotonic() + 10
            while not events["exit_early"] and time.monotonic() < give_up:
                time.sleep(0.01)
        finally:
            listener.stop()
    os.close(leader)
    assert events["exit_early"]
    assert tips.tips.at(0) == "quickly"


# --- going on ---


def test_going_on_with_a_dataset(tmp_path, session):
    from lerobot.common.control_utils import sanity_check_dataset_robot_compatibility

    recorded(tmp_path / "ds", session, ("gently",))
    dataset = small.resume(tmp_path / "ds")
    sanity_check_dataset_robot_compatibility(dataset, ROBOT, small.FPS, VECTORS)
    record(dataset, 1)  # nobody asked for tips
    dataset.finalize()
    session("quickly")
    dataset = small.resume(tmp_path / "ds")
    sanity_check_dataset_robot_compatibility(dataset, ROBOT, small.FPS, VECTORS)
    record(dataset, 2)
    dataset.finalize()
    assert tips_in_frames(tmp_path / "ds") == {0: {"gently"}, 1: {""}, 2: {"quickly"}}


def test_a_dataset_that_was_begun_without_says_what_to_do_and_that_helps(tmp_path, session):
    root = tmp_path / "ds"
    dataset = small.create(root, given=VECTORS)
    record(dataset, 0)
    dataset.finalize()
    session("quickly")
    with pytest.raises(UserError, match=r"has no column 'language_tip'.*lerobot-ext tip .*ds --all --set=''"):
        small.resume(root)
    set_tips.set_tips(root, {0: ""})
    dataset = small.resume(root)
    record(dataset, 1)
    dataset.finalize()
    assert tips_in_frames(root) == {0: {""}, 1: {"quickly"}}
    assert len(list((root / "data").glob("*/*.parquet"))) == 1, "the same columns: the same file"
    small.check(root, 2)


# --- what is shown ---


def test_the_table_and_the_pages_show_it(tmp_path, session):
    from rich.console import Console

    recorded(tmp_path / "ds", session, ("press [slowly]", "press [slowly]", ""))
    console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(summarize(tmp_path / "ds", first=1)))
    shown = console.export_text()
    assert "language tips   'press [slowly]' 1, none 1" in shown
    assert any(
        line.split()[0] == "1" and "press [slowly]" in line for line in shown.splitlines() if line.strip()
    )
    dataset = small.load(tmp_path / "ds")
    assert EpisodeView(dataset, 0).told == "press 0 · tip: press [slowly]"
    assert EpisodeView(dataset, 2).told == "press 0"


# --- other tools ---


def test_repair_keeps_the_tips(tmp_path, session):
    recorded(tmp_path / "ds", session, ("gently", "quickly"))
    for path in (tmp_path / "ds" / "meta" / "episodes").rglob("*.parquet"):
        path.unlink()
    report = repair.repair(tmp_path / "ds", repair.Options(check=True))
    assert not report.failures and report.complete
    assert tips_in_frames(report.out) == {0: {"gently"}, 1: {"quickly"}}


def test_a_table_without_its_end_keeps_the_tips(tmp_path, session):
    recorded(tmp_path / "ds", session, ("gently", "quickly"))
    (path,) = (tmp_path / "ds" / "data").glob("*/*.parquet")
    whole, data = pq.read_table(path), path.read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(data[: len(data) - 8 - int.from_bytes(data[-8:-4], "little")])
    parquet_footer.rebuild(cut, whole.schema, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")[TIP].to_pylist() == whole[TIP].to_pylist()


def test_lerobot_merges_datasets_with_tips(tmp_path, session):
    from lerobot.datasets.aggregate import aggregate_datasets

    roots = [tmp_path / "a", tmp_path / "b"]
    recorded(roots[0], session, ("gently",))
    recorded(roots[1], session, ("quickly",))
    aggregate_datasets(["test/small"] * 2, "test/both", roots=roots, aggr_root=tmp_path / "both")
    assert tips_in_frames(tmp_path / "both") == {0: {"gently"}, 1: {"quickly"}}


# --- changing them ---


def test_changing_tips(tmp_path, session):
    root = tmp_path / "ds"
    recorded(root, session, ("gently", "gently", ""))
    (path,) = (root / "data").glob("*/*.parquet")
    before = pq.read_table(path)
    set_tips.set_tips(root, {1: "quickly"})
    assert (
        tips_in_frames(root) == {0: {"gently"}, 1: {"quickly"}, 2: {""}} and tips.read(root)[1] == "quickly"
    )
    after = pq.read_table(path)
    assert after.drop_columns([TIP]).equals(before.drop_columns([TIP]))
    assert after.schema.equals(before.schema, check_metadata=True)
    assert pq.read_metadata(path).num_row_groups == 3
    stamp = path.stat().st_mtime_ns
    set_tips.set_tips(root, {1: "quickly"})
    assert path.stat().st_mtime_ns == stamp, "nothing to do"
    with pytest.raises(UserError, match=r"there is no episode 3 in .*; it has 3: 0 to 2"):
        set_tips.set_tips(root, {3: "late"})
    with pytest.raises(UserError, match="holds no LeRobot dataset"):
        set_tips.set_tips(tmp_path, {})


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_a_kill_while_the_column_is_added_leaves_a_dataset_that_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "DATA_TAIL_BYTES", 1)  # a file an episode
    root = tmp_path / "ds"
    dataset = small.create(root, given=VECTORS)
    for number in range(3):
        record(dataset, number)
    dataset.finalize()
    assert len(list((root / "data").glob("*/*.parquet"))) == 3
    replace = os.replace
    for allowed in range(4):  # of the four files, info.json first
        copy = shutil.copytree(root, tmp_path / f"killed_after_{allowed}")
        left = [allowed]

        def killed(source, target, left=left):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", killed)
        with pytest.raises(KilledError):
            set_tips.set_tips(copy, dict.fromkeys(range(3), "gently"))
        monkeypatch.setattr(files.os, "replace", replace)
        small.check(copy, 3)
        small.check(copy, 3, episodes=[1])
        assert (TIP in small.load(copy).meta.features) == (allowed > 0)
        assert tips.read(copy) == dict.fromkeys(range(allowed - 1), "gently")
        set_tips.set_tips(copy, dict.fromkeys(range(3), "gently"))
        assert tips_in_frames(copy) == {0: {"gently"}, 1: {"gently"}, 2: {"gently"}}
