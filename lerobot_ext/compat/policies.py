"""Policies: SmolVLA with force as a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lerobot_ext.extension import Extension
from lerobot_ext.features import OBS_FORCE


def window_of(config: Any) -> tuple[int, int] | None:
    """Shape (H, n) of the force that a policy takes as a token; None if it takes none so."""
    feature = (config.input_features or {}).get(OBS_FORCE)
    return tuple(feature.shape) if feature is not None and len(feature.shape) == 2 else None


def _flow_matching(original: Callable) -> Callable:
    # Copies and pickles call it without a config; their class is decided already.
    def __new__(cls: type, config: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if config is None or window_of(config) is None:
            return object.__new__(cls)
        from lerobot_ext.policies.force_token import ForceFlowMatching

        return object.__new__(ForceFlowMatching if issubclass(ForceFlowMatching, cls) else cls)

    return __new__


def _prepare_state(original: Callable) -> Callable:
    def prepare_state(self: Any, batch: dict) -> Any:
        state = original(self, batch)
        window = window_of(self.config)
        if window is None:
            return state
        from lerobot_ext.policies.force_token import with_window

        return with_window(state, batch, window)

    return prepare_state


def _peft_targets(original: Callable) -> Callable:
    def _get_default_peft_targets(self: Any) -> dict:
        targets = original(self)
        if window_of(self.config) is None:
            return targets
        # A fresh token has nothing to adapt: it is trained whole, and saved beside the adapter.
        return {**targets, "modules_to_save": [*targets["modules_to_save"], "force_token"]}

    return _get_default_peft_targets


EXTENSIONS = (
    Extension(
        "lerobot.policies.smolvla.modeling_smolvla",
        "VLAFlowMatching.__new__",
        "Ignores force: a policy whose `observation.force` is a window of samples gets the model with a token for it.",
        "config rtc_processor",
        _flow_matching,
    ),
    Extension(
        "lerobot.policies.smolvla.modeling_smolvla",
        "SmolVLAPolicy.prepare_state",
        "Hands the state to the model and nothing else of the batch's vectors: the window of force goes along.",
        "self batch",
        _prepare_state,
    ),
    Extension(
        "lerobot.policies.smolvla.modeling_smolvla",
        "SmolVLAPolicy._get_default_peft_targets",
        "Names the layers that an adapter changes: the force token, which is new, is trained whole.",
        "self",
        _peft_targets,
    ),
)
