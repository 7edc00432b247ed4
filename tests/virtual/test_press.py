"""The task press without real time: physics, operator, referee."""

import numpy as np
import pytest

from lerobot_ext.virtual.feetech import RAD_PER_TICK
from lerobot_ext.virtual.hand import MIDDLE
from lerobot_ext.virtual.referee import Referee
from lerobot_ext.virtual.scripted_operator import Kinematics
from lerobot_ext.virtual.task import TICK_S, PressTask
from lerobot_ext.virtual.world import BUTTON_XY, HEIGHTS_M, HOME, Drive, World

LET_GO = Drive(HOME.copy(), np.zeros(6, bool), np.ones(6), np.ones(6))


def run(task, seconds, *, read=True, fps=30, follow=True):
    """Let time pass while the follower gets the leader's encoder positions `fps` times a second."""
    period = max(1, round(1 / fps / TICK_S))
    drive = Drive.at(task.world.joints if not follow else task.leader)
    for tick in range(round(seconds / TICK_S)):
        if follow and tick % period == 0:
            drive = Drive.at(np.round(task.leader / RAD_PER_TICK) * RAD_PER_TICK)
        task.tick(drive, LET_GO, read_for=1.0 if read else 0.0)
    return task


def test_the_operator_succeeds_at_every_height():
    task = PressTask(seed=11)
    run(task, 0.5, read=False)
    for _ in range(6):
        task.start_episode()
        run(task, 6.5)
        task.end_episode()
    assert [episode.reason for episode in task.episodes if not episode.success] == []
    assert max(episode.peak_force_n for episode in task.episodes) < 3
    heights = [episode.block_height_m for episode in task.episodes]
    assert len(set(heights)) == 6
    assert all(HEIGHTS_M[0] <= height <= HEIGHTS_M[1] for height in heights)


def test_the_heights_can_be_chosen():
    task = PressTask(seed=11, heights_m=(0.060, 0.061))
    task.start_episode()
    assert 0.060 <= task.world.block_height <= 0.061


def test_the_verdict_can_be_asked_for_before_the_end():
    task = PressTask(seed=11)
    task.start_episode()
    assert not task.verdict().success
    assert task.in_episode
    assert task.episodes == []


def test_the_operator_waits_until_the_leader_is_read():
    task = PressTask(seed=1)
    task.start_episode()
    run(task, 1.0, read=False)
    assert task.operator_doing == "home"
    run(task, 0.5)
    assert task.operator_doing == "down"


def test_an_episode_without_operation_leaves_the_leader_alone():
    task = PressTask(seed=1)
    task.start_episode(operate=False)
    run(task, 4.0)
    assert task.operator_doing == "home"
    assert not task.end_episode().success


def test_nobody_marks_episodes_so_it_presses_with_rests():
    task = PressTask(seed=1)
    done = []
    heights = set()
    for _ in range(16):
        run(task, 1.0)
        done.append(task.operator_doing)
        heights.add(task.world.block_height)
    assert {"home", "down"} <= set(done)
    assert len(heights) >= 2
    assert task.episodes == []


def test_an_episode_that_ends_early_sends_the_operator_home():
    task = PressTask(seed=2)
    task.start_episode()
    run(task, 2.0)
    assert task.operator_doing in ("down", "hold")
    episode = task.end_episode()
    assert not episode.success
    run(task, 3.0)
    assert task.operator_doing == "home"
    assert np.abs(task.world.joints - HOME)[:4].max() < 0.05


def test_starting_an_episode_ends_the_open_one():
    task = PressTask(seed=2)
    task.start_episode()
    task.start_episode()
    assert len(task.episodes) == 1
    assert task.in_episode
    assert task.end_episode().index == 1
    assert task.end_episode() is None


def test_a_follower_that_does_not_follow_fails_and_the_operator_gives_up():
    task = PressTask(seed=3)
    task.start_episode()
    run(task, 9.0, follow=False)
    assert task.operator_doing == "home"
    assert "held 1 to 3 N for 0.00 s" in task.end_episode().reason


