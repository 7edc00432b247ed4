"""Where chunks come from: a policy in this process, or one on a server. Both behind the same three names.

When to ask, and what becomes of a chunk, is the engine's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from lerobot.policies.rtc import reanchor_relative_rtc_prefix
from lerobot.policies.utils import populate_queues, prepare_observation_for_inference
from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES, OBS_STR
from lerobot.utils.feature_utils import build_dataset_frame

from lerobot_ext.rollout.guidance import Guidance, guided, supports_guidance
from lerobot_ext.rollout.merge import Actions
from lerobot_ext.rollout.observations import vector_history
from lerobot_ext.rollout.seeds import seeded
from simplify_work.wire.messages import Rtc

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request:
    """What a chunk is asked for with.

    Attributes:
        observations: Processed observations of the robot, one control step apart, the newest last; vectors that the
            source has `windows` of are such.
        rtc: How to continue `left_over`; None without RTC.
        left_over: (n, width) float32, the model's units, row 0 for the newest observation's timestep.
        planned: (n, dim) float32, the same rows in the robot's units.
        seed: Of the policy's noise; None goes on with whatever generator the source has.
    """

    observations: tuple[Mapping[str, Any], ...]
    rtc: Rtc | None = None
    left_over: Actions | None = None
    planned: Actions | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """A chunk.

    Attributes:
        actions: (n, dim) float32, the robot's units.
        model_actions: (n, width) float32, the model's; None if not known.
        figures: What it cost, for the telemetry: seconds by stage, bytes, codec.
    """

    actions: Actions
    model_actions: Actions | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Makes chunks; `infer` and `reset` are called by the engine's threads and may fail with any exception.

    Attributes:
        chunk_size: Actions in a chunk, as far as known before the first.
        n_obs_steps: How many observations `infer` wants, at most.
        windows: Of which vectors `infer` wants the last samples, (n, size), by the robot's names, and how many.
        supports_rtc: Whether a request may have `rtc`.
        ensemble_coeff: ACT's `temporal_ensemble_coeff` if the checkpoint has one.
        patience_s: How long a call may take before it fails by itself; None if there is no such limit.
    """

    chunk_size: int | None
    n_obs_steps: int
    windows: Mapping[str, int]
    supports_rtc: bool
    ensemble_coeff: float | None
    patience_s: float | None

    def reset(self) -> None:
        """A new episode begins, or chunks are wanted again after a failure."""

    def infer(self, request: Request) -> Answer:
        """The chunk for a request."""


