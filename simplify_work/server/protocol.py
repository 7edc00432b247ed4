"""What the server asks of whatever infers: one class that turns several robots' observations into chunks.

`runner.PolicyRunner` is the one that runs a LeRobot checkpoint; a bench or a test may serve a stand-in. Nothing here
knows of torch, of sockets, or of how a policy works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from simplify_work.wire.features import FeatureSpec
from simplify_work.wire.messages import PictureUse, Rtc


@dataclass(frozen=True)
class Served:
    """What a Welcome tells about the policy.

    Attributes:
        policy_type: LeRobot's name of the policy.
        inputs: What it wants from the robot.
        action_dim: Width of an action.
        chunk_size: Actions in a chunk.
        n_action_steps: Actions of a chunk that the checkpoint's config says to execute.
        action_names: Names of the action's entries if the checkpoint knows them.
        n_obs_steps: Observations that the policy looks at; above 1, arrays have a leading axis of up to that many.
        supports_rtc: True if a request may have `rtc`.
        takes_tip: Whether the policy was trained on tasks with language tips.
        pictures: At what size the policy looks at pictures.
        temporal_ensemble_coeff: ACT's, if the checkpoint has one; whoever executes the chunks ensembles them.
        postprocessor: Scale and offset, both (action_dim,) float64, where actions are `model * scale + offset`.
    """

    policy_type: str
    inputs: tuple[FeatureSpec, ...]
    action_dim: int
    chunk_size: int
    n_action_steps: int
    action_names: tuple[str, ...] | None = None
    n_obs_steps: int = 1
    supports_rtc: bool = False
    takes_tip: bool = False
    pictures: tuple[PictureUse, ...] = ()
    temporal_ensemble_coeff: float | None = None
    postprocessor: tuple[np.ndarray, np.ndarray] | None = None


class SessionState(Protocol):
    """One robot's state: what the policy and its processors remember of the episode."""

    def reset(self) -> None:
        """A new episode begins."""


@dataclass(frozen=True)
class Request:
    """One observation that shall become a chunk.

    Attributes:
        session: From `Runner.open_session`.
        observation: Arrays by the names of `Served.inputs`; others may be there.
        task: What the robot shall do, in words.
        robot_type: LeRobot's name of the robot.
        seed: Seed of the policy's noise; None goes on with the runner's generator.
        rtc: How the chunk shall continue `left_over`; None: it need not.
        left_over: (n, action_dim) float32, what is left of the previous chunk, in the model's units.
        model_actions: Return the actions before postprocessing, too.
    """

    session: SessionState
    observation: Mapping[str, np.ndarray] = field(default_factory=dict)
    task: str = ""
    robot_type: str = ""
    seed: int | None = None
    rtc: Rtc | None = None
    left_over: np.ndarray | None = None
    model_actions: bool = False


@dataclass(frozen=True)
class Inference:
    """One chunk and what it cost.

    Attributes:
        actions: (n, dim) float32, in the robot's units.
        preprocess_s: To make the batch that it was part of.
        infer_s: In the policy, for that batch.
        postprocess_s: To make actions of its output.
        batch_size: Observations in that batch.
        model_actions: (n, dim) float32 before postprocessing, if they were asked for.
    """

    actions: np.ndarray
    preprocess_s: float
    infer_s: float
    postprocess_s: float
    batch_size: int = 1
    model_actions: np.ndarray | None = None


class Runner(Protocol):
    """What `PolicyServer` serves. `infer` and `SessionState.reset` are called by one thread, the rest by another."""

    @property
    def served(self) -> Served:
        """What the policy is, the same for as long as it is served."""

    def open_session(self) -> SessionState:
        """State for one more robot; called while `infer` runs, so it must not wait for it."""

    def infer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Inference | Exception]]:
        """Chunks for requests of different sessions, each with its index, as they are ready.

        A request that cannot be answered yields its exception; the others are answered all the same.
        """
