"""How smooth the arm moves at chunk borders, by merge rule and delay: recorded observations, a small SmolVLA.

A recording is replayed through the shipped engine and queue in simulated time; answers come a given number of steps
after their observation. Measured for each rule: the jump where a new chunk takes over (largest change of a joint from
one tick to the next, in the action's units), and the total variation of what is executed. SmolVLA is LeRobot's code at
0.3 M parameters, trained here on the same recording for less than a minute, so that chunks are plausible and differ by
their noise. The replay is open loop: what is executed does not change what is observed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import numpy as np
import press_replay
import torch
from simulated import Executed, simulate

from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.guidance import Guidance, guided

CHUNK = 30
RULES = {
    "append": {"merge": "append"},
    "aggregate": {"merge": "aggregate", "aggregate": "weighted_average"},
    "rtc identity": {"merge": "rtc", "guidance": "identity"},
    "rtc jacobian": {"merge": "rtc", "guidance": "jacobian"},
}


class SmallPolicy:
    """Chunks of a checkpoint for a recording's frames; unguided ones are kept, since two rules ask for the same.

    Args:
        checkpoint: Of a SmolVLA.
        recording: Whose frames are the observations.
        seed: Of the noise; chunk k of an episode has the same under every rule.
    """

    def __init__(self, checkpoint: Path, recording: press_replay.Recording, seed: int) -> None:
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(checkpoint)
        self._policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config).eval()
        self._pre, self._post = make_pre_post_processors(config, pretrained_path=str(checkpoint))
        self._recording, self._seed = recording, seed
        self._shape = (1, config.chunk_size, config.max_action_dim)
        self._batches: dict[int, dict] = {}
        self._unguided: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, request, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The chunk in the robot's units and in the model's."""
        frame = request.observations[-1]["frame"]
        free = request.rtc is None or request.left_over is None
        if free and (frame, number) in self._unguided:
            return self._unguided[frame, number]
        guidance = None if free else Guidance(request.rtc, torch.from_numpy(request.left_over.copy()))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + frame * 1009 + number)
        noise = torch.randn(self._shape, generator=generator)
        with torch.no_grad(), guided(self._policy, [guidance]):
            chunk = self._policy.predict_action_chunk(dict(self._batch(frame)), noise=noise)
            made = self._post(chunk).squeeze(0).numpy().copy(), chunk.squeeze(0).numpy().copy()
        if free:
            self._unguided[frame, number] = made
        return made

    def _batch(self, frame: int) -> dict:
        if frame not in self._batches:
            from lerobot.policies.utils import prepare_observation_for_inference

            observation = {key: value.copy() for key, value in self._recording.observation(frame).items()}
            batch = prepare_observation_for_inference(observation, torch.device("cpu"), press_replay.TASK, "")
            self._batches[frame] = self._pre(batch)
        return self._batches[frame]


def main(argv: list[str] | None = None) -> int:
    """Record, train, replay, print and save."""
    args = _arguments().parse_args(argv)
    if args.quick:
        args.episodes, args.training_steps, args.delays = 1, 400, [1, 6, 12]
    torch.set_num_threads(1)
    recording = press_replay.load(args.root) if args.root else press_replay.record(12, args.seed)
    checkpoint = press_replay.trained(recording, CHUNK, args.training_steps, args.seed, args.output / "cache")
    policy = SmallPolicy(checkpoint, recording, args.seed)
    dim = recording.actions.shape[1]
    # Those that come last in the recording; they are in the training, as a rollout on the trained task would be.
    episodes = np.unique(recording.episodes)[-args.episodes :]
    print(
        f"observations: {recording.source}; {len(recording.states)} frames; episodes {episodes.tolist()} replayed"
    )

    rows = []
    for delay in common.progress(args.delays, "replaying", "delay"):
        for rule, options in RULES.items():
            config = AsyncInferenceConfig(
                actions_per_chunk=CHUNK,
                chunk_size_threshold=args.threshold,
                schedule=args.schedule,
                execution_horizon=args.execution_horizon,
                max_guidance_weight=args.max_guidance_weight,
                **options,
            )
            runs = [
                simulate(
                    config,
                    options["merge"],
                    policy,
                    [{"frame": int(frame)} for frame in recording.frames(episode)],
                    chunk_size=CHUNK,
                    dim=dim,
                    fps=press_replay.FPS,
                    latency=lambda delay=delay: delay / press_replay.FPS,
                )
                for episode in episodes
            ]
            rows.append({"delay": delay, "rule": rule, **_figures(runs)})
    demonstrated = [np.abs(np.diff(recording.actions[recording.frames(e)], axis=0)) for e in episodes]
    report(rows, demonstrated, recording, args)
    return 0


