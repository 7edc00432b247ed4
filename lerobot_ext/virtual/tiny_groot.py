"""A GR00T N1.7 small enough for tests and CPUs, made offline: LeRobot's `groot` policy on random weights.

LeRobot's policy takes a folder as `base_model_path`, with the weights of a Qwen3-VL backbone and of the action head;
its preprocessor takes the backbone's tokenizer and image processor from another. Both are made here. Beside LeRobot it
takes the packages `transformers`, `diffusers` and, to make a chunk, `dm-tree`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lerobot_ext.virtual.tiny_vlm import tiny_tokenizer

_BACKBONE, _BASE = "backbone", "base"
_SPECIAL = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
# One turn of a user, a picture as its place holder between the two marks: what Qwen3-VL's own template makes of it.
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
_PATCH, _MERGE, _WIDTH = 16, 2, 64


def make_tiny_groot(path: str | Path, image_size: int = 64, chunk_size: int = 16, seed: int = 0) -> Path:
    """Write the folder that `groot_overrides` points at.

    Args:
        path: Made if it is not there, and left as it is if it holds a model already.
        image_size: Side in pixels of the square pictures that the backbone gets; a multiple of 32.
        chunk_size: Actions the model emits at once.
        seed: Of the random weights.

    Returns:
        `path`.

    Raises:
        ValueError: If `image_size` does not fit the patches.
    """
    path = Path(path)
    if (path / _BASE / "config.json").is_file():
        return path
    if image_size % (_PATCH * _MERGE):
        raise ValueError(f"image_size {image_size}: expected a multiple of {_PATCH * _MERGE}.")
    import json

    import torch
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    _make_backbone(path / _BACKBONE)
    config = GR00TN17Config(
        model_name=str(path / _BACKBONE),
        model_dtype="float32",
        dtype="float32",
        backbone_embedding_dim=_WIDTH,
        select_layer=2,
        action_horizon=chunk_size,
        hidden_size=_WIDTH,
        input_embedding_dim=_WIDTH,
        max_seq_len=256,
        max_num_embodiments=16,
        diffusion_model_cfg={
            "positional_embeddings": None,
            "num_layers": 2,
            "num_attention_heads": 4,
            "attention_head_dim": _WIDTH // 4,
            "norm_type": "ada_norm",
            "dropout": 0.0,
            "final_dropout": False,
            "output_dim": _WIDTH,
            "interleave_self_attention": True,
        },
        vl_self_attention_cfg={
            "positional_embeddings": None,
            "num_layers": 1,
            "num_attention_heads": 4,
            "attention_head_dim": _WIDTH // 4,
            "dropout": 0.0,
            "final_dropout": False,
        },
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        GR00TN17(config, load_backbone_weights=False).save_pretrained(path / _BASE)
    sizes = {"image_target_size": [image_size] * 2, "image_crop_size": [image_size] * 2}
    settings = {"processor_kwargs": {**sizes, "max_action_horizon": chunk_size}}
    (path / _BASE / "processor_config.json").write_text(json.dumps(settings))
    return path


def groot_overrides(path: str | Path, chunk_size: int = 16) -> dict[str, Any]:
    """The `policy:` section of a train config for `groot` on the model in `path`.

    Args:
        path: What `make_tiny_groot` returned.
        chunk_size: What it was made with.
    """
    return {
        "type": "groot",
        "base_model_path": str(Path(path) / _BASE),
        "chunk_size": chunk_size,
        "n_action_steps": chunk_size,
        "use_bf16": False,
        "device": "cpu",
        "push_to_hub": False,
    }


def use_tiny_backbone(preprocessor: Any, path: str | Path) -> None:
    """Let a fresh `groot` preprocessor take tokenizer and image processor from `path`, not from the hub.

    LeRobot writes NVIDIA's name into it whatever the model; what a checkpoint saves is then this path.
    """
    for step in preprocessor.steps:
        if hasattr(step, "model_name"):
            step.model_name = str(Path(path) / _BACKBONE)


def _make_backbone(path: Path) -> None:
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLVideoProcessor

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(_SPECIAL)
    tokenizer.chat_template = _CHAT
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
    config = Qwen3VLConfig(
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        tie_word_embeddings=True,
        text_config={
            "model_type": "qwen3_vl_text",
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 2 * _WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "tie_word_embeddings": True,
        },
        vision_config={
            "model_type": "qwen3_vl",
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": _WIDTH,
            "patch_size": _PATCH,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": 2,
            "deepstack_visual_indexes": [0],
        },
    )
    sizes = {"patch_size": _PATCH, "merge_size": _MERGE, "temporal_patch_size": 2}
    config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    Qwen2VLImageProcessor(**sizes).save_pretrained(path)
    Qwen3VLVideoProcessor(**sizes).save_pretrained(path)