def test_the_button_rises_gently_into_a_pad_that_is_in_its_way():
    task = PressTask(seed=4)
    world = task.world
    low = np.array([*BUTTON_XY, 0.030])
    pose = Kinematics().reach(HOME, low, 1.4, iterations=50)
    world.set_block_height(0.020)
    world.drive(Drive.at(pose))
    for _ in range(200):
        world.step(5)
    world.set_block_height(0.033)
    forces = [force for _ in range(200) for force in world.step(5)]
    assert forces[0] == 0
    assert 0 < max(forces) < 4


def test_an_arm_without_power_stays_at_home():
    world = World()
    for _ in range(300):
        world.step(5)
    assert np.abs(world.joints - HOME).max() < 0.02


def test_an_arm_without_power_can_be_overcome_only_by_more_than_its_gears():
    world = World()
    stretched = np.array([0.0, 0.9, -0.9, 0.0, 0.0, 0.1])
    world.drive(Drive.at(stretched))
    for _ in range(200):
        world.step(5)
    high = world.tip[2]
    world.drive(LET_GO)
    for _ in range(200):
        world.step(5)
    assert world.tip[2] < high - 0.02


def test_the_contact_force_is_that_of_the_pads_spring():
    task = PressTask(seed=5)
    task.start_episode()
    while task.operator_doing != "hold":
        run(task, 0.1)
    run(task, 0.7)
    world = task.world
    spring = 250 * world.data.joint("pad").qpos[0]
    assert world.normal_force > 1
    assert world.normal_force == pytest.approx(
        spring, abs=0.12
    )  # friction and the pad's weight take a little


def watched(*pieces):
    """A referee that has seen (seconds, newton) after (seconds, newton)."""
    referee = Referee()
    referee.start(0.04)
    for seconds, force in pieces:
        for _ in range(round(seconds / 0.002)):
            referee.watch(0.002, force)
    return referee


def test_held_and_home_is_a_success():
    episode = watched((1, 0), (1.1, 2.0), (1, 0)).verdict(0, HOME, 0.13)
    assert episode.success
    assert episode.hold_s == pytest.approx(1.1, abs=0.01)
    assert episode.duration_s == pytest.approx(3.1, abs=0.01)


@pytest.mark.parametrize(
    ("pieces", "joints", "tip", "reason"),
    [
        (((0.9, 2.0), (0.1, 0.0), (0.9, 2.0)), HOME, 0.13, "held 1 to 3 N for 0.90 s"),
        (((2.0, 3.5),), HOME, 0.13, "held 1 to 3 N for 0.00 s"),
        (((1.5, 2.0), (0.01, 6.5)), HOME, 0.13, "pressed too hard: 6.5 N"),
        (((1.5, 2.0),), HOME, 0.05, "was not back home"),
        (((1.5, 2.0),), HOME + np.array([0, 0.5, 0, 0, 0, 0]), 0.13, "was not back home"),
        (((1.5, 0.0),), HOME, 0.13, "peak 0.0 N"),
    ],
)
def test_what_is_missing_is_said(pieces, joints, tip, reason):
    episode = watched(*pieces).verdict(0, joints, tip)
    assert not episode.success
    assert reason in episode.reason


def test_the_lamp_shows_that_the_press_was_long_enough():
    assert not watched((0.9, 2.0)).pressed
    assert watched((1.05, 2.0)).pressed


def test_a_hand_moves_unpowered_arms_as_a_calibration_asks():
    task = PressTask(seed=6)

    def let(seconds):
        path = []
        for _ in range(round(seconds / TICK_S)):
            task.tick(LET_GO, LET_GO, read_for=0.0)
            path.append((task.leader, task.world.joints))
        return np.array(path)

    task.hand("middle")
    assert let(2.5)[-1] == pytest.approx(np.array([MIDDLE, MIDDLE]), abs=0.03)
    task.hand("sweep")
    ranges = np.ptp(let(9.0), axis=0)[:, [0, 1, 2, 3, 5]]
    assert ranges == pytest.approx(np.tile([3.84, 3.5, 3.38, 3.32, 1.75], (2, 1)), rel=0.04)
    task.hand("home")
    assert let(4.0)[-1] == pytest.approx(np.array([HOME, HOME]), abs=0.06)
    with pytest.raises(ValueError, match="there are: middle, sweep, home"):
        task.hand("up")
