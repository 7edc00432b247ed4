"""Chunk latency of full-size SmolVLA in bf16: LeRobot's own eager call and our runner, batch 1, 4 and 16.

The policy is LeRobot's code at SmolVLA's dimensions (450 M parameters) with random weights, which cost the same time
as trained ones. Weights are float32, as LeRobot loads them; both sides compute in bfloat16 by autocast, as `lerobot-ext
serve --dtype=bfloat16` does. LeRobot's side is its own way of one observation after another through
the preprocessor, one `predict_action_chunk`, and its postprocessor. A CUDA device is used if there is one; without,
`--cpu --quick` shows that it works: one camera, and float32, since most CPUs only emulate bfloat16.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

IMAGE_SIZE = 512
CHUNK = 50
CAMERAS = ("side", "wrist", "top")
PICTURE = (480, 640)
TASK = "Press the block with the jaw, hold for a second, and go home."

# SmolVLM2-500M-Video-Instruct, of whose text layers SmolVLA uses the first 16.
TEXT = {
    "vocab_size": 49280,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": IMAGE_SIZE,
}
USED_LAYERS = 16


def make_full_vlm(folder: Path) -> Path:
    """The small VLM's folder with the real model's dimensions in its config; there are no weights in it."""
    from transformers import SmolVLMConfig

    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm

    path = make_tiny_vlm(folder, image_size=IMAGE_SIZE)
    config = SmolVLMConfig.from_pretrained(path)
    config.text_config.update(TEXT)
    config.vision_config.update(VISION)
    config.save_pretrained(path)
    return path


def make_checkpoint(folder: Path, seed: int, cameras: int = len(CAMERAS)) -> Path:
    """A full-size SmolVLA with random weights, as LeRobot's training saves one; for `lerobot-ext serve` too.

    Args:
        folder: Gets the checkpoint, and the VLM's config in `vlm`; 1.9 GB. Left as it is if one is there.
        seed: Of the weights.
        cameras: How many of CAMERAS it looks at.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *PICTURE))
        for name in CAMERAS[:cameras]
    }
    config = make_policy_config(
        "smolvla",
        vlm_model_name=str(make_full_vlm(folder / "vlm").resolve()),
        load_vlm_weights=False,
        num_vlm_layers=USED_LAYERS,
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        device="cpu",
        push_to_hub=False,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **inputs},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )
    ones = {"mean": np.zeros(6, np.float32), "std": np.ones(6, np.float32)}
    stats = {"observation.state": ones, "action": ones}
    policy = get_policy_class("smolvla")(config).eval()
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(folder)
    return folder


def observation(seed: int) -> dict[str, np.ndarray]:
    """Pictures of noise and a state; a policy of fewer cameras leaves out the rest."""
    rng = np.random.default_rng(seed)
    pictures = {
        f"observation.images.{name}": rng.integers(0, 256, (*PICTURE, 3), np.uint8) for name in CAMERAS
    }
    return {"observation.state": rng.normal(size=6).astype(np.float32), **pictures}


