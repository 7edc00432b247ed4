"""The press that `scripts/bench/force_matters.py` trains on: contact shows in the skin and nowhere else."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lerobot_ext.virtual.world import World

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "bench"))
from hidden_press import HiddenPress, demonstrate, hidden_model, replay


@pytest.fixture(scope="module")
def press():
    rig = HiddenPress(seed=3)
    frames = [frame for frame, _ in demonstrate(rig)]
    yield rig, frames, rig.goals, rig.task.end_episode()
    rig.close()


def test_the_operator_presses_well(press):
    _, frames, goals, verdict = press
    assert verdict.success, verdict.reason
    assert len(frames) == len(goals)


@pytest.fixture(scope="module")
def replays(press):
    """With the button, with a button that is pressed harder than the operator does, and without."""
    *_, goals, verdict = press
    heights = (verdict.block_height_m, verdict.block_height_m + 0.014, None)
    return [replay(World(hidden_model()), goals, height) for height in heights]


@pytest.mark.parametrize("pressed", [0, 1])
def test_joints_and_picture_are_the_same_with_the_button_and_without_it(replays, pressed):
    pressed, free = replays[pressed], replays[-1]
    assert pressed.touched.sum() > 25
    assert not free.touched.any()
    away = np.abs(pressed.ticks - free.ticks)[pressed.touched].max(axis=1)
    assert away.max() <= 2  # where the pad lets go
    assert (away > 0).mean() < 0.1
    otherwise = np.abs(pressed.pictures.astype(int) - free.pictures)[pressed.touched].max(axis=-1) > 8
    assert otherwise.sum(axis=(1, 2)).max() <= 8  # pixels on edges, of 64 x 64


def test_the_skin_tells(replays):
    pressed, harder, free = replays
    assert np.abs(free.force).max() < 10 < np.abs(pressed.force).max() < np.abs(harder.force).max()
    assert 1.5 < pressed.normal_n.max() < 3 < harder.normal_n.max()
