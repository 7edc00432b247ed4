"""The phases of a start with a stand-in for the inference process: who waits for what, and what an end leaves behind."""

import logging
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lerobot_ext.rollout import start
from lerobot_ext.rollout.start import PhaseError, Plan, SplitConfig

PAN = "pan.pos"


class Process:
    """As `InferenceProcess`, with nothing behind it."""

    log = "the.log"
    doing = "loading it"

    def __init__(self, ready=lambda: True):
        self.started, self.death, self.on_death = time.monotonic(), None, None
        self.is_ready, self.loading_s = ready, 1.5

    @property
    def ready(self):
        return self.is_ready()

    def last_lines(self):
        return "  | its last words"

    def when_dead(self, callback):
        self.on_death = callback


class Arm:
    """A robot that arrives at once."""

    action_features = observation_features = {PAN: float}
    is_calibrated = True

    def __init__(self):
        self.config = SimpleNamespace(disable_torque_on_disconnect=True)
        self.is_connected, self.connects, self.at = False, 0, 0.0

    def connect(self, calibrate=True):
        self.connects += 1
        self.is_connected = True

    def disconnect(self):
        self.is_connected = False

    def get_observation(self):
        return {PAN: self.at}

    def send_action(self, action):
        self.at = action[PAN]


@pytest.fixture
def arm():
    return Arm()


def config(**more):
    robot = SimpleNamespace(type="arm")
    given = {
        "robot": robot,
        "initial_position": {PAN: 20.0},
        "initial_speed": 500.0,
        "initial_tolerance": 1.0,
    }
    return SimpleNamespace(**given | more)


class Begun:
    """A rollout that was put together, as LeRobot does it."""

    def __init__(self, arm, process, shutdown=None, confirm=None, cfg=None, limits=None, progress=None):
        self.shutdown = shutdown or threading.Event()
        more = {} if progress is None else {"progress": progress}
        plan = Plan(process, limits or SplitConfig(), confirm, **more)
        self.cfg = cfg or config()
        with (
            start.session(plan),
            start.starting(self.cfg, self.shutdown, lambda robot_cfg: arm) as starting,
        ):
            robot = starting.robot(self.cfg.robot)
            robot.connect()
            self.ctx = SimpleNamespace(
                hardware=SimpleNamespace(
                    robot_wrapper=SimpleNamespace(inner=robot), initial_position={PAN: 0.0, "lift.pos": 3.0}
                ),
                runtime=SimpleNamespace(cfg=SimpleNamespace(return_to_initial_position=True)),
                policy=SimpleNamespace(policy=SimpleNamespace(check_features=self.check)),
            )
            self.checked = None
            starting.finish(self.ctx)
        assert plan not in start._plans

    def check(self, features):
        self.checked = features


def test_lerobot_connects_what_is_connected_already(arm):
    begun = Begun(arm, Process())
    assert arm.connects == 1 and arm.at == 20.0 and begun.checked == {PAN: float}
    assert begun.ctx.hardware.initial_position == {PAN: 20.0, "lift.pos": 3.0}
    arm.disconnect()
    arm.connect()
    assert arm.connects == 2, "only once it is not"


def test_from_then_on_the_process_s_end_is_the_run_s_and_the_arm_holds(arm, lines):
    process = Process()
    begun = Begun(arm, process)
    assert begun.ctx.runtime.cfg.return_to_initial_position and not begun.shutdown.is_set()
    process.on_death()
    assert begun.shutdown.is_set() and not begun.ctx.runtime.cfg.return_to_initial_position
    assert not arm.config.disable_torque_on_disconnect
    assert lines.first("the run ends, the arm holds").levelno == logging.ERROR


@pytest.mark.parametrize("when", ["moving", "compared", "asked"])
def test_a_process_that_died_before_the_operator_said_go(arm, when, monkeypatch):
    process = Process()

    def die(*args):
        process.death = "it was ended by SIGKILL"

    def confirm(still_wanted):
        die()
        still_wanted()
        pytest.fail("the question is asked on")

    if when == "moving":
        arm.send_action = lambda action, send=arm.send_action: (send(action), die())
    if when == "compared":
        monkeypatch.setattr(Begun, "check", die)
    with pytest.raises(PhaseError, match="it was ended by SIGKILL"):
        Begun(arm, process, confirm=confirm if when == "asked" else None)
    assert process.on_death is None
    assert not arm.is_connected and not arm.config.disable_torque_on_disconnect, "it was moved, so it holds"


def test_ctrl_c_while_the_operator_is_asked(arm, lines):
    shutdown = threading.Event()

    def interrupt(still_wanted):
        still_wanted()
        shutdown.set()
        still_wanted()

    with pytest.raises(KeyboardInterrupt):
        Begun(arm, Process(), shutdown, interrupt)
    assert not arm.is_connected and lines.first("torque stays on")


