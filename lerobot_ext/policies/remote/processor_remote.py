"""Processors of policy type `remote`: they leave everything as it is, since the server runs the checkpoint's own."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    make_policy_processor_pipelines,
)

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig


def make_remote_pre_post_processors(
    config: RemoteConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Pre- and postprocessor that change nothing but the names in `config.rename_map`.

    Args:
        config: Of the policy.
        dataset_stats: Not used; the checkpoint on the server has its own.
    """
    return make_policy_processor_pipelines(
        input_steps=[RenameObservationsProcessorStep(rename_map=config.rename_map)], output_steps=[]
    )
