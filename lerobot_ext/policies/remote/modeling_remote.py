"""A LeRobot policy without weights: sends the observation to a server and executes the chunk that comes back.

The connection is `simplify_work.local`'s; how the server infers is nobody's business here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.features import given_features
from lerobot_ext.rollout.ensemble import TemporalEnsemble
from simplify_work.local.batch import observation_from_batch, task_of
from simplify_work.local.client import ActionChunk, PolicyClient
from simplify_work.local.history import History
from simplify_work.wire.errors import ServerUnreachable
from simplify_work.wire.features import FeatureSpec, check_features, check_observation
from simplify_work.wire.messages import Rtc, Welcome

logger = logging.getLogger(__name__)


class RemotePolicy(PreTrainedPolicy):
    """Policy type `remote`.

    Connects when it is made, which LeRobot's rollout does before it touches the robot: a server that is not there is
    an error while nothing moves yet.

    Attributes:
        welcome: What the server serves.

    Raises:
        ServerUnreachable: If nobody answers within `config.connect_timeout_s`.
        RemoteError: If the server refuses.
    """

    config_class = RemoteConfig
    name = "remote"

    def __init__(self, config: RemoteConfig, **kwargs: Any) -> None:
        super().__init__(config)
        self._client = PolicyClient(
            config.address,
            timeout_s=config.timeout_s,
            connect_timeout_s=config.connect_timeout_s,
            keys=config.keys,
            codec=config.codec,
            jpeg_quality=config.jpeg_quality,
            shrink=config.shrink,
        )
        # LeRobot closes no policy; the server shall hear of its end all the same.
        self._end = weakref.finalize(self, self._client.close)
        self._queue: deque[Tensor] = deque()
        self._chunks = 0
        self._rtc = False
        self.welcome: Welcome = self._client.connect()
        self._history = History(
            self.welcome.n_obs_steps, {spec.name: spec.history for spec in self.welcome.inputs}
        )
        if self.welcome.action_names and not getattr(config, "action_feature_names", None):
            # LeRobot's rollout asks the config for the order of the action's entries.
            config.action_feature_names = list(self.welcome.action_names)
        coeff = self.welcome.temporal_ensemble_coeff
        self._ensemble = (
            TemporalEnsemble(coeff) if coeff is not None and (config.n_action_steps or 1) == 1 else None
        )
        logger.info(
            "remote policy: %s at %s, chunks of %d, %s",
            self.welcome.policy_type,
            config.address,
            self.welcome.chunk_size,
            f"{self.n_action_steps} of them executed"
            if self._ensemble is None
            else f"one a step, ensembled with coefficient {coeff:g}",
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path | None = None,
        *,
        config: RemoteConfig | None = None,
        **kwargs: Any,
    ) -> RemotePolicy:
        """The policy of `config`; there are no weights, so the path matters only where there is no config."""
        if config is None:
            config = RemoteConfig.from_pretrained(pretrained_name_or_path)
        return cls(config).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        self.config._save_pretrained(save_directory)

    @property
    def n_action_steps(self) -> int:
        """Actions of a chunk that are executed before the next is asked for."""
        return self.config.n_action_steps or self.welcome.n_action_steps

    def required_history(self) -> dict[str, int]:
        """Of which of the robot's vectors the last samples are wanted, one control step apart, and how many."""
        renamed = {new: old for old, new in self.config.rename_map.items()}
        return {
            renamed.get(spec.name, spec.name): spec.history
            for spec in self.welcome.inputs
            if spec.history > 1
        }

    def supports_rtc(self) -> bool:
        """True if the server's policy can continue a chunk; LeRobot asks this before it runs RTC."""
        if not self.welcome.supports_rtc:
            logger.info(
                "policy '%s' at %s has no RTC, which takes a flow-matching policy such as smolvla or pi0; use "
                "--inference.type=async or sync",
                self.welcome.policy_type,
                self.config.address,
            )
        return self.welcome.supports_rtc

    def init_rtc_processor(self) -> None:
        """From now on chunks are in the model's units, and the postprocessor runs here: LeRobot's engine wants that.

        LeRobot's rollout calls it after it set `config.rtc_config`, and then makes the processors for that config.

        Raises:
            ValueError: If the server's policy has no RTC, or its postprocessor cannot run here.
        """
        where = f"policy '{self.welcome.policy_type}' at {self.config.address}"
        if not self.welcome.supports_rtc:
            raise ValueError(f"{where} has no RTC; use --inference.type=async or sync.")
        if self._client.postprocessor is None:
            raise ValueError(
                f"{where} has a postprocessor that is not scale and offset of each action entry, so it cannot run at "
                "the robot, as --inference.type=rtc needs; use --inference.type=async, which leaves it to the server."
            )
        self.config.rtc_postprocessor = tuple(array.tolist() for array in self._client.postprocessor)
        self._rtc = True

    def check_features(self, observation_features: Mapping[str, Any]) -> None:
        """Compare what the policy wants with what a robot gives, before it moves.

        Args:
            observation_features: `robot.observation_features`.

        Raises:
            FeatureMismatch: Listing both.
        """
        renamed = self.config.rename_map
        given = [
            FeatureSpec(renamed.get(spec.name, spec.name), spec.kind, spec.shape, spec.dtypes)
            for spec in given_features(observation_features)
        ]
        check_features(self.welcome.inputs, given, self.welcome.policy_type)

    def close(self) -> None:
        """End the session with the server, at the latest when the policy is collected."""
        self._end()

    def reset(self) -> None:
        """A new episode begins, here and on the server.

        Raises:
            RemoteError: If the server is not there any more.
        """
        self._queue.clear()
        if self._ensemble is not None:
            self._ensemble.reset()
        self._history.clear()
        self._chunks = 0
        self._client.reset()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Ask the server for a chunk.

        Args:
            batch: One observation as LeRobot's `prepare_observation_for_inference` makes it; pictures that were
                uint8 are sent as that uint8, everything else as it is. A vector of which the policy wants the last
                samples is a window (1, history, n); or one sample, put to those of the calls before, which then
                must be one control step apart.
            inference_delay: In RTC mode, steps that will have been executed when the chunk is there.
            prev_chunk_left_over: In RTC mode, (n, dim) or (1, n, dim) of the last chunk, in the model's units.
            execution_horizon: In RTC mode, instead of the one of `config.rtc_config`.

        Returns:
            (1, n, dim) float32 on the CPU, in the robot's units: the server has postprocessed it. In RTC mode (after
            `init_rtc_processor`) in the model's units.

        Raises:
            ValueError: If something for RTC is given out of RTC mode.
            RemoteError: One of its kinds, see `PolicyClient.infer`.
        """
        return self._next_chunk(
            self._history.add(self._observation(batch)),
            task_of(batch),
            inference_delay=inference_delay,
            prev_chunk_left_over=prev_chunk_left_over,
            execution_horizon=execution_horizon,
        )

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action, (1, dim).

        Asks the server when the last chunk's `n_action_steps` are used up; at each step if the checkpoint has ACT's
        temporal ensembling (`welcome.temporal_ensemble_coeff`), and then it is the mean of what the chunks say.
        """
        if not self._queue or self._history.length > 1:
            observation = self._history.add(self._observation(batch))
        elif self._history.windows:
            self._history.remember(self._samples(batch))
        if not self._queue:
            chunk = self._next_chunk(observation, task_of(batch), **kwargs)
            if self._ensemble is not None:
                return torch.from_numpy(self._ensemble.add(chunk.squeeze(0).numpy())).unsqueeze(0)
            self._queue.extend(chunk[:, : self.n_action_steps].transpose(0, 1))
        return self._queue.popleft()

    def observe(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Remember an observation for which no chunk is asked.

        Needed at each control step where `welcome.n_obs_steps` or the `history` of one of `welcome.inputs` is above
        1, and only there.

        Args:
            arrays: As `infer`.
        """
        if self._history.length > 1:
            self._history.add(self._wanted(arrays))
        elif self._history.windows:
            self._history.remember(self._wanted(arrays))

    def infer(
        self,
        arrays: Mapping[str, np.ndarray],
        task: str = "",
        rtc: Rtc | None = None,
        left_over: np.ndarray | None = None,
        seed: int | None = None,
    ) -> ActionChunk:
        """Ask the server for a chunk, without torch and without conversions.

        May be called from several threads at once.

        Args:
            arrays: The observation by LeRobot's keys: pictures (H, W, 3) uint8, depth (H, W, 1) uint16 or float32,
                vectors (n,) float32, or the window (history, n) of one that has a history, which is then sent as it
                is. Not to be written to afterwards where `welcome.n_obs_steps` is above 1.
            task: What the robot shall do, in words.
            rtc: How to continue `left_over`.
            left_over: (n, dim) float32, what is left of the last chunk's `model_actions`.
            seed: Of the policy's noise; that of `config.seed` if None.

        Returns:
            The chunk in the robot's units, `config.actions_per_chunk` of it; with `model_actions` if the server's
            policy has RTC.

        Raises:
            RemoteError: One of its kinds, see `PolicyClient.infer`.
        """
        observation = self._history.add(self._wanted(arrays))
        return self._infer(observation, task, rtc, left_over, self.welcome.supports_rtc, seed=seed)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        """Refuse: there is nothing to train.

        Raises:
            ValueError: Always.
        """
        self.config.get_optimizer_preset()

    def get_optim_params(self) -> dict:
        """Refuse: there is nothing to train.

        Raises:
            ValueError: Always.
        """
        self.config.get_optimizer_preset()

    def _next_chunk(
        self, observation: dict[str, np.ndarray], task: str, **rtc_arguments: int | Tensor | None
    ) -> Tensor:
        """The chunk for an observation, (1, n, dim)."""
        if not self._rtc:
            if given := sorted(key for key, value in rtc_arguments.items() if value is not None):
                raise ValueError(
                    f"policy type 'remote' passes on {', '.join(given)} in RTC mode only; use --inference.type=rtc."
                )
            return torch.from_numpy(self._infer_until_deadline(observation, task).actions).unsqueeze(0)
        rtc = self._rtc_of(**rtc_arguments)
        left_over = rtc_arguments.get("prev_chunk_left_over") if rtc is not None else None
        if left_over is not None:
            left_over = left_over.detach().to("cpu", torch.float32).numpy()
            left_over = left_over.reshape(left_over.shape[-2:])
        chunk = self._infer(observation, task, rtc, left_over, model_actions=True)
        return torch.from_numpy(chunk.model_actions).unsqueeze(0)

    def _rtc_of(
        self,
        inference_delay: int | None = None,
        execution_horizon: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
    ) -> Rtc | None:
        """LeRobot's settings as the server takes them; None where they are switched off."""
        settings = self.config.rtc_config
        if settings is None or not settings.enabled:
            return None
        return Rtc(
            inference_delay=inference_delay or 0,
            execution_horizon=execution_horizon or settings.execution_horizon,
            schedule=settings.prefix_attention_schedule.name.lower(),
            max_guidance_weight=float(settings.max_guidance_weight),
        )

    def _infer_until_deadline(self, observation: dict[str, np.ndarray], task: str) -> ActionChunk:
        """A chunk for a robot that stands still meanwhile: a connection that broke is not the end of it."""
        deadline = time.monotonic() + self.config.timeout_s
        while True:
            try:
                return self._infer(observation, task, timeout_s=max(0.0, deadline - time.monotonic()))
            except ServerUnreachable as error:
                if time.monotonic() >= deadline:
                    raise
                logger.warning("%s", error)

    def _infer(
        self,
        observation: dict[str, np.ndarray],
        task: str,
        rtc: Rtc | None = None,
        left_over: np.ndarray | None = None,
        model_actions: bool = False,
        timeout_s: float | None = None,
        seed: int | None = None,
    ) -> ActionChunk:
        chunk = self._client.infer(
            observation,
            task=task,
            robot_type=self.config.robot_type,
            seed=self._seed() if seed is None else seed,
            rtc=rtc,
            left_over=left_over,
            model_actions=model_actions,
            timeout_s=timeout_s,
        )
        self._chunks += 1
        self._record(chunk)
        kept = self.config.actions_per_chunk
        if kept is None:
            return chunk
        model = None if chunk.model_actions is None else chunk.model_actions[:kept]
        return dataclasses.replace(chunk, actions=chunk.actions[:kept], model_actions=model)

    def _seed(self) -> int | None:
        return None if self.config.seed is None else self.config.seed + self._chunks

    def _observation(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return observation_from_batch(batch, self.welcome.inputs, self.welcome.policy_type)

    def _samples(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Those vectors of a batch of which the last samples are sent."""
        inputs = (spec for spec in self.welcome.inputs if spec.name in self._history.windows)
        return observation_from_batch(batch, inputs, self.welcome.policy_type)

    def _wanted(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of a robot's arrays that the policy wants, by its names."""
        renamed = {new: old for old, new in self.config.rename_map.items()}
        names = ((spec.name, renamed.get(spec.name, spec.name)) for spec in self.welcome.inputs)
        found = {name: arrays[own] for name, own in names if own in arrays}
        check_observation(self.welcome.inputs, found, self.welcome.policy_type)
        return found

    def _record(self, chunk: ActionChunk) -> None:
        if self.config.telemetry_path is None:
            return
        line = {"chunk": self._chunks} | chunk.figures
        with open(self.config.telemetry_path, "a") as file:
            file.write(json.dumps(line) + "\n")
