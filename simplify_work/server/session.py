"""One robot's view of a policy: its own processors, with what they and the policy remember of the episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from lerobot.policies.utils import prepare_observation_for_inference
from torch import Tensor

from lerobot_ext.rollout.guidance import Guidance
from simplify_work.server.batching import Batch
from simplify_work.server.memory import Memory
from simplify_work.server.protocol import Inference, Request
from simplify_work.wire.errors import FeatureMismatch, RemoteInferenceError
from simplify_work.wire.features import check_features, describe

if TYPE_CHECKING:
    from simplify_work.server.runner import PolicyRunner


class PolicySession:
    """State of one robot. Made by `PolicyRunner.open_session`.

    Attributes:
        memory: What the policy itself remembers of this robot's episode; None at its beginning.
    """

    def __init__(self, runner: PolicyRunner, preprocessor, postprocessor) -> None:
        self._runner = runner
        self._preprocessor = preprocessor
        self._postprocessor = postprocessor
        self.memory: Memory | None = None

    def infer(
        self,
        observation: Mapping[str, np.ndarray],
        task: str = "",
        robot_type: str = "",
        seed: int | None = None,
    ) -> Inference:
        """The chunk that LeRobot's synchronous engine would have computed for this observation.

        Args:
            observation: Arrays by `runner.inputs`; others are left out.
            task: What the robot shall do, in words.
            robot_type: LeRobot's name of the robot.
            seed: Seed of the policy's noise; None goes on with torch's generator.

        Raises:
            FeatureMismatch: If the observation lacks something or has another shape.
        """
        ((_, outcome),) = self._runner.infer([Request(self, observation, task, robot_type, seed)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def leave_tokenizers(self, processors: tuple) -> None:
        """Give those that a step has loaded at its first call, as GR00T's does, to the processors it is a copy of."""
        own = (self._preprocessor, self._postprocessor)
        for steps, copies in ((one.steps, other.steps) for one, other in zip(processors, own, strict=True)):
            for step, used in zip(steps, copies, strict=True):
                found = {name: value for name, value in vars(used).items() if hasattr(value, "batch_decode")}
                vars(step).update(found)

    def reset(self) -> None:
        """A new episode begins."""
        self._preprocessor.reset()
        self._postprocessor.reset()
        self.memory = None

    @torch.no_grad()
    def preprocess(self, request: Request) -> list[Batch]:
        """A batch of one sample for each of the policy's n_obs_steps time steps, the oldest first.

        If fewer were given, the oldest one is there several times, as in LeRobot's queues.

        Raises:
            FeatureMismatch: If the observation lacks something or has another shape.
        """
        moments = self._moments(request.observation)
        batches = []
        for moment in moments:
            arrays = {name: _owned(array) for name, array in moment.items()}
            batch = prepare_observation_for_inference(
                arrays, self._runner.device, request.task, request.robot_type
            )
            batches.append(self._preprocessor(batch))
        return [batches[0]] * (self._runner.n_obs_steps - len(batches)) + batches

    def postprocess(self, chunk: Tensor) -> np.ndarray:
        """Actions for the robot, (n, dim) float32, of a chunk of the model, (1, n, dim)."""
        # Processors work on any leading dimensions, so one call does the whole chunk.
        actions = self.postprocess_tensor(chunk)
        return np.ascontiguousarray(actions.squeeze(0).cpu().numpy(), dtype=np.float32)

    @torch.no_grad()
    def postprocess_tensor(self, chunk: Tensor) -> Tensor:
        """The postprocessor's output as it is."""
        return self._postprocessor(chunk)

    def guidance(self, request: Request) -> Guidance | None:
        """How the policy shall be guided; None if there is nothing to continue.

        Raises:
            RemoteInferenceError: If the policy has no RTC, or the leftover is not one.
        """
        rtc, left_over = request.rtc, request.left_over
        if rtc is None:
            return None
        kind = self._runner.config.type
        if not self._runner.supports_rtc:
            raise RemoteInferenceError(
                f"policy '{kind}' cannot continue a chunk (RTC): it is not a flow-matching policy with LeRobot's RTC "
                "processor; use --inference.type=sync, or --inference.type=async with --inference.merge=aggregate."
            )
        if left_over is None or not left_over.size:
            return None
        width = self._runner.action_dim
        if left_over.ndim != 2 or left_over.shape[1] != width or left_over.dtype != np.float32:
            raise RemoteInferenceError(
                f"the leftover of the previous chunk is {left_over.dtype} {left_over.shape}, expected float32 (n, {width}) "
                "in the model's units."
            )
        return Guidance(rtc, torch.from_numpy(left_over.copy()).to(self._runner.device))

    def _moments(self, observation: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The wanted arrays at each time step."""
        runner = self._runner
        wanted = {spec.name: observation[spec.name] for spec in runner.inputs if spec.name in observation}
        if runner.n_obs_steps == 1:
            moments = [wanted]
        else:
            lengths = {len(array) if array.ndim else 0 for array in wanted.values()}
            if len(lengths) != 1 or not 1 <= (steps := lengths.pop()) <= runner.n_obs_steps:
                raise FeatureMismatch(
                    f"policy '{runner.config.type}' looks at {runner.n_obs_steps} observations at once: each array "
                    f"needs a leading axis of 1 to {runner.n_obs_steps} steps, the same for all; found "
                    f"{', '.join(f'{name} {array.shape}' for name, array in wanted.items()) or 'nothing'}."
                )
            moments = [{name: array[step] for name, array in wanted.items()} for step in range(steps)]
        # A single sample where a window is wanted would be put to those of this robot's other chunks, by the step.
        check_features((spec.sent for spec in runner.inputs), describe(moments[-1]), runner.config.type)
        return moments


def _owned(array: np.ndarray) -> np.ndarray:
    """An array that torch may keep and write to; a uint8 picture is copied by its conversion to float anyway."""
    if array.dtype == np.uint8 and array.flags.writeable:
        return array
    return array.copy()
