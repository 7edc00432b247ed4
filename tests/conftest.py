"""No test talks to the hub; MuJoCo renders in software; small real checkpoints and a real server for whoever asks."""

import logging
import os
import signal
from pathlib import Path

import hypothesis
import pytest

# Machines stand still for longer than the 200 ms that it allows an example by default.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell that runs us in the background has SIGINT ignored, which every process that a test starts would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "osmesa")


@pytest.fixture
def unhurried_bus(monkeypatch):
    """LeRobot's own bus waits 50 ms for an answer and asks once: a test machine may stand still for longer."""
    from lerobot.motors.feetech import feetech

    hurried = feetech.patch_setPacketTimeout

    def unhurried(self, packet_length):
        hurried(self, packet_length)
        self.packet_timeout += 500

    monkeypatch.setattr(feetech, "patch_setPacketTimeout", unhurried)


@pytest.fixture(autouse=True)
def ordinary_scheduling():
    """SVT-AV1, LeRobot's default encoder, makes the thread that calls it a real-time one where it may (for root).

    Every process that a later test starts would inherit that, and starve the others.
    """
    yield
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture
def undisturbed_logging():
    """LeRobot's commands set the root logger up for themselves."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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
