"""π0 and π0.5 small: LeRobot's real classes, whose sizes are written into its code, with other sizes and no network.

`tiny_pi()` is to be on wherever such a policy or its processors are made or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

from checkpoints import make_checkpoint

VOCABULARY = 512
WIDTH = 32
STEPS = 3  # of the denoising


@contextmanager
def tiny_pi() -> Iterator[None]:
    """Inside it LeRobot's `pi0` and `pi05` are small, and their tokenizer is ours."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05
    from lerobot.processor import tokenizer_processor

    from lerobot_ext.virtual.tiny_vlm import tiny_tokenizer

    class Tokenizers:
        @staticmethod
        def from_pretrained(name: str):
            assert name == "google/paligemma-3b-pt-224"
            return tiny_tokenizer({})

    with ExitStack() as stack:
        for module in (modeling_pi0, modeling_pi05):
            for name, value in _smaller(module).items():
                stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(mock.patch.object(tokenizer_processor, "AutoTokenizer", Tokenizers))
        yield


def make_pi(kind: str, path: Path, **changes) -> Path:
    """A checkpoint of `pi0` or `pi05`: chunks of 10, pictures of 64x64, 3 denoising steps."""
    options = {
        "chunk_size": 10,
        "n_action_steps": 10,
        "num_inference_steps": STEPS,
        "image_resolution": (64, 64),
        "tokenizer_max_length": 48,
    }
    return make_checkpoint(kind, path, **{**options, **changes})


def _smaller(module: ModuleType) -> dict[str, object]:
    """The names in `modeling_pi0` or `modeling_pi05` that set the sizes of the two transformers."""
    sizes = module.GemmaConfig(
        width=WIDTH, depth=2, mlp_dim=2 * WIDTH, num_heads=8, num_kv_heads=1, head_dim=4
    )
    vlm, expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def small_vlm(config):
        config.image_token_index = config.text_config.vocab_size = VOCABULARY
        config.projection_dim = config.vision_config.projection_dim = WIDTH
        for name, value in {
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 16,
        }.items():
            setattr(config.vision_config, name, value)
        return vlm(config=config)

    def small_expert(config):
        config.vocab_size = VOCABULARY
        return expert(config=config)

    return {
        "get_gemma_config": lambda variant: sizes,
        "PaliGemmaForConditionalGenerationWithPiGemma": small_vlm,
        "PiGemmaForCausalLM": small_expert,
    }
