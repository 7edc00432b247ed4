"""A LeRobot policy without weights: sends the observation to a server and executes the chunk that comes back.

The connection is `simplify_work.local`'s; how the server infers is nobody's business here.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE, OBS_STR
from torch import Tensor

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from simplify_work.local.batch import observation_from_batch, task_of
from simplify_work.local.client import ActionChunk, PolicyClient
from simplify_work.wire.features import DTYPES, FeatureSpec, check_features, kind_of
from simplify_work.wire.messages import Welcome

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
            config.address, timeout_s=config.timeout_s, connect_timeout_s=config.connect_timeout_s
        )
        # Nobody closes a policy; the server shall hear of its end all the same.
        weakref.finalize(self, self._client.close)
        self._queue: deque[Tensor] = deque()
        self._chunks = 0
        self.welcome: Welcome = self._client.connect()
        if self.welcome.action_names and not getattr(config, "action_feature_names", None):
            # LeRobot's rollout asks the config for the order of the action's entries.
            config.action_feature_names = list(self.welcome.action_names)
        logger.info(
            "remote policy: %s at %s, chunks of %d, %d of them executed",
            self.welcome.policy_type,
            config.address,
            self.welcome.chunk_size,
            self.n_action_steps,
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

    def reset(self) -> None:
        """A new episode begins, here and on the server.

        Raises:
            RemoteError: If the server is not there any more.
        """
        self._queue.clear()
        self._chunks = 0
        self._client.reset()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Ask the server for a chunk.

        Args:
            batch: One observation as LeRobot's `prepare_observation_for_inference` makes it; pictures that were
                uint8 are sent as that uint8, everything else as it is.
            kwargs: Must be empty; what a policy may be told beyond the observation is not sent yet.

        Returns:
            (1, n, dim) float32 on the CPU, in the robot's units: the server has postprocessed it.

        Raises:
            RemoteError: One of its kinds, see `PolicyClient.infer`.
        """
        if given := sorted(key for key, value in kwargs.items() if value is not None):
            raise ValueError(
                f"policy type 'remote' cannot pass on {', '.join(given)}; use --inference.type=sync."
            )
        observation = observation_from_batch(batch, self.welcome.inputs, self.welcome.policy_type)
        seed = None if self.config.seed is None else self.config.seed + self._chunks
        chunk = self._client.infer(
            observation, task=task_of(batch), robot_type=self.config.robot_type, seed=seed
        )
        self._chunks += 1
        self._record(chunk)
        return torch.from_numpy(chunk.actions[: self.config.actions_per_chunk]).unsqueeze(0)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action, (1, dim); asks the server when the last chunk's `n_action_steps` are used up."""
        if not self._queue:
            actions = self.predict_action_chunk(batch, **kwargs)[:, : self.n_action_steps]
            self._queue.extend(actions.transpose(0, 1))
        return self._queue.popleft()

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

    def _record(self, chunk: ActionChunk) -> None:
        if self.config.telemetry_path is None:
            return
        durations = chunk.durations
        line = {
            "chunk": self._chunks,
            "round_trip_s": chunk.round_trip_s,
            "queue_s": durations.queue_s,
            "preprocess_s": durations.preprocess_s,
            "infer_s": durations.infer_s,
            "postprocess_s": durations.postprocess_s,
        }
        with open(self.config.telemetry_path, "a") as file:
            file.write(json.dumps(line) + "\n")


def given_features(observation_features: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """What a robot's `observation_features` become on the wire.

    Args:
        observation_features: `float` for a joint (those ending `.pos` or `.vel` are the state, as in LeRobot's
            rollout), (H, W, 3) for a camera, (H, W, 1) for depth, (n,) for a vector.
    """
    joints = [
        key
        for key, value in observation_features.items()
        if value is float and key.endswith((".pos", ".vel"))
    ]
    specs = [FeatureSpec(OBS_STATE, "vector", (len(joints),), DTYPES["vector"])] if joints else []
    for key, value in observation_features.items():
        if isinstance(value, tuple):
            kind, shape = kind_of(value), tuple(value)
            prefix = OBS_STR if kind == "vector" else OBS_IMAGES
            specs.append(FeatureSpec(f"{prefix}.{key}", kind, shape, DTYPES[kind]))
    return tuple(specs)