def test_an_arm_that_was_not_moved_is_released_as_always(arm, lines):
    with pytest.raises(PhaseError, match="died"):
        process = Process()
        process.death = "died"
        Begun(arm, process, cfg=config(initial_position=None))
    assert arm.config.disable_torque_on_disconnect and not lines.first("torque stays on")


def test_the_reason_is_heard_also_if_the_arm_cannot_be_disconnected(arm, lines):
    def fail():
        raise ConnectionError("it is unplugged")

    arm.disconnect = fail
    with pytest.raises(KeyboardInterrupt):
        Begun(arm, Process(), confirm=lambda still_wanted: (_ for _ in ()).throw(KeyboardInterrupt))
    assert lines.first("could not be disconnected: it is unplugged")


def test_the_last_words_of_a_process_that_dies_while_it_loads(arm):
    process = Process(ready=lambda: False)
    process.death = "it ended with exit status 2"
    with pytest.raises(
        PhaseError, match=r"policy: it ended with exit status 2\. It ends:\n  \| its last words"
    ):
        Begun(arm, process)


def test_a_policy_that_is_not_ready_in_time(arm):
    with pytest.raises(PhaseError) as caught:
        Begun(arm, Process(ready=lambda: False), limits=SplitConfig(load_s=0.2))
    for said in ("split.load_s=0.2 s", "(it is loading it)", "robot: ", "policy: loading it, ", "the.log"):
        assert said in str(caught.value)


def test_an_arm_that_does_not_arrive_in_time(arm):
    arm.send_action = lambda action: None
    with pytest.raises(PhaseError, match=r"within split.move_s=0.1 s \(on its way\); raise initial_speed"):
        Begun(arm, Process(), limits=SplitConfig(move_s=0.1), cfg=config(initial_speed=5.0))


def test_a_robot_that_was_broken_off_sends_nothing_more(arm):
    sent = []
    arm.send_action = sent.append
    shutdown = threading.Event()
    threading.Timer(0.2, shutdown.set).start()
    with pytest.raises(KeyboardInterrupt):
        Begun(arm, Process(), shutdown, cfg=config(initial_speed=1.0))
    count = len(sent)
    time.sleep(0.1)
    assert len(sent) == count and not arm.is_connected
    assert not [each for each in threading.enumerate() if each.name == "robot-start"]


def test_how_things_stand_is_shown_or_logged_now_and_then(arm, lines, monkeypatch):
    def begin(ready, progress=nullcontext):
        Begun(Arm(), Process(ready), cfg=config(initial_position=None), progress=progress)

    shown = []
    begin(lambda: len(shown) > 3, lambda: nullcontext(shown.append))
    assert shown[-1].startswith("robot: ready | policy: loading it, ")
    assert not lines.first("| policy:"), "on the terminal, not in the log"
    monkeypatch.setattr(start, "_LINE_EVERY_S", 60.0)
    looks = iter(10 * [False])
    begin(lambda: next(looks, True))
    assert not lines.first("| policy:"), "it did not take long"
    monkeypatch.setattr(start, "_LINE_EVERY_S", 0.05)
    begin(lambda: lines.first("| policy:") is not None)
    assert lines.first("robot ready (after ") and lines.first("policy ready (after 1.5 s)")


def test_without_an_inference_process_the_way_begins_when_lerobot_is_done(arm):
    cfg = config()
    with start.starting(cfg, threading.Event(), lambda robot_cfg: arm) as starting:
        assert arm.connects == 0
        robot = starting.robot(cfg.robot)
        robot.connect()
        ctx = SimpleNamespace(
            hardware=SimpleNamespace(robot_wrapper=SimpleNamespace(inner=robot), initial_position=None)
        )
        assert arm.at == 0.0
        starting.finish(ctx)
    assert arm.at == 20.0 and ctx.hardware.initial_position == {PAN: 20.0}


def test_without_either_nothing_is_touched(arm):
    with (
        pytest.raises(ValueError, match="LeRobot's"),
        start.starting(SimpleNamespace(), threading.Event(), lambda robot_cfg: arm) as starting,
    ):
        starting.robot(SimpleNamespace(type="arm")).connect()
        starting.finish(None)
        raise ValueError("LeRobot's own matter")
    assert arm.is_connected, "whose robot it is lets it go"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"move_s": 0}, "split.move_s is 0, expected seconds above 0"),
        ({"stop_s": float("nan")}, "split.stop_s is nan"),
        ({"connect_s": -1}, "split.connect_s is -1"),
        ({"restarts": -1}, "split.restarts is -1, expected 0 or more"),
        ({"threads": 0}, "split.threads is 0, expected 1 or more, or null"),
    ],
)
def test_limits_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        SplitConfig(**options)
