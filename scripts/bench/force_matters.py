"""Does force help? The same policy trained with and without it, on a press whose contact only the skin can tell.

The lab's press task with the button's height hidden from the camera and contact hidden from the joints (see
`hidden_press`; this prints the proof). The scripted operator, who feels the force, demonstrates; SmolVLA (small) is
trained by `lerobot-ext train` without force, with force in the state and with force as a token, from the same seeds;
each checkpoint then presses at heights it has not seen, in simulated time, through its own preprocessor. They are also
run from random noise, and those that were trained with force with a frozen force and with that of another press.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import yaml
from common import parser, print_table, progress, save
from hidden_press import FORCE_NAMES, FPS, PICTURE, TIME_LIMIT_S, Frame, HiddenPress, demonstrate
from hidden_press_check import check_hiding

from lerobot_ext.features import OBS_FORCE
from lerobot_ext.virtual.referee import FORCE_N

STATE, IMAGE = "observation.state", "observation.images.side"
TASK = "Press the block with the jaw, hold for a second, and go home."
INPUTS = ("none", "state", "token")
HOW = ("own", "sampled", "frozen", "next")  # see `evaluate`
EVALUATION_SEED = 1000  # of the heights; the same for all policies, others than the demonstrations'
BAND = f"{FORCE_N[0]:g} to {FORCE_N[1]:g} N"


@dataclass(frozen=True)
class Settings:
    """What a result depends on.

    Attributes:
        demonstrations: Presses of the operator.
        seed: Of their heights.
        steps: Of training.
        batch: Frames in a step.
        rate: Highest learning rate.
        chunk: Actions in a chunk.
        execute: Actions of it that are carried out.
        history: Samples of force in the token.
    """

    demonstrations: int = 60
    seed: int = 0
    steps: int = 2000
    batch: int = 32
    rate: float = 3e-3
    chunk: int = 16
    execute: int = 4
    history: int = 10


def main() -> None:
    """Measure, print, save."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--seeds", type=int, default=3, help="trainings of each kind (default %(default)s)"
    )
    arguments.add_argument(
        "--episodes", type=int, default=50, help="presses of each policy (default %(default)s)"
    )
    arguments.add_argument(
        "--steps", type=int, default=Settings.steps, help="of training (default %(default)s)"
    )
    arguments.add_argument("--policies", nargs="+", default=["smolvla"], choices=("smolvla", "act"))
    arguments.add_argument("--inputs", nargs="+", default=list(INPUTS), choices=INPUTS)
    args = arguments.parse_args()
    settings = Settings(seed=args.seed, steps=args.steps)
    if args.quick:
        settings = Settings(seed=args.seed, demonstrations=3, steps=10)
        args.seeds, args.episodes = 1, 2
    started = time.monotonic()
    folder = args.output / "cache" / ("force_matters_quick" if args.quick else "force_matters")
    hiding = check_hiding(2 if args.quick else 10, args.seed)
    data = demonstrations(folder, settings)
    rows = []
    for how, kind, seed, inputs in product(
        HOW[: 2 if args.quick else None], args.policies, range(args.seeds), args.inputs
    ):
        if (kind == "act" and (inputs == "token" or how == "sampled")) or (
            inputs == "none" and how in ("frozen", "next")
        ):
            continue  # token and noise are SmolVLA's; who sees no force cannot see a wrong one
        checkpoint, seconds = train(folder, data, settings, kind, inputs, seed)
        row = {"policy": kind, "force": inputs, "how": how, "seed": seed}
        row |= evaluated(checkpoint, settings, args.episodes, how)
        rows.append(row | {"train_s": seconds})
        print(json.dumps({key: value for key, value in row.items() if key != "presses"}), flush=True)
    figures = summary(rows)
    print_table(figures, f"\n{args.episodes} presses for each of {args.seeds} seeds; band {BAND}")
    print(f"\n{time.monotonic() - started:.0f} s in all in this run")
    save(
        "force_matters",
        {"hiding": hiding, "settings": asdict(settings), "rows": rows, "summary": figures},
        args,
    )


