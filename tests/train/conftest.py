"""A dataset, a tiny policy of each kind, and a way to train it by the command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import yaml
from checkpoints import TRAINED_ACT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The dataset is the one of tests/modality.
sys.path.append(str(Path(__file__).parents[1] / "modality"))
from small_dataset import make_dataset


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "all")


@pytest.fixture(scope="session")
def policies(tmp_path_factory) -> dict[str, dict]:
    from lerobot_ext.virtual.tiny_vlm import make_tiny_vlm, smolvla_overrides

    vlm = make_tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny")
    return {"act": TRAINED_ACT, "smolvla": smolvla_overrides(vlm, chunk_size=5)}


@pytest.fixture
def write_yaml(tmp_path, dataset_root, policies):
    """Writes a train YAML with these keys over a minimal one; returns its path."""

    def write(kind: str = "act", **keys) -> Path:
        config = {
            "dataset": {"repo_id": "test/all", "root": str(dataset_root), "video_backend": "pyav"},
            "policy": policies[kind],
            "output_dir": str(tmp_path / "out"),
            "steps": 3,
            "batch_size": 4,
            "num_workers": 0,
            "log_freq": 1,
        }
        config = {key: value for key, value in (config | keys).items() if value is not None}
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture(autouse=True)
def fresh_parser(monkeypatch):
    """LeRobot's parser keeps `policy.path` of a YAML for the rest of the process."""
    from lerobot.configs import parser

    monkeypatch.setattr(parser, "_config_path_args", {})
    monkeypatch.setattr(parser, "_config_yaml_overrides", {})