def lerobots(checkpoint: Path, device: torch.device, dtype: str) -> tuple[Callable[[int], np.ndarray], int]:
    """LeRobot's own eager call; returns what makes the chunks of n observations, and the number of parameters."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.policies.utils import prepare_observation_for_inference

    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.device = str(device)
    policy = get_policy_class("smolvla").from_pretrained(checkpoint, config=config).to(device).eval()
    pre, post = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": str(device)}},
    )

    def seen(seed: int) -> dict[str, np.ndarray]:
        return {name: value for name, value in observation(seed).items() if name in config.input_features}

    def chunks(number: int) -> np.ndarray:
        batches = [
            pre(prepare_observation_for_inference(seen(seed), device, TASK, "so100"))
            for seed in range(number)
        ]
        batch = {
            name: torch.cat([each[name] for each in batches])
            for name, value in batches[0].items()
            if isinstance(value, torch.Tensor)
        }
        torch.manual_seed(0)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.inference_mode(), autocast:
            chunk = policy.predict_action_chunk(batch)
        return post(chunk).float().cpu().numpy()

    return chunks, sum(parameter.numel() for parameter in policy.parameters())


def ours(checkpoint: Path, device: torch.device, dtype: str, compiled: bool) -> Callable[[int], np.ndarray]:
    """The runner behind `lerobot-ext serve`, one session for each robot; the rest of a round trip is not in it."""
    from simplify_work.server.protocol import Request
    from simplify_work.server.runner import PolicyRunner

    runner = PolicyRunner(checkpoint, device=str(device), dtype=dtype, compile_policy=compiled)
    runner.warm_up()
    sessions = []

    def chunks(number: int) -> np.ndarray:
        while len(sessions) < number:
            sessions.append(runner.open_session())
        seeds = [0] * number if number == 1 else [None] * number
        requests = [Request(sessions[i], observation(i), TASK, "so100", seeds[i]) for i in range(number)]
        outcomes = dict(runner.infer(requests))
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome
        if compiled and not runner.compiled:
            raise SystemExit("torch.compile did not work here; see the log. Run it without --compile.")
        return np.stack([outcomes[i].actions for i in range(number)])

    return chunks


def measure(
    chunks: Callable[[int], np.ndarray], number: int, repeats: int, warm_ups: int
) -> tuple[dict, np.ndarray]:
    """Milliseconds a call, from raw arrays to actions in numpy, and the last chunks."""
    for _ in range(warm_ups):
        made = chunks(number)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        made = chunks(number)
        seconds.append(time.perf_counter() - started)
    return common.percentiles(seconds), made


def main(argv: list[str] | None = None) -> int:
    """Make the checkpoint, measure both, print and save."""
    args = _arguments().parse_args(argv)
    if args.make_checkpoint:
        path = make_checkpoint(args.make_checkpoint, args.seed)
        print(f"checkpoint: {path}; serve it with `lerobot-ext serve --policy.path={path} --dtype=bfloat16`")
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    if device.type == "cpu" and not (args.cpu and args.quick):
        print(
            "no CUDA device here; `--cpu --quick` shows on the CPU that it works (5 GiB of memory, some minutes)."
        )
        return 2
    batches, repeats, warm_ups = args.batch, args.repeats, 3
    if args.quick:
        batches, repeats, warm_ups = [1] if device.type == "cpu" else batches, 2, 1
    cameras, dtype = (1, "float32") if device.type == "cpu" else (len(CAMERAS), "bfloat16")
    folder = args.checkpoint or args.output / "cache" / f"smolvla_full_{cameras}_cameras"
    checkpoint = make_checkpoint(folder, args.seed, cameras)

    rows, first = [], {}
    parameters = None
    sides = [("lerobot eager", False), ("ours", False)] + ([("ours compiled", True)] if args.compile else [])
    for name, compiled in sides:
        _reset_peak(device)
        if name == "lerobot eager":
            chunks, parameters = lerobots(checkpoint, device, dtype)
        else:
            chunks = ours(checkpoint, device, dtype, compiled)
        for number in batches:
            figures, made = measure(chunks, number, repeats, warm_ups)
            first.setdefault(name, made[0])
            rows.append(
                {"batch": number, "side": name, **figures, "robots_hz": 1e3 * number / figures["p50"]}
            )
            rows[-1]["memory_gib"] = _peak_gib(device)
        del chunks
        gc.collect()
    report(rows, first, f"{parameters / 1e6:.0f} M parameters, {cameras} cameras, {dtype} on {device}", args)
    return 0


def report(rows: list[dict], first: dict[str, np.ndarray], what: str, args) -> None:
    """Print the table and the ratios; save."""
    shown = ("batch", "side", "n", "p50", "p95", "robots_hz", "memory_gib")
    common.print_table(
        [{name: row[name] for name in shown} for row in rows],
        f"full-size SmolVLA, {what}: ms from arrays to actions",
    )
    p50 = {(row["batch"], row["side"]): row["p50"] for row in rows}
    ratios = [
        {"batch": batch, "side": side, "lerobot / ours": common.ratio(value, p50[batch, "lerobot eager"])}
        for (batch, side), value in p50.items()
        if side != "lerobot eager"
    ]
    common.print_table(ratios, "ratios of the medians; above 1 ours is faster")
    difference = {
        side: float(np.abs(made - first["lerobot eager"]).max())
        for side, made in first.items()
        if side != "lerobot eager"
    }
    print(
        f"largest difference of the first chunk to LeRobot's (batch {rows[0]['batch']}): {json.dumps(difference)}"
    )
    results = {"rows": rows, "ratios": ratios, "difference": difference, "what": what}
    common.save("smolvla_full", results, args)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float:
    """On CUDA what torch allocated at most since this side began; on the CPU the process's peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _arguments():
    parser = common.parser(__doc__)
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 4, 16], help="robots at once (default 1 4 16)"
    )
    parser.add_argument("--repeats", type=int, default=20, help="calls measured (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="our runner with torch.compile, too")
    parser.add_argument("--cpu", action="store_true", help="on the CPU; with --quick only")
    parser.add_argument(
        "--checkpoint", type=Path, help="made there if it is not there yet; by default in the cache"
    )
    parser.add_argument(
        "--make-checkpoint",
        type=Path,
        metavar="DIR",
        help="only write the checkpoint, for `lerobot-ext serve`",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