class LocalSource:
    """A LeRobot policy in this process, with its processors, computed as LeRobot's own engines do.

    Args:
        policy: On its device, in eval mode.
        preprocessor: The checkpoint's.
        postprocessor: The checkpoint's; a whole chunk goes through it in one call.
        features: Dataset features of the observation, which say what of it the policy gets.
        action_names: The robot's action entries, in the policy's order.
        task: In words.
        robot_type: LeRobot's name.
        device: The policy's.
    """

    patience_s = None

    def __init__(
        self,
        policy: Any,
        preprocessor: Any,
        postprocessor: Any,
        *,
        features: dict,
        action_names: list[str],
        task: str,
        robot_type: str,
        device: str | None,
    ) -> None:
        self._policy, self._preprocessor, self._postprocessor = policy, preprocessor, postprocessor
        self._features, self._task, self._robot_type = features, task, robot_type
        self._device = torch.device(device or "cpu")
        self._lock = threading.Lock()
        self.chunk_size = getattr(policy.config, "chunk_size", None)
        self.n_obs_steps = getattr(policy.config, "n_obs_steps", None) or 1
        self.windows = vector_history(policy, preprocessor)
        self.supports_rtc = supports_guidance(policy, postprocessor)
        self.ensemble_coeff = getattr(policy.config, "temporal_ensemble_coeff", None)
        self._relative = _step(preprocessor, RelativeActionsProcessorStep)
        if self._relative is not None and not self._relative.enabled:
            self._relative = None
        if self._relative is not None and self._relative.action_names is None:
            names = getattr(policy.config, "action_feature_names", None)
            self._relative.action_names = list(names or action_names)

    def reset(self) -> None:
        """Reset policy and processors."""
        with self._lock:
            self._policy.reset()
            self._preprocessor.reset()
            self._postprocessor.reset()

    def infer(self, request: Request) -> Answer:
        """The chunk for a request."""
        with self._lock, torch.no_grad(), self._autocast():
            started = time.perf_counter()
            batch = self._batch(request)
            preprocessed = time.perf_counter()
            with self._guided(request), self._seeded(request):
                chunk = self._policy.predict_action_chunk(batch)
            if len(chunk) > 1:  # TD-MPC's is (n, 1, dim)
                chunk = chunk.transpose(0, 1)
            model_actions = chunk.squeeze(0).float().cpu().numpy().copy()
            inferred = time.perf_counter()
            actions = self._postprocessor(chunk).squeeze(0).float().cpu().numpy()
            done = time.perf_counter()
        figures = {
            "round_trip_s": done - started,
            "preprocess_s": preprocessed - started,
            "infer_s": inferred - preprocessed,
            "postprocess_s": done - inferred,
        }
        return Answer(actions, model_actions, figures)

    def _batch(self, request: Request) -> dict[str, Any]:
        batches = [self._preprocessor(self._prepared(each)) for each in request.observations]
        # At an episode's start the first observation stands for those before it, as LeRobot's own queues have it.
        return observed(self._policy, [batches[0]] * (self.n_obs_steps - len(batches)) + batches)

    def _prepared(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        frame = build_dataset_frame(self._features, observation, prefix=OBS_STR)
        return prepare_observation_for_inference(frame, self._device, self._task, self._robot_type)

    def _guided(self, request: Request) -> AbstractContextManager:
        if request.rtc is None:
            return nullcontext()
        left_over = None if request.left_over is None else torch.from_numpy(request.left_over.copy())
        if left_over is not None and self._relative is not None:
            left_over = self._reanchored(request, left_over)
        return guided(self._policy, [Guidance(request.rtc, left_over)])

    def _seeded(self, request: Request) -> AbstractContextManager:
        return nullcontext() if request.seed is None else seeded(request.seed, self._device)

    def _reanchored(self, request: Request, left_over: torch.Tensor) -> torch.Tensor:
        """A leftover of relative actions, seen from the new observation's state; as LeRobot's RTC engine does it."""
        state = self._relative.get_cached_state()
        if state is None or request.planned is None:
            return left_over
        return reanchor_relative_rtc_prefix(
            prev_actions_absolute=torch.from_numpy(request.planned.copy()),
            current_state=state,
            relative_step=self._relative,
            normalizer_step=_step(self._preprocessor, NormalizerProcessorStep),
            policy_device=self._device,
        )

    def _autocast(self) -> AbstractContextManager:
        # As LeRobot's SyncInferenceEngine does it.
        if self._device.type == "cuda" and getattr(self._policy.config, "use_amp", False):
            return torch.autocast(self._device.type)
        return nullcontext()


class RemoteSource:
    """A policy of type `remote`: arrays to the server, chunks back, no tensors on the way.

    Args:
        policy: A `RemotePolicy`, which renames observations itself.
        features: Dataset features of the observation.
        task: In words.
    """

    def __init__(self, policy: Any, *, features: dict, task: str) -> None:
        self._policy, self._features, self._task = policy, features, task
        self.chunk_size = policy.welcome.chunk_size or None
        self.n_obs_steps = policy.welcome.n_obs_steps
        self.windows = vector_history(policy, None)
        self.supports_rtc = policy.welcome.supports_rtc
        self.ensemble_coeff = policy.welcome.temporal_ensemble_coeff
        self.patience_s = policy.config.timeout_s
        self._lock = threading.Lock() if self.n_obs_steps > 1 else nullcontext()

    def reset(self) -> None:
        """Tell the server; a server that was away is met again by this."""
        self._policy.reset()

    def infer(self, request: Request) -> Answer:
        """The chunk for a request."""
        *earlier, newest = (self._arrays(observation) for observation in request.observations)
        # The policy remembers what it was shown, so two requests must not mix their pasts.
        with self._lock:
            for arrays in earlier:
                self._policy.observe(arrays)
            chunk = self._policy.infer(newest, self._task, request.rtc, request.left_over, request.seed)
        return Answer(chunk.actions, chunk.model_actions, chunk.figures)

    def _arrays(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return build_dataset_frame(self._features, observation, prefix=OBS_STR)


def observed(policy: Any, batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `predict_action_chunk` takes, for a policy that looks at one or several observations.

    Policies with queues get their queues filled as `select_action` would have; others get the observations stacked,
    (1, n_obs_steps, …), as in training.

    Args:
        policy: A LeRobot policy.
        batches: Preprocessed, one for each of its observation steps, the oldest first.
    """
    queues = {
        name: queue for name, queue in (getattr(policy, "_queues", None) or {}).items() if name != ACTION
    }
    if not queues:
        if len(batches) == 1:
            return batches[0]
        looked_at = policy.config.input_features
        return {
            key: torch.stack([batch[key] for batch in batches], dim=1) if key in looked_at else value
            for key, value in batches[-1].items()
        }
    for queue in queues.values():
        queue.clear()
    for batch in batches:
        batch = {key: value for key, value in batch.items() if key != ACTION}
        pictures = [batch[key] for key in policy.config.image_features]
        if OBS_IMAGES in queues:
            batch[OBS_IMAGES] = torch.stack(pictures, dim=-4)
        if OBS_IMAGE in queues:
            batch[OBS_IMAGE] = pictures[0]
        populate_queues(policy._queues, batch, exclude_keys=[ACTION])
    return batch


def _step(pipeline: Any, kind: type) -> Any:
    return next((step for step in getattr(pipeline, "steps", ()) if isinstance(step, kind)), None)
