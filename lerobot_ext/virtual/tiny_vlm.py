"""A vision-language model small enough for tests and CPUs, made offline: SmolVLA's real code on random weights.

LeRobot's SmolVLA takes a local directory as `vlm_model_name` and, with `load_vlm_weights: false`, needs only the
configuration, the image processor and a tokenizer from it. They are made here; no weights are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SPECIAL = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_BOUNDARIES = {"pad_token": "<pad>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
_CORPUS = (
    "Press the block with the jaw, hold for a second, and go home.",
    "Pick up the cube and place it in the bin. Open the drawer, slowly. Push until it clicks.",
)
_PATCH = 16


def make_tiny_vlm(path: str | Path, image_size: int = 64) -> Path:
    """Write the directory that SmolVLA's `vlm_model_name` can name.

    Args:
        path: The directory; made if it is not there, and left as it is if it holds a model already.
        image_size: Side in pixels of the square images that the vision tower takes; a multiple of 64.

    Returns:
        `path`.

    Raises:
        ValueError: If `image_size` does not fit the patches.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if image_size % (_PATCH * 4):
        raise ValueError(f"image_size {image_size}: expected a multiple of {_PATCH * 4}.")
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(_SPECIAL)
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": _PATCH,
            "image_size": image_size,
        },
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids(_SPECIAL["image_token"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    edge = {"longest_edge": image_size}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=edge, max_image_size=edge),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=(image_size // _PATCH // config.scale_factor) ** 2,
        chat_template=None,
    )
    processor.save_pretrained(path)
    config.save_pretrained(path)
    return path


def smolvla_overrides(path: str | Path, image_size: int = 64, chunk_size: int = 20) -> dict[str, Any]:
    """The `policy:` section of a train config for SmolVLA on the model in `path`.

    Args:
        path: What `make_tiny_vlm` returned.
        image_size: What it was made with.
        chunk_size: Actions the policy emits at once.
    """
    return {
        "type": "smolvla",
        "vlm_model_name": str(path),
        "load_vlm_weights": False,
        "freeze_vision_encoder": False,
        "train_expert_only": False,
        "resize_imgs_with_padding": [image_size, image_size],
        "num_vlm_layers": 2,
        "chunk_size": chunk_size,
        "n_action_steps": chunk_size,
        "device": "cpu",
        "push_to_hub": False,
    }


def tiny_tokenizer(special: dict[str, str]) -> Any:
    """A byte-level BPE tokenizer: any text can be written with it, however small its vocabulary.

    Args:
        special: Its special tokens by the names of their attributes, beside those for padding, begin and end.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*_BOUNDARIES.values(), *special.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=special, **_BOUNDARIES)
