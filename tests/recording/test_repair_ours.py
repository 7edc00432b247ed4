"""What our own writer leaves when it is killed is mended, too, and no saved episode is lost."""

import os
import shutil
from pathlib import Path

import killed
import pytest
import small_recording as small

from lerobot_ext.recording.repair import repair

FEATURES = small.features((small.SIDE, small.DEPTH), vectors=("observation.state",))


@pytest.fixture(scope="module")
def one_saved(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("one") / "recording"
    small.record(small.create(root, given=FEATURES), [0])
    return root


@pytest.mark.parametrize("step", [1, 3, 5, 6, 8, 10, 13])
def test_a_kill_while_saving_or_consolidating(one_saved, tmp_path, step):
    root, saved = tmp_path / "recording", tmp_path / "saved"
    shutil.copytree(one_saved, root)

    def save_and_finish():
        dataset = small.resume(root)
        small.add_frames(dataset, 1)
        killed.die_at(step)
        dataset.save_episode()
        saved.touch()
        dataset.finalize()

    killed.run(save_and_finish)
    report = repair(root)
    kept = [fate for fate in report.episodes if fate.status != "lost"]
    assert report.complete and len(kept) >= 1 + saved.exists()
    small.check(report.out or root, len(kept))


def test_rows_of_an_episode_whose_videos_are_gone_are_dropped_by_the_writers_own_rules(one_saved, tmp_path):
    """As after a power failure that the videos of the episode that was being saved did not survive."""
    root = tmp_path / "recording"
    shutil.copytree(one_saved, root)

    def save():
        dataset = small.resume(root)
        small.add_frames(dataset, 1)
        replace = os.replace

        def until_the_data(source, target, **options):
            replace(source, target, **options)
            if "data/chunk" in str(target):
                os.kill(os.getpid(), 9)

        os.replace = until_the_data
        dataset.save_episode()

    assert not killed.run(save)
    for video in root.glob("videos/*/*/file-001.mp4"):
        video.unlink()
    for folder in root.glob("tmp*"):
        shutil.rmtree(folder)
    report = repair(root)
    assert report.complete and [fate.status for fate in report.episodes] == ["kept"]
    assert any("episode 1 was being saved: dropped" in fault for fault in report.faults)
    small.check(report.out, 1)
    assert repair(report.out).healthy
