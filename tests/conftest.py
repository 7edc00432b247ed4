"""No test talks to the hub; MuJoCo renders in software; small real checkpoints and a real server for whoever asks."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "osmesa")


@pytest.fixture(scope="session")
def act(tmp_path_factory) -> Path:
    import checkpoints

    return checkpoints.make_act(tmp_path_factory.mktemp("act") / "checkpoint")


@pytest.fixture(scope="session")
def smolvla(tmp_path_factory) -> Path:
    import checkpoints

    folder = tmp_path_factory.mktemp("smolvla")
    return checkpoints.make_smolvla(folder / "checkpoint", folder / "vlm")


@pytest.fixture(scope="session")
def runner(act):
    from simplify_work.server.runner import PolicyRunner

    runner = PolicyRunner(act, device="cpu")
    runner.warm_up()
    return runner


@pytest.fixture(scope="session")
def server(act):
    from servers import ServerProcess

    with ServerProcess(act) as server:
        yield server
