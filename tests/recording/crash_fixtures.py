"""Fixtures with the folders of `stock_crashes`; made once, in an interpreter that knows nothing of our plugin."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stock_crashes as stock


@pytest.fixture(scope="session")
def crashes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("crashes")
    run = subprocess.run(
        [sys.executable, Path(stock.__file__), folder],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.fixture
def crashed(crashes, tmp_path):
    def copy(case: str) -> tuple[Path, int]:
        saved = json.loads((crashes / f"{case}.json").read_text())
        return Path(shutil.copytree(crashes / case, tmp_path / case)), saved

    return copy