def demonstrations(folder: Path, settings: Settings) -> Path:
    """The operator's presses as a LeRobot dataset; made once."""
    import lerobot_ext

    lerobot_ext.register()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_ext.virtual.world import JOINTS

    root = folder / f"demonstrations_n{settings.demonstrations}_s{settings.seed}"
    if (root / "complete").is_file():
        return root
    shutil.rmtree(root, ignore_errors=True)
    joints = {"dtype": "float32", "shape": (6,), "names": [f"{name}.pos" for name in JOINTS]}
    force = {"dtype": "float32", "shape": (len(FORCE_NAMES),), "names": FORCE_NAMES}
    image = {"dtype": "image", "shape": (PICTURE, PICTURE, 3), "names": ["height", "width", "channels"]}
    features = {STATE: joints, OBS_FORCE: force, IMAGE: image, "action": joints}
    dataset = LeRobotDataset.create("lab/hidden_press", fps=FPS, features=features, root=root)
    rig = HiddenPress(settings.seed)
    try:
        for _ in progress(range(settings.demonstrations), "demonstrating", "press"):
            for frame, goal in demonstrate(rig):
                dataset.add_frame(
                    {
                        STATE: frame.state,
                        OBS_FORCE: frame.force,
                        IMAGE: frame.picture,
                        "action": goal,
                        "task": TASK,
                    }
                )
            verdict = rig.task.end_episode()
            if not verdict.success:
                raise SystemExit(f"demonstration {verdict.index}: the operator {verdict.reason}")
            dataset.save_episode()
    finally:
        rig.close()
    dataset.finalize()
    (root / "complete").touch()
    return root


