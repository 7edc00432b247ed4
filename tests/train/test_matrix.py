"""Every selection with every policy: trained by `lerobot-ext train` on a recording of the lab, then evaluated there.

Evaluated here and on a server, and told nothing but the checkpoint. `pytest -s` prints what each one saw.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from lerobot.configs import parser
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from on_the_lab import CAMERAS, HEIGHT, TIP, WIDTH, serving, watched, wire_bytes, yaml_of

from lerobot_ext.commands.main import main
from lerobot_ext.virtual.testing import running_lab

pytestmark = pytest.mark.usefixtures("undisturbed_logging")

RESIZE = [48, 64]
STATE, FORCE, HISTORY = 6, 15, 4
IMAGE = (1, 3, *RESIZE)
RGB = {"observation.images.side": IMAGE, "observation.images.wrist": IMAGE}
DEPTH = {"observation.images.side_depth": IMAGE}
JOINTS, FUSED = {"observation.state": (1, STATE)}, {"observation.state": (1, STATE + FORCE)}

USE_DEPTH = {"use_depth_image": True}
USE_FORCE = {"use_force": True}
USE_TOKEN = USE_FORCE | {"modality": {"force": {"fusion": "token", "force_history": HISTORY}}}
SELECTIONS = {
    "rgb": ({}, JOINTS | RGB),
    "rgb depth": (USE_DEPTH, JOINTS | RGB | DEPTH),
    "rgb force": (USE_FORCE, FUSED | RGB),
    "rgb force token": (USE_TOKEN, JOINTS | RGB | {"observation.force": (1, HISTORY, FORCE)}),
    "all, tip": (USE_DEPTH | USE_FORCE | {"use_language_tip": True}, FUSED | RGB | DEPTH),
}
CELLS = [
    (kind, name)
    for kind in ("act", "smolvla")
    for name in SELECTIONS
    if "token" not in name or kind == "smolvla"
]
BYTES = {
    "observation.state": 4 * STATE,
    "observation.force": 4 * FORCE,
    "observation.images.side": 3 * HEIGHT * WIDTH,
    "observation.images.wrist": 3 * HEIGHT * WIDTH,
    "observation.images.side_depth": 2 * HEIGHT * WIDTH,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("l"), **CAMERAS) as lab:
        yield lab


@pytest.fixture(scope="module")
def recording(lab, tmp_path_factory) -> Path:
    """Two short episodes with two colour cameras, depth, force and a tip, recorded as a user does."""
    folder = tmp_path_factory.mktemp("recording")
    words = yaml_of(
        lab,
        "collect.yaml",
        folder / "collect.yaml",
        dataset__root=str(folder / "dataset"),
        dataset__num_episodes=2,
        dataset__episode_time_s=1.5,
        dataset__reset_time_s=0,
        dataset__language_tip=TIP,
    )
    assert main(["record", words]) == 0
    return folder / "dataset"


@pytest.fixture(scope="module")
def table():
    rows = [("policy", "selection", "the network sees", "frames here", "remote", "bytes sent")]
    yield rows
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
    sys.stdout.write("\n".join(line.rstrip() for line in ["", *lines, ""]))


@pytest.fixture
def train(recording, policies, tmp_path):
    """Trains a few steps by the command; returns the checkpoint."""

    def run(kind: str, keys: dict) -> Path:
        config = {
            "dataset": {"repo_id": "lab/press", "root": str(recording), "video_backend": "pyav"},
            "policy": policies[kind],
            "modality": {"resize": RESIZE, "cache": "memory"},
            "output_dir": str(tmp_path / "train"),
            "steps": 3,
            "batch_size": 4,
            "num_workers": 0,
        }
        config |= keys | {"modality": config["modality"] | keys.get("modality", {})}
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(config))
        assert main(["train", f"--config_path={path}"]) == 0
        return tmp_path / "train/checkpoints/last/pretrained_model"

    return run


@pytest.fixture
def evaluate(lab, tmp_path, monkeypatch):
    """Evaluates one episode by the command; returns what was seen and the dataset's folder."""

    def run(name: str, ask_first=None, **keys):
        root = tmp_path / name / "dataset"
        root.parent.mkdir()
        words = yaml_of(
            lab,
            "evaluate_record.yaml",
            root.parent / "evaluate.yaml",
            dataset__root=str(root),
            dataset__num_episodes=1,
            dataset__episode_time_s=2,
            dataset__reset_time_s=0,
            visualize=False,
            **keys,
        )
        # LeRobot's parser keeps `policy.path` of a YAML for the rest of the process, which is one command's.
        monkeypatch.setattr(parser, "_config_path_args", {})
        with watched(ask_first) as seen:
            assert main(["evaluate", words]) == 0
        return seen, root

    return run


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_trained_and_evaluated(train, evaluate, monkeypatch, table, kind, name):
    keys, expected = SELECTIONS[name]
    checkpoint = train(kind, keys)
    tip = {"dataset__language_tip": TIP} if "tip" in name else {}

    here, root_here = evaluate("here", policy__path=str(checkpoint), **tip)
    monkeypatch.setenv("ENV", "local")
    with serving(checkpoint) as address:
        there, root_there = evaluate(
            "remote",
            here.first[0],
            policy__path="only/the/server/has/it",
            server__address=address,
            server__timeout_s=20,
            **tip,
        )

    frames = []
    for seen, root in ((here, root_here), (there, root_there)):
        assert {key: shape for key, shape in seen.network.items() if "language" not in key} == expected
        assert {f" Tip: {TIP}" in task for task in seen.tasks} == {"tip" in name}
        assert len(seen.actions) > 0 and np.isfinite(seen.actions).all()
        frames.append(LeRobotDataset("lab/rollout_press", root=root).num_frames)
    assert min(frames) > 0
    recorded = set(expected) | ({"observation.force"} if "use_force" in keys else set())
    history = HISTORY if "token" in name else 1
    assert not here.sent
    assert there.sent == {
        key: BYTES[key] * (history if key == "observation.force" else 1) for key in recorded
    }
    if kind == "act":  # SmolVLA draws its noise
        np.testing.assert_allclose(there.first[1], here.first[1], rtol=0, atol=1e-4)
    table.append((kind, name, shown(expected), *frames, wire_bytes(root_there)))


def shown(network: dict) -> str:
    """`state 6, side 48x64, wrist 48x64`, without what every batch has."""
    short = {
        key.removeprefix("observation.").removeprefix("images."): shape for key, shape in network.items()
    }
    return ", ".join(
        f"{key} {'x'.join(map(str, shape[2:] if len(shape) == 4 else shape[1:]))}"
        for key, shape in short.items()
    )
