"""The start of a run in two processes: a robot that does not connect is named, and left to whoever still uses it."""

import threading
import time
from types import SimpleNamespace

import pytest
from split_rig import SMALL_SERVER

from lerobot_ext.errors import UserError
from lerobot_ext.rollout import start
from lerobot_ext.rollout.companion import InferenceProcess
from simplify_work.wire.private import PrivateFolder


class HangingArm:
    """Its port takes the words and answers nothing, so that `connect` does not come back."""

    action_features = {"gripper.pos": float}
    is_connected = False
    is_calibrated = True
    calibration_fpath = "/calibrations/follower.json"

    def __init__(self):
        self.unplugged = threading.Event()
        self.disconnected = False
        self.config = SimpleNamespace(disable_torque_on_disconnect=True)

    def connect(self, calibrate=True):
        self.unplugged.wait(60)
        raise ConnectionError("unplugged")

    def disconnect(self):
        self.disconnected = True


class MovingArm(HangingArm):
    """It connects and begins to move; then `send_action` does not come back."""

    def __init__(self):
        super().__init__()
        self.sent, self.moving = [], threading.Event()

    def connect(self, calibrate=True):
        assert not calibrate, "nobody can be asked"
        self.is_connected = True

    def get_observation(self):
        return {"gripper.pos": 0.0}

    def send_action(self, action):
        self.sent.append(action)
        if len(self.sent) > 3:
            self.moving.set()
            self.unplugged.wait(60)


@pytest.fixture
def process(tmp_path):
    folder = PrivateFolder()
    process = InferenceProcess(SMALL_SERVER, folder, tmp_path / "log")
    process.start()
    yield process
    process.stop()
    folder.close()


@pytest.fixture
def arm():
    arm = HangingArm()
    yield arm
    arm.unplugged.set()


def begin(arm, process, shutdown, initial_position=None, **limits):
    cfg = SimpleNamespace(
        robot=SimpleNamespace(type="hanging"),
        initial_position=initial_position,
        initial_speed=1.0,
        initial_tolerance=1.0,
    )
    with (
        start.session(start.Plan(process, start.SplitConfig(load_s=600, **limits))),
        start.starting(cfg, shutdown, lambda robot_cfg: arm),
    ):
        pytest.fail("it began")


def test_a_robot_that_does_not_connect_is_named(process, arm, monkeypatch):
    monkeypatch.setattr(start, "_PATIENCE_S", 0.1)
    with pytest.raises(start.PhaseError) as caught:
        begin(arm, process, threading.Event(), connect_s=0.3)
    told = str(caught.value)
    for word in ("robot: it was not connected", "split.connect_s=0.3 s", "cables", "power", "| policy: "):
        assert word in told
    assert not arm.disconnected, "its thread still uses the port"


def test_ctrl_c_while_it_connects(process, arm, monkeypatch):
    monkeypatch.setattr(start, "_PATIENCE_S", 0.1)
    shutdown = threading.Event()
    threading.Timer(0.3, shutdown.set).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        begin(arm, process, shutdown, connect_s=60)
    assert time.monotonic() - began < 30, "it does not wait for connect_s"


def test_an_arm_that_was_moved_keeps_its_torque_also_while_it_does_not_answer(process, monkeypatch, lines):
    """LeRobot's robots are disconnected when they are forgotten, which would let the arm fall."""
    monkeypatch.setattr(start, "_PATIENCE_S", 0.1)
    arm, shutdown = MovingArm(), threading.Event()

    def interrupt():
        arm.moving.wait(60)
        shutdown.set()

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            begin(arm, process, shutdown, {"gripper": 50.0})
        assert not arm.config.disable_torque_on_disconnect and lines.first("its torque stays on")
        assert not arm.disconnected, "its thread still uses the port"
    finally:
        arm.unplugged.set()


def test_an_arm_that_is_not_calibrated_is_named_and_nobody_is_asked(process):
    arm = MovingArm()
    arm.is_calibrated = False
    with pytest.raises(
        UserError, match=r"do not hold the calibration of /calibrations/follower.json; run `lerobot-cal"
    ):
        begin(arm, process, threading.Event(), {"gripper": 50.0})
    assert arm.disconnected and not arm.sent


def test_what_connect_says_is_what_the_user_gets(process, arm):
    arm.unplugged.set()
    with pytest.raises(ConnectionError, match="unplugged"):
        begin(arm, process, threading.Event(), connect_s=60)


def test_restarts_that_would_be_in_vain_are_told(process, lines):
    """A policy that takes longer to load than the engine waits for chunks cannot come back in time."""

    def ready(give_up_s, **limits):
        cfg = SimpleNamespace(
            robot=SimpleNamespace(type="there"),
            initial_position=None,
            inference=SimpleNamespace(give_up_s=give_up_s),
        )
        arm = SimpleNamespace(
            connect=lambda calibrate: None, get_observation=dict, is_connected=False, is_calibrated=True
        )
        lines.records.clear()
        plan = start.Plan(process, start.SplitConfig(load_s=600, **limits))
        with start.session(plan), start.starting(cfg, threading.Event(), lambda robot_cfg: arm):
            return [record.getMessage() for record in lines.records if record.levelname == "WARNING"]

    assert not any("in vain" in told for told in ready(600, restarts=1))
    assert not any("in vain" in told for told in ready(1e-3))
    assert any(
        "split.restarts=2 is in vain" in told and "give_up_s" in told for told in ready(1e-3, restarts=2)
    )
