"""Force as a window of samples: how many, which ones, and what a policy must be to take them.

The window itself is made by the dataset's reader in training and by `ModalityStep` at the robot, or by whoever sends
one ready; the token that the network makes of it is in `lerobot_ext.policies.force_token`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lerobot_ext.errors import UserError
from lerobot_ext.features import FORCE, OBS_FORCE
from lerobot_ext.modality.selection import Selection

TOKEN_POLICIES = ("smolvla",)


def force_deltas(selection: Selection) -> list[int] | None:
    """Frames of `observation.force` that belong to one frame, -(H - 1) to 0; None: only its own, as recorded."""
    if selection.force is None or not selection.force.is_token:
        return None
    return list(range(1 - selection.force.force_history, 1))


def with_force_deltas(
    deltas: Mapping[str, list[int]] | None, selection: Selection
) -> dict[str, list[int]] | None:
    """LeRobot's delta indices with those of the force window, whatever the policy asks for other keys.

    Args:
        deltas: By key; None: each frame alone.
        selection: What the policy sees.
    """
    window = force_deltas(selection)
    if window is None:
        return None if deltas is None else dict(deltas)
    return {**(deltas or {}), OBS_FORCE: window}


def check_policy(policy_cfg: Any, selection: Selection) -> None:
    """Refuse a policy that would ignore a window of force.

    Raises:
        UserError: Names the policies that take one, and what the others take.
    """
    if force_deltas(selection) is not None and policy_cfg.type not in TOKEN_POLICIES:
        raise UserError(
            f"modality.force.fusion 'token' is for {', '.join(TOKEN_POLICIES)}, the policy is {policy_cfg.type}; "
            "choose fusion 'state', which any policy takes."
        )


def prepare_policy(policy_cfg: Any, selection: Selection, features: Mapping[str, Mapping[str, Any]]) -> None:
    """Bring a policy's config into line with how force reaches the network; before the policy is made.

    With a token, force is normalised by mean and standard deviation unless the config says otherwise. A config that
    comes from a pretrained policy names its inputs already, and LeRobot leaves them as they are: the shapes of force
    and of the state that it may be joined to are set here.

    Args:
        policy_cfg: LeRobot's config of the policy; changed in place.
        selection: What the policy sees.
        features: LeRobot features of what the network gets (`plan.network_features`).
    """
    from lerobot.configs import NormalizationMode
    from lerobot.utils.feature_utils import dataset_to_policy_features

    if selection.force is None:
        return
    token = selection.force.is_token
    if token:
        policy_cfg.normalization_mapping.setdefault(FORCE.upper(), NormalizationMode.MEAN_STD)
    if policy_cfg.input_features:
        key = OBS_FORCE if token else "observation.state"
        policy_cfg.input_features[key] = dataset_to_policy_features({key: dict(features[key])})[key]


class ForceHistory:
    """The last samples of force, one control step apart, for one or several robots in step.

    Args:
        length: How many samples are in a window.
    """

    def __init__(self, length: int) -> None:
        self._seen: deque[Tensor] = deque(maxlen=length)

    def add(self, sample: Tensor) -> Tensor:
        """Remember the sample of this control step.

        Args:
            sample: (n,), or (B, n) for B robots. Another B than before begins anew: its rows are other robots.

        Returns:
            (B, length, n), the newest last; the first sample of an episode stands for those before it.
        """
        sample = sample.reshape(-1, sample.shape[-1])
        if self._seen and self._seen[-1].shape != sample.shape:
            self._seen.clear()
        self._seen.append(sample.clone())
        missing = self._seen.maxlen - len(self._seen)
        return torch.stack([self._seen[0]] * missing + list(self._seen), dim=-2)

    def clear(self) -> None:
        """A new episode begins."""
        self._seen.clear()
