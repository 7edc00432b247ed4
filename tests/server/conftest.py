"""Real small checkpoints, and a real server process on one of them."""

from pathlib import Path

import checkpoints
import pytest
from servers import ServerProcess


@pytest.fixture(scope="session")
def act(tmp_path_factory) -> Path:
    return checkpoints.make_act(tmp_path_factory.mktemp("act") / "checkpoint")


@pytest.fixture(scope="session")
def smolvla(tmp_path_factory) -> Path:
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
    with ServerProcess(act) as server:
        yield server
