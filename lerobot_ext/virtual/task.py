"""The task press as it goes on in the world: episodes, the button, the operator's hand, the referee.

It advances in ticks of simulated time and knows no clock and no protocol, so that tests can run it as fast as they
like.
"""

from __future__ import annotations

import numpy as np

from lerobot_ext.virtual.hand import Hand
from lerobot_ext.virtual.link import Episode
from lerobot_ext.virtual.referee import Referee
from lerobot_ext.virtual.scripted_operator import Operator
from lerobot_ext.virtual.two_arms import IdleHand
from lerobot_ext.virtual.world import HEIGHTS_M, Drive, World

TICK_S = 0.01
READ_FOR_S = 0.3  # the leader must have been read for this long before the operator moves it
REST_S = 2.0  # between two presses when nobody marks episodes
LEADER_SPEED = 3.0  # rad/s, when the leader's own servos move it


class PressTask:
    """World, operator and referee together.

    With two arms the right one presses: operator, referee and "the" leader are its.

    Attributes:
        world: The physics.
        leader: The leader's joint angles, rad, float64 (6,).
        left: The hand at the left arm's leader; None with one arm.
        episodes: The verdicts so far.
        in_episode: Whether somebody has started an episode and not ended it.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        operator: bool = True,
        world: World | None = None,
        heights_m: tuple[float, float] = HEIGHTS_M,
    ) -> None:
        """Begin at rest.

        Args:
            seed: Of the button's heights and of the operator.
            operator: Whether there is one.
            world: A variant of the scene; None: the usual one.
            heights_m: Range of the button's height above the table.
        """
        self.world = World() if world is None else world
        self.episodes: list[Episode] = []
        self.in_episode = False
        self._heights = np.random.default_rng(seed)
        self._heights_m = heights_m
        self._operator = Operator(seed)
        self._may_operate = operator
        self._waiting = False  # an episode has begun in which the operator has not moved yet
        self._marked = False  # whether anybody has ever started an episode
        self._rested = 0.0
        self._referee = Referee()
        self._hand: Hand | None = None
        self._left_hand: Hand | None = None
        self.leader = self._operator.joints.copy()
        self.left = IdleHand(sways=operator) if len(self.world.arms) > 1 else None
        self._new_press()

    @property
    def operator_doing(self) -> str:
        """What the operator is doing: "home", "down", "hold" or "up"."""
        return self._operator.doing

    def start_episode(self, operate: bool = True) -> None:
        """Begin an episode with a new button height; ends the one that is open."""
        self.end_episode()
        self._let_go()
        self._marked = self.in_episode = True
        self._waiting = operate and self._may_operate
        self._new_press()

    def end_episode(self) -> Episode | None:
        """End the episode that is open and judge it; None if there is none."""
        if not self.in_episode:
            return None
        self.in_episode = self._waiting = False
        self.episodes.append(self.verdict())
        self._operator.go_home()
        return self.episodes[-1]

    def verdict(self) -> Episode:
        """What the referee would say if the press ended now."""
        world = self.world
        return self._referee.verdict(len(self.episodes), world.joints, float(world.tip[2]))

    def hand(self, pose: str) -> None:
        """Take all arms, as far as they are unpowered, to a pose of `hand.POSES`; "home" ends it.

        Raises:
            ValueError: If there is no such pose, or an episode is open.
        """
        if self.in_episode:
            raise ValueError("an episode is open, in which the arms are not moved by hand; end it first.")
        self._hand = Hand(self.leader, pose)
        self._left_hand = Hand(self.left.joints, pose) if self.left is not None else None
        self.world.set_contacts(False)  # the hand holds the follower clear of the table

    def _let_go(self) -> None:
        self._hand = self._left_hand = None
        self.world.set_contacts(True)

    def tick(
        self, follower: Drive, leader: Drive, read_for: float, left: tuple[Drive, Drive] | None = None
    ) -> None:
        """Advance by TICK_S.

        Args:
            follower: What the follower's servos ask for.
            leader: What the leader's servos ask for; joints without power follow the operator's hand.
            read_for: For how long the leader's positions have been read regularly, s.
            left: What the left follower's and the left leader's servos ask for, with two arms.
        """
        world, operator = self.world, self._operator
        if self._hand is not None:
            self._guide(follower, leader, left)
            return
        world.drive(follower)
        if left is not None:
            world.arms[1].drive(left[0])
            self.left.step(TICK_S, left[1])
        for force in world.step(round(TICK_S / world.dt)):
            self._referee.watch(world.dt, force)
        world.set_lamp(self._referee.pressed)

        powered = bool(leader.powered.any())
        if not operator.busy:
            self._begin(read_for, powered)
        hand = operator.step(TICK_S, world.normal_force, self._referee.pressed)
        if powered:
            reach = LEADER_SPEED * TICK_S
            driven = self.leader + np.clip(leader.goal - self.leader, -reach, reach)
            hand = np.where(leader.powered, driven, hand)
        self.leader = hand
        operator.joints = self.leader.copy()

    def _guide(self, follower: Drive, leader: Drive, left: tuple[Drive, Drive] | None) -> None:
        """One tick in which the hand moves the arms."""
        joints = self._hand.step(TICK_S)
        self.world.drive(Drive.at(np.where(follower.powered, follower.goal, joints)))
        if left is not None:
            guided = self._left_hand.step(TICK_S)
            self.world.arms[1].drive(Drive.at(np.where(left[0].powered, left[0].goal, guided)))
            self.left.joints = np.where(left[1].powered, self.left.joints, guided)
        self.world.step(round(TICK_S / self.world.dt))
        self.leader = np.where(leader.powered, self.leader, joints)
        self._operator.joints = self.leader.copy()
        if self._hand.done:
            self._let_go()

    def _begin(self, read_for: float, powered: bool) -> None:
        """Let the idle operator start what is due."""
        self._rested += TICK_S
        if powered:
            return
        if self._waiting and read_for >= READ_FOR_S:
            self._waiting = False
            self._operator.press()
        elif not self._marked and self._may_operate and read_for >= READ_FOR_S and self._rested >= REST_S:
            self._new_press()
            self._operator.press()
        else:
            self._operator.go_home()
        if self._operator.busy:
            self._rested = 0.0

    def _new_press(self) -> None:
        height = round(float(self._heights.uniform(*self._heights_m)), 4)
        self.world.set_block_height(height)
        self.world.set_lamp(False)
        self._referee.start(height)
