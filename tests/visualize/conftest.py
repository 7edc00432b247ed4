"""The dataset of `press_dataset`, made once a session."""

from pathlib import Path

import pytest
from press_dataset import make


@pytest.fixture(scope="session")
def press(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "press")