def train(
    folder: Path, data: Path, settings: Settings, kind: str, inputs: str, seed: int
) -> tuple[Path, float]:
    """A checkpoint by `lerobot-ext train` in this process, and the seconds it took; made once."""
    output = folder / f"{kind}_{inputs}_seed{seed}"
    checkpoint = output / "checkpoints" / "last" / "pretrained_model"
    mark, note = asdict(settings), output / "trained.json"
    if note.is_file() and (found := json.loads(note.read_text()))["settings"] == mark:
        return checkpoint, found["seconds"]
    shutil.rmtree(output, ignore_errors=True)
    from lerobot_ext.commands import train as command

    config = {
        "dataset": {"repo_id": "lab/hidden_press", "root": str(data), "use_imagenet_stats": False},
        "use_force": inputs != "none",
        "modality": {"cache": "memory"},
        "policy": policy_options(folder, settings, kind),
        "output_dir": str(output),
        "batch_size": settings.batch,
        "steps": settings.steps,
        "save_freq": settings.steps,
        "log_freq": max(1, settings.steps // 10),
        "num_workers": 0,
        "seed": seed,
    }
    if inputs == "token":
        config["modality"]["force"] = {"fusion": "token", "force_history": settings.history}
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    started = time.monotonic()
    if command.main([f"--config_path={path}"]):
        raise SystemExit(f"{path}: training failed; what it said is above.")
    seconds = time.monotonic() - started
    note.write_text(json.dumps({"settings": mark, "seconds": seconds}))
    return checkpoint, seconds


def policy_options(folder: Path, settings: Settings, kind: str) -> dict:
    """The `policy:` section; the same whatever it sees."""
    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    if kind == "act":
        return {
            "type": "act",
            "device": "cpu",
            "push_to_hub": False,
            "pretrained_backbone_weights": None,
            "dim_model": 96,
            "n_heads": 4,
            "dim_feedforward": 256,
            "n_encoder_layers": 2,
            "n_vae_encoder_layers": 2,
            "chunk_size": settings.chunk,
            "n_action_steps": settings.execute,
            "optimizer_lr": 5e-4,
            "optimizer_lr_backbone": 5e-4,
        }
    vlm = make_tiny_vlm((folder / "tiny_vlm").resolve())
    return smolvla_overrides(vlm, chunk_size=settings.chunk) | {
        "n_action_steps": settings.execute,
        "tokenizer_max_length": 16,
        "optimizer_lr": settings.rate,
        "optimizer_weight_decay": 1e-4,
        "scheduler_warmup_steps": max(1, settings.steps // 20),
        "scheduler_decay_steps": settings.steps,
        "scheduler_decay_lr": settings.rate / 100,
    }


def evaluated(checkpoint: Path, settings: Settings, episodes: int, how: str) -> dict:
    """Successes and forces of a checkpoint; from the file beside it if this was measured before."""
    path = checkpoint.parents[2] / f"presses_{how}.json"
    mark = {**asdict(settings), "episodes": episodes}
    if path.is_file() and (found := json.loads(path.read_text()))["settings"] == mark:
        return found["figures"]
    figures = evaluate(checkpoint, episodes, how)
    path.write_text(json.dumps({"settings": mark, "figures": figures}))
    return figures


def evaluate(checkpoint: Path, episodes: int, how: str) -> dict:
    """Press at `episodes` heights, all presses at the same time: one call of the policy serves them all.

    Args:
        checkpoint: Whose policy, with its own pre- and postprocessor.
        episodes: Presses, each in its own world; the preprocessor gets every frame of them all.
        how: `own`: with the force of its own press; `frozen`: with that of the episode's first sample; `next`: with
            that of another press. SmolVLA's flow starts from zeros, the middle of its noise; `sampled`: as `own`, but
            from random noise, as LeRobot has it.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(EVALUATION_SEED)
    policy, preprocessor, postprocessor = loaded(checkpoint)
    preprocessor.reset()
    started = time.monotonic()
    rigs = [HiddenPress(EVALUATION_SEED + number) for number in range(episodes)]
    for rig in rigs:
        rig.start(operate=False)
    frames = [rig.frame() for rig in rigs]
    first, inside, going = list(frames), np.zeros(episodes), list(range(episodes))
    execute = policy.config.n_action_steps
    for tick in progress(
        range(round(TIME_LIMIT_S * FPS)), f"pressing: {checkpoint.parents[2].name}", "frame"
    ):
        for lane in going:
            frames[lane] = rigs[lane].frame(look=tick % execute == 0)
        felt = {"frozen": first, "next": frames[1:] + frames[:1]}.get(how, frames)
        batch = preprocessor(batched(frames, [frame.force for frame in felt]))
        if tick % execute == 0:
            with torch.no_grad():
                chunk = postprocessor(predict(policy, batch, sampled=how == "sampled")).numpy()
        for lane in going:
            rigs[lane].advance(chunk[lane, tick % execute])
            inside[lane] += FORCE_N[0] <= rigs[lane].task.world.normal_force <= FORCE_N[1]
        going = [lane for lane in going if not rigs[lane].decided]
        if not going:
            break
    presses = []
    for rig, frames_inside in zip(rigs, inside, strict=True):
        verdict = rig.task.end_episode()
        presses.append(
            {
                "success": verdict.success,
                "reason": verdict.reason,
                "height_m": verdict.block_height_m,
                "peak_n": verdict.peak_force_n,
                "overshoot_n": max(0.0, verdict.peak_force_n - FORCE_N[1]),
                "held_s": verdict.hold_s,
                "in_band_s": float(frames_inside / FPS),
            }
        )
        rig.close()
    return {"presses": presses, "evaluate_s": time.monotonic() - started} | figures_of(presses)


def predict(policy, batch: dict, sampled: bool):
    """A chunk for each press; SmolVLA's flow starts from random noise or from zeros."""
    import torch

    if sampled or policy.config.type != "smolvla":
        return policy.predict_action_chunk(batch)
    config = policy.config
    noise = torch.zeros(len(batch[STATE]), config.chunk_size, config.max_action_dim)
    return policy.predict_action_chunk(batch, noise=noise)


def loaded(checkpoint: Path) -> tuple:
    """Policy, preprocessor and postprocessor of a checkpoint."""
    import lerobot_ext

    lerobot_ext.register()
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(checkpoint)
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    policy.eval()
    return policy, *make_pre_post_processors(config, pretrained_path=str(checkpoint))


def batched(frames: list[Frame], forces: list[np.ndarray]) -> dict:
    """Observations of all presses at this moment as a preprocessor takes them."""
    import torch

    pictures = torch.from_numpy(np.stack([frame.picture for frame in frames]))
    return {
        STATE: torch.from_numpy(np.stack([frame.state for frame in frames])),
        OBS_FORCE: torch.from_numpy(np.stack(forces)),
        IMAGE: pictures.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255,
        "task": [TASK] * len(frames),
    }


def figures_of(presses: list[dict]) -> dict[str, float]:
    """Successes, overshoot over the band in N, and seconds in the band."""
    overshoot = [press["overshoot_n"] for press in presses]
    return {
        "n": len(presses),
        "successes": sum(press["success"] for press in presses),
        "touched": sum(press["peak_n"] > 0 for press in presses),
        "overshoot_median_n": float(np.median(overshoot)),
        "overshoot_p95_n": float(np.percentile(overshoot, 95)),
        "in_band_mean_s": float(np.mean([press["in_band_s"] for press in presses])),
    }


def summary(rows: list[dict]) -> list[dict]:
    """One row for each policy and input, over all seeds."""
    return list(_summed(rows))


def _summed(rows: list[dict]) -> Iterator[dict]:
    keys = dict.fromkeys((row["policy"], row["force"], row["how"]) for row in rows)
    for policy, force, how in keys:
        some = [row for row in rows if (row["policy"], row["force"], row["how"]) == (policy, force, how)]
        presses = [press for row in some for press in row["presses"]]
        figures = figures_of(presses)
        low, high = wilson(figures["successes"], figures["n"])
        yield {
            "policy": policy,
            "force": force if how == "own" else f"{force}, {how}",
            "successes": " ".join(str(row["successes"]) for row in some),
            "%": 100 * figures["successes"] / figures["n"],
            "95 % interval": f"{100 * low:.0f} to {100 * high:.0f}",
            "overshoot N, median": figures["overshoot_median_n"],
            "p95": figures["overshoot_p95_n"],
            "s in band": figures["in_band_mean_s"],
        }


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, 1927)."""
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


if __name__ == "__main__":
    main()
