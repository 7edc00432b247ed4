"""Processors of policy type `remote`: they leave the observation as it is, since the server runs the checkpoint's own.

Only in RTC mode, where LeRobot's engine wants the model's actions and postprocesses them itself, is there a step: the
postprocessor that the server sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    PolicyAction,
    PolicyActionProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    RenameObservationsProcessorStep,
    make_policy_processor_pipelines,
)

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig


@ProcessorStepRegistry.register("remote_affine_postprocessor")
@dataclass
class AffinePostprocessorStep(PolicyActionProcessorStep):
    """`action * scale + offset`, entry by entry, computed in float64.

    Every normalisation of LeRobot (mean and standard deviation, minimum and maximum, quantiles) is undone by such a
    step; the server says with which numbers.

    Attributes:
        scale: One for each entry of an action.
        offset: One for each entry of an action, in the robot's units.
    """

    scale: Sequence[float] = ()
    offset: Sequence[float] = ()

    def __post_init__(self) -> None:
        self._scale, self._offset = (
            torch.as_tensor(values, dtype=torch.float64) for values in (self.scale, self.offset)
        )

    def action(self, action: PolicyAction) -> PolicyAction:
        """The actions in the robot's units.

        Args:
            action: (…, dim) in the model's units.

        Returns:
            The same shape and dtype.
        """
        scaled = action.to("cpu", torch.float64) * self._scale + self._offset
        return scaled.to(action.device, action.dtype)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Names and shapes stay."""
        return features

    def get_config(self) -> dict[str, Any]:
        """What makes it again."""
        return {"scale": [float(x) for x in self.scale], "offset": [float(x) for x in self.offset]}


def make_remote_pre_post_processors(
    config: RemoteConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """A preprocessor that changes nothing but the names in `config.rename_map`, and the postprocessor, if there is one.

    Args:
        config: Of the policy; in RTC mode `RemotePolicy.init_rtc_processor` has left the postprocessor there.
        dataset_stats: Not used; the checkpoint on the server has its own.
    """
    output_steps = []
    if config.rtc_postprocessor is not None:
        output_steps.append(AffinePostprocessorStep(*config.rtc_postprocessor))
    return make_policy_processor_pipelines(
        input_steps=[RenameObservationsProcessorStep(rename_map=config.rename_map)], output_steps=output_steps
    )
