"""The dataset of `small_dataset`, made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_dataset import make_dataset

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "all")


@pytest.fixture
def open_dataset(dataset_root):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def open_it(**options):
        options = {"return_uint8": True, "video_backend": "pyav"} | options
        return LeRobotDataset("test/all", root=dataset_root, **options)

    return open_it
