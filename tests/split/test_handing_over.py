"""From a chunk to the arms, through the real wire and LeRobot's own loop: in order, each action once, zeros too."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from test_companion import PATIENCE_S

import lerobot_ext

lerobot_ext.register()

from lerobot.robots.bi_so_follower import BiSOFollower, BiSOFollowerConfig  # noqa: E402
from lerobot.robots.so_follower import SOFollowerConfig  # noqa: E402
from lerobot.rollout import context  # noqa: E402
from lerobot.rollout.configs import BaseStrategyConfig  # noqa: E402
from lerobot.rollout.strategies.base import BaseStrategy  # noqa: E402

from lerobot_ext.commands.evaluate import EvaluateConfig  # noqa: E402
from lerobot_ext.policies.remote.configuration_remote import RemoteConfig  # noqa: E402
from lerobot_ext.rollout.config import AsyncInferenceConfig  # noqa: E402
from simplify_work.server.protocol import Inference, Served  # noqa: E402
from simplify_work.server.server import PolicyServer  # noqa: E402
from simplify_work.wire import listen  # noqa: E402
from simplify_work.wire.address import parse_address  # noqa: E402
from simplify_work.wire.features import DTYPES, FeatureSpec  # noqa: E402
from simplify_work.wire.private import PrivateFolder  # noqa: E402

ARM = SOFollowerConfig(port="/dev/null")
NAMES = list(BiSOFollower(BiSOFollowerConfig(left_arm_config=ARM, right_arm_config=ARM)).action_features)
POLICYS = NAMES[::-1]  # the order in which the policy was taught its actions
CHUNK = 8


class TwoArms:
    """In the shape of `bi_so_follower`: joint i is at 10 * i degrees until it is told to go elsewhere, and arrives."""

    name = robot_type = "bi_so_follower"
    cameras = {}
    observation_features = action_features = dict.fromkeys(NAMES, float)

    def __init__(self):
        self.is_connected = False
        self.at = {name: 10.0 * index for index, name in enumerate(NAMES)}
        self.sent = []

    def connect(self):
        self.is_connected = True

    def disconnect(self):
        self.is_connected = False

    def get_observation(self):
        return dict(self.at)

    def send_action(self, action):
        self.sent.append(dict(action))
        self.at |= action
        return action


class Policy:
    """A runner whose chunks a function makes of the state and the number of the request."""

    def __init__(self, chunk) -> None:
        self.chunk, self.requests, self.states = chunk, 0, []
        state = FeatureSpec("observation.state", "vector", (len(NAMES),), DTYPES["vector"])
        self.served = Served("test", (state,), len(NAMES), CHUNK, CHUNK, action_names=tuple(POLICYS))

    def open_session(self):
        return SimpleNamespace(reset=lambda: None)

    def infer(self, requests):
        for index, request in enumerate(requests):
            self.requests += 1
            state = request.observation["observation.state"].copy()
            self.states.append(state)
            yield index, Inference(self.chunk(state, self.requests).astype(np.float32), 0.0, 0.0, 0.0)


@pytest.fixture
def rollout(monkeypatch):
    """`rollout(chunk, until)`: runs until so many actions were sent; returns robot, policy and context."""
    closing = []

    def run(chunk, until, at_end=lambda server, robot, serve: None, **changes):
        folder, policy, robot = PrivateFolder(), Policy(chunk), TwoArms()
        closing.append(folder.close)

        def serve():
            server = PolicyServer(policy, listen.bind(parse_address(folder.address)))
            closing.append(server.stop)
            server.start()
            return server

        server = serve()
        monkeypatch.setattr(context, "make_robot_from_config", lambda cfg: robot)
        cfg = EvaluateConfig(
            robot=BiSOFollowerConfig(left_arm_config=ARM, right_arm_config=ARM),
            policy=RemoteConfig(address=folder.address, timeout_s=1.0),
            strategy=BaseStrategyConfig(),
            inference=AsyncInferenceConfig(merge="append"),
            fps=100,
            device="cpu",
            play_sounds=False,
            return_to_initial_position=False,
            **changes,
        )
        shutdown = threading.Event()
        ctx = context.build_rollout_context(cfg, shutdown)
        before = len(robot.sent)
        strategy = BaseStrategy(cfg.strategy)
        thread = threading.Thread(target=lambda: (strategy.setup(ctx), strategy.run(ctx)), daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE_S
        while len(robot.sent) - before < until:
            assert thread.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        at_end(server, robot, serve)
        shutdown.set()
        thread.join(PATIENCE_S)
        strategy.teardown(ctx)
        return SimpleNamespace(sent=robot.sent[before:], approach=robot.sent[:before], policy=policy, ctx=ctx)

    yield run
    for close in reversed(closing):
        close()


def test_two_arms_keep_their_prefixes_and_the_policys_order(rollout):
    """The state is left then right, as the robot gives it; the action goes back by name, in whatever order."""

    def stay(state, number):
        return np.tile([state[NAMES.index(name)] for name in POLICYS], (CHUNK, 1))

    run = rollout(stay, until=2 * CHUNK)
    assert NAMES[0].startswith("left_") and NAMES[6].startswith("right_")
    assert np.allclose(run.policy.states[0], 10.0 * np.arange(12))
    expected = {name: 10.0 * index for index, name in enumerate(NAMES)}
    assert all(action == pytest.approx(expected) for action in run.sent), "every joint got its own"


def test_an_action_of_zeros_is_an_action(rollout):
    run = rollout(lambda state, number: np.zeros((CHUNK, 12)), until=2 * CHUNK)
    assert all(action == dict.fromkeys(NAMES, 0.0) for action in run.sent)
    assert np.allclose(run.policy.states[-1], 0.0), "and was executed"


def test_no_action_is_executed_twice_not_even_when_no_new_one_comes(rollout):
    def numbered(state, number):
        return np.tile((CHUNK * number + np.arange(CHUNK))[:, None] / 100, (1, 12))

    def go_away_and_come_back(server, robot, serve):
        server.stop()
        time.sleep(0.5)  # 50 ticks: what is queued is executed meanwhile
        held = len(robot.sent)
        time.sleep(0.5)
        assert len(robot.sent) == held, "nothing is sent any more, so the servos hold"
        serve()
        end = time.monotonic() + PATIENCE_S
        while len(robot.sent) < held + 2 * CHUNK:
            assert time.monotonic() < end, "it does not go on"
            time.sleep(0.01)

    run = rollout(numbered, until=5 * CHUNK, at_end=go_away_and_come_back)
    values = [action[NAMES[0]] for action in run.sent]
    assert values == sorted(values) and len(set(values)) == len(values)


def test_both_arms_begin_where_they_shall_and_come_back_there(rollout):
    wanted = {"left_gripper": 10, "right_shoulder_pan.pos": 0}
    run = rollout(
        lambda state, number: np.zeros((CHUNK, 12)), until=1, initial_position=wanted, initial_speed=1000
    )
    assert run.approach[-1]["left_gripper.pos"] == 10 and run.approach[-1]["right_shoulder_pan.pos"] == 0
    assert run.policy.states[0][NAMES.index("left_gripper.pos")] == 10, "there before the first chunk"
    home = run.ctx.hardware.initial_position
    assert home["left_gripper.pos"] == 10 and home["right_shoulder_pan.pos"] == 0 and len(home) == 12