def _figures(runs: list[Executed]) -> dict[str, float]:
    jumps = np.concatenate([run.jumps() for run in runs])
    inner = np.concatenate([run.inner() for run in runs])
    variation = [np.abs(np.diff(run.actions, axis=0)).mean(1) for run in runs]
    return {
        "borders": len(jumps),
        "jump": float(jumps.mean()),
        "jump_p50": float(np.median(jumps)),
        "jump_p95": float(np.percentile(jumps, 95)),
        "inside": float(inner.mean()),
        "variation": float(np.concatenate(variation).mean() * press_replay.FPS),
        "starved": int(sum(run.starved.sum() for run in runs)),
    }


def report(rows: list[dict], demonstrated: list[np.ndarray], recording, args) -> None:
    """Print the tables and the verdict; save."""
    by = {(row["delay"], row["rule"]): row for row in rows}
    steps = np.concatenate([step.max(1) for step in demonstrated])
    variation = float(np.concatenate([step.mean(1) for step in demonstrated]).mean() * press_replay.FPS)
    common.print_table(
        rows, "inside: mean step inside a chunk; variation: a joint's total variation a second"
    )
    print(
        f"the demonstration itself: step {steps.mean():.2f}, p95 {np.percentile(steps, 95):.2f}, variation {variation:.2f}"
    )
    jumps = [{"delay": d, **{rule: by[d, rule]["jump"] for rule in RULES}} for d in args.delays]
    for row in jumps:
        others = min(row["append"], row["aggregate"])
        row["rtc smaller"] = row["delay"] < 1 or max(row["rtc identity"], row["rtc jacobian"]) < others
    common.print_table(jumps, "mean jump at a chunk border")
    kept = all(row["rtc smaller"] for row in jumps)
    print(
        f"rtc (both) has the smaller jump than append and aggregate for every delay of 1 or more: {'yes' if kept else 'NO'}"
    )
    if args.quick:
        print("quick: the policy is trained too little for this to mean anything.")
    results = {
        "source": recording.source,
        "rows": rows,
        "demonstration": {"step": float(steps.mean()), "variation": variation},
        "rtc_smaller_for_every_delay": kept,
    }
    common.save("rtc_smoothness", results, args)


def _arguments():
    parser = common.parser(__doc__)
    parser.add_argument(
        "--root", type=Path, help="a LeRobot dataset to replay instead of the lab's recording"
    )
    parser.add_argument("--episodes", type=int, default=3, help="how many are replayed (default %(default)s)")
    parser.add_argument("--training_steps", type=int, default=1000, help="of the small SmolVLA (%(default)s)")
    parser.add_argument("--delays", type=int, nargs="+", default=list(range(13)), help="in control steps")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="chunk_size_threshold (default %(default)s)"
    )
    parser.add_argument("--schedule", default="linear", help="of the guidance (default %(default)s)")
    parser.add_argument(
        "--execution_horizon", type=int, help="of the guidance; all that is left if not given"
    )
    parser.add_argument("--max_guidance_weight", type=float, default=10.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
