"""From the folder of a checkpoint to LeRobot's config, policy and processors; whatever is wrong is one sentence."""

from __future__ import annotations

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.device_utils import is_torch_device_available

from lerobot_ext.errors import UserError
from simplify_work.server import checkpoint
from simplify_work.server.checkpoint import looks_like_hub_name


def load_config(path: str, device: str | None) -> PreTrainedConfig:
    """The policy's config, for `device` if one is given.

    Raises:
        UserError: If it cannot be read, the device is not there, or the policy cannot be served.
    """
    if device is not None:
        try:
            available = is_torch_device_available(device)
        except ValueError:
            available = False
        if not available:
            raise UserError(
                f"device '{device}' is not available on this machine; leave out --device, or give cpu."
            )
    try:
        config = PreTrainedConfig.from_pretrained(path)
    except Exception as error:  # draccus, the hub and LeRobot each raise their own
        where = (
            "neither a folder here nor a name that the hub gives"
            if looks_like_hub_name(path)
            else "its values"
        )
        raise UserError(
            f"the config of checkpoint {path} cannot be used ({where}): {first_line(error)}"
        ) from error
    if device is not None:
        config.device = device
    if config.use_peft:
        raise UserError(f"checkpoint {path} is a PEFT adapter; merge it into its base model and serve that.")
    if config.action_feature is None or not config.input_features:
        raise UserError(
            f"the config of checkpoint {path} names no input features or no action; was it trained?"
        )
    return config


def load_policy(path: str, config: PreTrainedConfig) -> torch.nn.Module:
    """The policy with its weights, on the config's device, for inference.

    Raises:
        UserError: If the weights do not fit.
    """
    try:
        policy = get_policy_class(config.type).from_pretrained(path, config=config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the weights of checkpoint {path} cannot be loaded as policy '{config.type}': {first_line(error)}"
        ) from error
    policy = policy.to(config.device).eval()
    if config.device == "cpu":
        # torch's convolutions of one small picture are twice as fast in this order of the weights. Not by
        # `policy.to`, which fails where there are three-dimensional ones, as in GR00T's backbone.
        for weights in policy.parameters():
            if weights.ndim == 4:
                weights.data = weights.data.to(memory_format=torch.channels_last)
    return policy


def load_processors(path: str, config: PreTrainedConfig) -> tuple:
    """The checkpoint's preprocessor and postprocessor.

    Raises:
        UserError: If they cannot be built.
    """
    overrides = {}
    if looks_like_hub_name(path) or checkpoint.has_step(path, checkpoint.PREPROCESSOR, "device_processor"):
        overrides["device_processor"] = {"device": config.device}
    try:
        return make_pre_post_processors(
            policy_cfg=config, pretrained_path=path, preprocessor_overrides=overrides
        )
    except Exception as error:
        raise UserError(
            f"the processors of checkpoint {path} cannot be loaded: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """One line for an error, with its innermost cause: draccus, for one, says only there what was wrong."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [
        f"{type(each).__name__}: {next(iter(str(each).strip().splitlines()), '')}" for each in (error, cause)
    ]
    return lines[0] if cause is error else " ".join(lines)
