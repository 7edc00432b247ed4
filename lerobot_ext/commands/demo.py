"""`lerobot-ext demo`: the whole loop on the virtual lab, each step the command that a user would type.

Nothing here knows of devices or policies; it edits copies of the YAMLs in `configs/`, runs the commands one after
another, asks the lab for its verdicts, and writes the report.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lerobot_ext.commands import config as config_files
from lerobot_ext.commands.options import Options
from lerobot_ext.commands.stages import Counter, Stages, command, tail
from lerobot_ext.errors import UserError
from lerobot_ext.virtual.testing import end, free_port

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MARK = "demo.json"


def main(argv: list[str]) -> int | None:
    """Run the demo; returns 0 when every step ran, whatever the number of successes."""
    args = arguments().parse_args(argv)
    output = Path(args.output)
    prepare(output)
    console = Console()
    console.print(
        f"The whole loop on the virtual lab, in {output}/ (logs in {output}/logs/). About 10 minutes on 2 cores."
    )
    start = time.monotonic()
    with ExitStack() as cleanup:
        figures = run(args, output, console, cleanup)
    figures["seconds_total"] = time.monotonic() - start
    (output / MARK).write_text(json.dumps(figures, indent=2))

    from lerobot_ext.commands import report

    page = report.write(output, figures)
    console.print()
    console.print(report.summary(figures))
    console.print(f"report: {page}")
    return 0


def arguments() -> argparse.ArgumentParser:
    """The demo's options."""
    parser = Options(
        "demo",
        description="Starts the virtual lab, records demonstrations of the task press, trains a small policy with "
        "depth and force, serves it in a second process, evaluates it remotely, and writes a report.",
    )
    parser.add_argument(
        "--output", default="outputs/demo", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--episodes", type=int, default=12, help="demonstrations (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=550, help="training steps (default: %(default)s)")
    parser.add_argument(
        "--evaluations", type=int, default=5, help="evaluated episodes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the lab's blocks and operator")
    return parser


def prepare(output: Path) -> None:
    """Make the output folder, replacing that of an earlier demo and nothing else."""
    if output.exists():
        if not (output / MARK).exists() and any(output.iterdir()):
            raise UserError(f"{output} exists and is not an earlier demo's; choose another --output.")
        shutil.rmtree(output)
    (output / "logs").mkdir(parents=True)
    (output / MARK).write_text("{}")


def run(args: argparse.Namespace, output: Path, console: Console, cleanup: ExitStack) -> dict[str, Any]:
    """All steps; what they started is stopped by `cleanup`. Returns the figures of the report."""
    from lerobot_ext.virtual.client import LabClient
    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm

    stages = Stages(output / "logs", console)
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env.pop("ENV", None)

    lab_dir = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lerobot_demo_"))) / "lab"
    wrist_port, server_port = free_port(), free_port()
    start_background(
        cleanup,
        output / "logs" / "lab.log",
        command("lab", f"--dir={lab_dir}", f"--wrist_port={wrist_port}", f"--seed={args.seed}"),
        env,
    )
    lab = cleanup.enter_context(LabClient(lab_dir))
    lab.wait_ready(60)
    console.print(f"lab running in {lab_dir}")

    def configure(name: str, **changes: Any) -> str:
        """Copy configs/NAME into the output folder, on this lab and with `changes` (dots: `a.b`)."""
        path = output / name
        write_config(CONFIGS / name, path, lab_dir, wrist_port, changes)
        return f"--config_path={path}"

    dataset = output / "dataset"
    record = configure(
        "collect.yaml", **{"dataset.root": str(dataset), "dataset.num_episodes": args.episodes}
    )
    stages.run(
        f"record {args.episodes} demonstrations",
        "record",
        command("record", record),
        Counter(r"Recording episode (\d+)", args.episodes),
        env,
    )
    demonstrations = lab.status().episodes

    train = configure(
        "train.yaml",
        **{
            "dataset.root": str(dataset),
            "output_dir": str(output / "train"),
            "steps": args.steps,
            "scheduler.num_decay_steps": args.steps,
        },
    )
    train_log = stages.run(
        "train ACT with depth and force",
        "train",
        command("train", train),
        Counter(r"Training: [^\r\n]*?(\d+)/\d+ \[", args.steps),
        env,
    )

    vlm = output / "vlm"
    make_tiny_vlm(vlm)
    smolvla = configure(
        "train_smolvla.yaml",
        **{
            "dataset.root": str(dataset),
            "output_dir": str(output / "train_smolvla"),
            "policy.vlm_model_name": str(vlm),
            "steps": 10,
        },
    )
    stages.run(
        "train a tiny SmolVLA, 10 steps",
        "train_smolvla",
        command("train", smolvla),
        Counter(r"Training: [^\r\n]*?(\d+)/\d+ \[", 10),
        env,
    )

    checkpoint = output / "train" / "checkpoints" / "last" / "pretrained_model"
    serve_log = output / "logs" / "serve.log"
    server = start_background(
        cleanup,
        serve_log,
        command("serve", f"--policy.path={checkpoint}", "--host=127.0.0.1", f"--port={server_port}"),
        # Robot, cameras, encoders and lab share this machine's cores with it: a second thread would only wait for one.
        env | {"OMP_NUM_THREADS": "1"},
    )
    wait_for(server, serve_log, "ready")
    console.print(f"server running at tcp://127.0.0.1:{server_port}")

    rollout = output / "rollout_dataset"
    evaluate = configure(
        "evaluate_record.yaml",
        **{
            "dataset.root": str(rollout),
            "dataset.num_episodes": args.evaluations,
            "policy.path": str(checkpoint),
            "server.address": f"tcp://127.0.0.1:{server_port}",
            "visualize": False,  # the report shows the episodes
        },
    )
    stages.run(
        f"evaluate {args.evaluations} episodes remotely",
        "evaluate",
        command("evaluate", evaluate),
        Counter(r"Recording episode (\d+)", args.evaluations),
        env | {"ENV": "local"},
    )
    evaluations = lab.status().episodes[len(demonstrations) :]
    return {
        "demonstrations": [as_dict(episode) for episode in demonstrations],
        "evaluations": [as_dict(episode) for episode in evaluations],
        "losses": losses(train_log),
        "telemetry_dir": str(rollout / "telemetry"),
        "seconds": stages.seconds,
    }


def write_config(source: Path, target: Path, lab_dir: Path, wrist_port: int, changes: dict[str, Any]) -> None:
    """Copy a YAML, pointing the default lab's paths to another lab and laying `changes` over it."""
    text = source.read_text().replace("/tmp/lerobot_lab/", f"{lab_dir}/")
    text = text.replace("port: 5601", f"port: {wrist_port}")
    options = [f"--{key}={json.dumps(value)}" for key, value in changes.items()]
    data = config_files.merge_options(yaml.safe_load(text), options)
    target.write_text(yaml.safe_dump(data, sort_keys=False))


def start_background(
    cleanup: ExitStack, log: Path, words: list[str], env: dict[str, str]
) -> subprocess.Popen:
    """Start a command that `cleanup` stops, its output in `log`."""
    out = cleanup.enter_context(log.open("w"))
    process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=env)
    cleanup.callback(end, process)
    return process


def wait_for(process: subprocess.Popen, log: Path, word: str, timeout_s: float = 90.0) -> None:
    """Wait until `word` stands in the log of a command started in the background."""
    end = time.monotonic() + timeout_s
    while word not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            raise UserError(f"no '{word}' from {' '.join(process.args[1:4])}; its log ends:\n{tail(log)}")
        time.sleep(0.2)


def losses(log: Path) -> list[tuple[int, float]]:
    """(step, loss) pairs that LeRobot's train logged."""
    found = re.findall(r"step:(\S+) .*?loss:([\d.]+)", log.read_text(errors="replace"))
    return [(int(float(step.replace("K", "")) * (1000 if "K" in step else 1)), float(v)) for step, v in found]


def as_dict(episode: Any) -> dict[str, Any]:
    """A lab's verdict as plain data."""
    import msgspec

    return msgspec.to_builtins(episode)
