"""SmolVLA with force as a token: the last samples of a force sensor, embedded into one token beside the actions.

Here are the network's parts; which policies get them is in `compat.policies` (a config whose `observation.force` has
two dimensions), and where a window of samples comes from is in `lerobot_ext.modality`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from torch import Tensor, nn

from lerobot_ext.errors import UserError
from lerobot_ext.features import OBS_FORCE

logger = logging.getLogger(__name__)

WIDTH = 256
"""Width of the layer between a window of force and its token."""


class ForceToken(nn.Module):
    """All parameters that the token adds to a SmolVLA.

    Attributes:
        embed: From a window (B, H * n) to the token (B, width of the action expert).
        values: For each layer in which actions see the token (by its index): from the token to what the actions
            get from it, (B, heads * size of a head). It starts at zero, so it learns before anything else changes.
    """

    def __init__(self, window: int, width: int, attention: int, layers: list[int]) -> None:
        """Make it for windows of `window` numbers, tokens of `width` and attention outputs of `attention`."""
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(window, WIDTH), nn.SiLU(), nn.Linear(WIDTH, width))
        self.values = nn.ModuleDict({str(layer): nn.Linear(width, attention, bias=False) for layer in layers})
        for value in self.values.values():
            nn.init.zeros_(value.weight)

    def forward(self, force: Tensor) -> Tensor:
        """The token (B, 1, width) of windows (B, H * n)."""
        return self.embed(force)[:, None]


@dataclass
class _Call:
    """One call's token: kept in no module's parameters, and gone when the call is over.

    Attributes:
        token: (B, 1, width).
        values: `ForceToken.values`.
        actions: How many actions there are.
        layer: The layer that is being computed, if actions see the token in it.
        value: What they get there from the token, (B, heads * size of a head).
        memory: For each such layer, once computed, the token's key and value, each (B, heads, size of a head).
    """

    token: Tensor
    values: Mapping[str, nn.Module]
    actions: int = 0
    layer: int | None = None
    value: Tensor | None = None
    memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class ForceExpert(SmolVLMWithExpertModel):
    """LeRobot's pair of vision-language model and action expert, with a token in front of the actions.

    The token has the place of the first action, so that the actions keep theirs. It sees what the first action sees
    of the images, the task and the state, and itself. Actions see it in the layers in which they see each other:
    LeRobot's attention is computed without it, and `share * value` is added, where `share = sigmoid(q k / sqrt(d))`
    is computed from the expert's own queries and keys and `value` starts at zero. Unlike in a softmax among hundreds
    of keys, the share is about one half at the start, so that the first gradients are not lost.

    The token sees no action, so it is the same in each denoising step, and is computed in the first one only.
    """

    _call: _Call | None = None

    @contextmanager
    def seeing(self, token: Tensor, values: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within it, the actions of one prefix see this token (B, 1, width)."""
        self._call = _Call(token, values)
        try:
            yield
        finally:
            self._call = None

    def forward(
        self,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: list[Tensor | None] | None = None,
        use_cache: bool | None = None,
    ) -> tuple[list[Tensor | None], Any]:
        """LeRobot's forward; of the token, which is cut off again, nothing is seen outside."""
        prefix, actions = inputs_embeds
        call = self._call
        if actions is not None and call is None:
            raise RuntimeError("the force token is missing: call the model's forward or sample_actions.")
        if actions is None or call.memory:
            return super().forward(attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        call.actions = actions.shape[1]
        outputs, past_key_values = super().forward(
            _with_token(attention_mask, call.actions),
            _twice(position_ids, call.actions),
            past_key_values,
            [prefix, torch.cat([call.token.to(actions.dtype), actions], dim=1)],
            use_cache,
        )
        return [outputs[0], outputs[1][:, 1:]], past_key_values

    def forward_attn_layer(
        self, model_layers: list, inputs_embeds: list, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Tensor], Any]:
        """LeRobot's self-attention, in which the actions also get their share of the token."""
        expert, suffix = model_layers[1][layer_idx], inputs_embeds[1]
        if expert is None or suffix is None:
            return super().forward_attn_layer(model_layers, inputs_embeds, layer_idx, *args, **kwargs)
        call = self._call
        if layer_idx not in call.memory:
            project = call.values[str(layer_idx)]
            token = expert.input_layernorm(suffix[:, 0])
            call.value = project(token.to(project.weight.dtype))
        call.layer = layer_idx
        try:
            return super().forward_attn_layer(model_layers, inputs_embeds, layer_idx, *args, **kwargs)
        finally:
            call.layer = None

    def eager_attention_forward(
        self,
        attention_mask: Tensor,
        batch_size: int,
        head_dim: int,
        query_states: Tensor,
        key_states: Tensor,
        value_states: Tensor,
    ) -> Tensor:
        """LeRobot's attention of (B, L, heads, size) to (B, L, heads * size), and the token's share."""
        output = super().eager_attention_forward(
            attention_mask, batch_size, head_dim, query_states, key_states, value_states
        )
        call = self._call
        if call is None or call.layer is None:
            return output
        n, heads = call.actions, self.num_attention_heads
        if call.layer not in call.memory:
            key = key_states[:, -n - 1].repeat_interleave(heads // self.num_key_value_heads, dim=1)
            value = call.value.view(batch_size, heads, head_dim)
            call.memory[call.layer] = key.float() * head_dim**-0.5, value.float()
        key, value = call.memory[call.layer]
        share = torch.sigmoid(torch.einsum("blhd,bhd->blh", query_states[:, -n:].float(), key))
        seen = (share[..., None] * value[:, None]).flatten(2).to(output.dtype)
        return torch.cat([output[:, :-n], output[:, -n:] + seen], dim=1)


class ForceFlowMatching(VLAFlowMatching):
    """LeRobot's SmolVLA model with a token of force; `state` carries the window behind its padded numbers.

    A checkpoint without the token loads into it: everything of the checkpoint is kept, the token starts anew, and as
    its values start at zero the model then does what the checkpoint did.
    """

    def __init__(self, config: Any, rtc_processor: Any = None) -> None:
        """Make LeRobot's model, then, so that its random numbers stay LeRobot's, the token.

        Raises:
            UserError: If the config leaves no layer in which actions see anything beside the prefix.
        """
        super().__init__(config, rtc_processor)
        expert = self.vlm_with_expert
        # As torch's own parametrizations do: the modules stay those that LeRobot made, the methods are ours.
        expert.__class__ = ForceExpert
        window = config.input_features[OBS_FORCE].shape
        heads = expert.num_attention_heads * expert.vlm.config.text_config.head_dim
        self.force_token = ForceToken(
            math.prod(window), expert.expert_hidden_size, heads, _shared_layers(expert)
        )
        self.register_load_state_dict_pre_hook(_check_window)
        self.register_load_state_dict_post_hook(_start_anew)

    def forward(
        self,
        images: list[Tensor],
        img_masks: list[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        actions: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """LeRobot's losses (B, chunk_size, max_action_dim); `state` is what `with_window` made."""
        state, token = self._split(state)
        with self.vlm_with_expert.seeing(token, self.force_token.values):
            return super().forward(images, img_masks, lang_tokens, lang_masks, state, actions, noise, time)

    def sample_actions(
        self,
        images: list[Tensor],
        img_masks: list[Tensor],
        lang_tokens: Tensor,
        lang_masks: Tensor,
        state: Tensor,
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """LeRobot's chunk (B, chunk_size, max_action_dim); `state` is what `with_window` made."""
        state, token = self._split(state)
        with self.vlm_with_expert.seeing(token, self.force_token.values):
            return super().sample_actions(
                images, img_masks, lang_tokens, lang_masks, state, noise=noise, **kwargs
            )

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        size = self.config.max_state_dim
        return state[:, :size], self.force_token(state[:, size:])


def with_window(state: Tensor, batch: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """The padded state (B, max_state_dim) and, behind it, the batch's window of force (B, H, n), flattened.

    Raises:
        ValueError: If there is no window, or one of another shape than `shape`, (H, n).
    """
    force = batch.get(OBS_FORCE)
    if force is None:
        raise ValueError(
            f"{OBS_FORCE} is missing: the policy has a force token and takes the last {shape[0]} samples of "
            f"{shape[1]} numbers, which its preprocessor makes; the batch has: {', '.join(batch)}."
        )
    if tuple(force.shape) != (len(state), *shape):
        raise ValueError(
            f"{OBS_FORCE} has shape {tuple(force.shape)}, the policy's force token takes {(len(state), *shape)}: "
            "batch, samples (oldest first), numbers a sample; run the checkpoint's own preprocessor before it."
        )
    return torch.cat([state, force.flatten(1).to(state.dtype)], dim=1)


def _shared_layers(expert: SmolVLMWithExpertModel) -> list[int]:
    """Layers in which the actions see each other, and so the token; in the others they see the prefix only."""
    every = expert.self_attn_every_n_layers
    stride = expert.num_vlm_layers // expert.num_expert_layers
    layers = [
        layer
        for layer in range(0, expert.num_vlm_layers, stride)
        if "cross" not in expert.attention_mode or (every > 0 and layer % every == 0)
    ]
    if not layers:
        raise UserError(
            f"policy.self_attn_every_n_layers {every} with policy.attention_mode {expert.attention_mode}: no layer in "
            "which actions could see a force token; give 2 (SmolVLA's default), or modality.force.fusion: state."
        )
    return layers


def _check_window(module: ForceFlowMatching, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    key = "force_token.embed.0.weight"
    there = state_dict.get(prefix + key)
    if there is None:
        return
    here = module.get_parameter(key)
    if there.shape != here.shape:
        raise UserError(
            f"the checkpoint's force token takes {there.shape[1]} numbers (samples times numbers a sample), the config "
            f"asks for {here.shape[1]}; give the checkpoint's modality.force.force_history and force sensors."
        )


def _start_anew(module: ForceFlowMatching, keys: Any) -> None:
    """Say that the checkpoint has no token, instead of listing its parameters as missing."""
    missing = [key for key in keys.missing_keys if ".force_token." in f".{key}"]
    if len(missing) == len(list(module.force_token.parameters())):
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in missing]
        logger.info("The checkpoint has no force token: its weights are kept, and the token starts anew.")


def _with_token(mask: Tensor, count: int) -> Tensor:
    """A mask (B, rows, columns) whose last `count` rows and columns are actions, with the token in front of them.

    In LeRobot's attention the token is seen by itself only.
    """
    row, column = mask.shape[1] - count, mask.shape[2] - count
    mask = torch.cat([mask[:, :row], mask[:, row : row + 1], mask[:, row:]], dim=1)
    mask = torch.cat([mask[..., :column], torch.zeros_like(mask[..., :1]), mask[..., column:]], dim=2)
    mask[:, row, column:] = False
    mask[:, row, column] = True
    return mask


def _twice(positions: Tensor, count: int) -> Tensor:
    """Positions (B, L) with that of the first of the last `count` twice."""
    first = positions.shape[1] - count
    return torch.cat([positions[:, :first], positions[:, first : first + 1], positions[:, first:]], dim=1)
