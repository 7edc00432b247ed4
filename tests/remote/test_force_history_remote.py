"""A policy on a server that looks at the last samples of force sees those that it would have seen in training."""

from __future__ import annotations

import time
from types import SimpleNamespace

import force_episodes as episodes
import numpy as np
import pytest
import standin
import torch
from force_episodes import FORCE, FRAMES, HISTORY, IMAGE, STATE
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.rollout.inference.rtc import RTCInferenceEngine
from lerobot.utils.feature_utils import hw_to_dataset_features

import lerobot_ext
from lerobot_ext.features import VectorFeature
from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.factory import make_engine
from lerobot_ext.rollout.sources import LocalSource, Request
from simplify_work.local import PolicyClient
from simplify_work.local.history import History
from simplify_work.local.measure import example_observation
from simplify_work.server.runner import PolicyRunner
from simplify_work.wire.errors import FeatureMismatch
from simplify_work.wire.features import FeatureSpec, describe

lerobot_ext.register()
ROBOT = dict.fromkeys(episodes.JOINTS, float) | {
    "side": (16, 24, 3),
    "force": VectorFeature(episodes.FORCES),
}
FEATURES = hw_to_dataset_features(ROBOT, "observation")
WRAPPER = SimpleNamespace(robot_type="so101", inner=SimpleNamespace(), action_features={})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A SmolVLA with a force token on a server, with everything that it was trained on."""
    folder = tmp_path_factory.mktemp("token")
    seen = episodes.record(folder / "data")
    view = episodes.open_view(folder / "data")
    path = episodes.make_checkpoint(folder / "checkpoint", folder / "vlm", view)
    runner = PolicyRunner(path, device="cpu")
    runner.warm_up()
    server, address = standin.start(runner)
    windows = episodes.watch(runner._policy)
    yield SimpleNamespace(path=path, seen=seen, view=view, runner=runner, address=address, windows=windows)
    server.stop()


@pytest.fixture
def expected(served):
    """Of an episode and a frame: the window that training gives to the network, (H * n,)."""
    pre = episodes.load(served.path).pre

    def window(episode: int, frame: int) -> torch.Tensor:
        item = torch.utils.data.default_collate([served.view[episode * FRAMES + frame]])
        return pre(item)[FORCE].flatten()

    return window


def remote(served, **options) -> RemotePolicy:
    return RemotePolicy(RemoteConfig(address=served.address, timeout_s=60, **options))


def batch(frame) -> dict:
    return prepare_observation_for_inference(dict(frame), torch.device("cpu"), "press")


def observation(frame) -> dict:
    """What the robot's observation processor gives for a recorded frame."""
    joints = dict(zip(episodes.JOINTS, frame[STATE].tolist(), strict=True))
    return joints | {"side": frame[IMAGE], "force": frame[FORCE]}


def chosen(windows: list[torch.Tensor], calls: int) -> list[torch.Tensor]:
    """One window a chunk: a chunk takes several steps of denoising, all with the same one."""
    steps = len(windows) // calls
    assert steps * calls == len(windows)
    for call in range(calls):
        assert all(
            torch.equal(windows[call * steps], one) for one in windows[call * steps : (call + 1) * steps]
        )
    return windows[::steps]


def test_the_server_says_which_samples_it_wants(served):
    with PolicyClient(served.address) as client:
        inputs = {spec.name: spec for spec in client.connect().inputs}
    assert (inputs[FORCE].shape, inputs[FORCE].history) == ((3,), HISTORY)
    assert inputs[STATE].history == inputs[IMAGE].history == 1
    assert inputs[FORCE].sent.shape == (HISTORY, 3) and inputs[STATE].sent is inputs[STATE]
    assert str(inputs[FORCE]) == "observation.force (3,) of the last 4 steps"
    assert describe(example_observation(tuple(inputs.values())))[1].shape == (HISTORY, 3)


def test_lerobots_loop_sends_windows_of_every_control_step(served, expected):
    policy = remote(served, n_action_steps=3)
    for episode, frames in enumerate(served.seen):
        policy.reset()
        served.windows.clear()
        for frame in frames:
            policy.select_action(batch(frame))
        asked = range(0, FRAMES, 3)
        for frame, window in zip(asked, chosen(served.windows, len(asked)), strict=True):
            assert torch.equal(window, expected(episode, frame)), f"episode {episode}, frame {frame}"


def test_frames_without_a_request_are_remembered(served, expected):
    policy = remote(served)
    policy.reset()
    served.windows.clear()
    for frame in served.seen[0][:6]:
        policy.observe(frame)
    policy.infer(served.seen[0][6], "press")
    assert torch.equal(chosen(served.windows, 1)[0], expected(0, 6))


def test_two_robots_do_not_share_a_history(served, expected):
    robots = [remote(served, n_action_steps=1) for _ in served.seen]
    for robot in robots:
        robot.reset()
    served.windows.clear()
    for frame in range(5):
        for robot, frames in zip(robots, served.seen, strict=True):
            robot.select_action(batch(frames[frame]))
    seen = chosen(served.windows, 10)
    for call in range(10):
        assert torch.equal(seen[call], expected(call % 2, call // 2))


def test_a_robot_with_another_sensor_is_refused_before_it_moves(served):
    with pytest.raises(FeatureMismatch, match=r"observation.force has shape \(2,\), wanted \(3,\)"):
        remote(served).check_features(ROBOT | {"force": VectorFeature(["x", "y"])})
    remote(served).check_features(ROBOT)
    given = [*describe(served.seen[0][0])]
    with PolicyClient(served.address) as client:
        client.connect(given)
    given = [FeatureSpec(FORCE, "vector", (2,), ("float32",)) if s.name == FORCE else s for s in given]
    with PolicyClient(served.address) as client, pytest.raises(FeatureMismatch, match="of the last 4 steps"):
        client.connect(given)


def test_one_sample_in_place_of_a_window_is_refused(served):
    with PolicyClient(served.address) as client, pytest.raises(FeatureMismatch, match=r"wanted \(4, 3\)"):
        client.infer(served.seen[0][0])
    with pytest.raises(FeatureMismatch, match=r"has shape \(2,\), wanted \(3,\)"):
        remote(served).infer({**served.seen[0][0], FORCE: np.zeros(2, np.float32)})
    with pytest.raises(FeatureMismatch, match=r"has shape \(5, 3\), wanted \(4, 3\)"):
        remote(served).infer({**served.seen[0][0], FORCE: np.zeros((5, 3), np.float32)})


@pytest.mark.parametrize("where", ["local", "remote"])
def test_the_async_engine_gives_windows_of_every_control_step(served, expected, where):
    if where == "remote":
        policy, pre, post = remote(served), None, None
        windows = served.windows
    else:
        loaded = episodes.load(served.path)
        policy, pre, post = loaded.policy, loaded.pre, loaded.post
        windows = episodes.watch(policy)
    engine = make_engine(
        AsyncInferenceConfig(merge="append"),
        policy=policy,
        preprocessor=pre,
        postprocessor=post,
        robot_wrapper=WRAPPER,
        hw_features=FEATURES,
        dataset_features=FEATURES,
        ordered_action_keys=episodes.JOINTS,
        task="press",
        fps=float(episodes.FPS),
        device="cpu",
    )
    engine.reset()
    engine.start()
    try:
        for episode, frames in enumerate(served.seen):
            engine.reset()
            windows.clear()
            for frame in frames[: 4 + episode]:  # shown before anything is asked for
                engine.notify_observation(observation(frame))
            engine.resume()
            until = time.monotonic() + 60
            while (action := engine.get_action(None)) is None and time.monotonic() < until:
                time.sleep(0.01)
            assert action is not None
            assert torch.equal(chosen(windows, 1)[0], expected(episode, 3 + episode))
            engine.pause()
    finally:
        engine.stop()


def test_a_window_is_what_a_local_source_takes(served):
    loaded = episodes.load(served.path)
    source = LocalSource(
        loaded.policy,
        loaded.pre,
        loaded.post,
        features=FEATURES,
        action_names=episodes.JOINTS,
        task="press",
        robot_type="so101",
        device="cpu",
    )
    assert source.windows == {"force": HISTORY}
    seen = observation(served.seen[0][0]) | {"force": np.zeros((HISTORY, 3), np.float32)}
    assert source.infer(Request((seen,))).actions.shape == (8, 6)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_lerobots_rtc_engine_gets_the_samples_between_chunks(served, expected, where):
    if where == "remote":
        from lerobot.policies.factory import make_pre_post_processors

        policy = remote(served)
        policy.config.rtc_config = RTCConfig()
        policy.init_rtc_processor()
        pre, post = make_pre_post_processors(policy.config, pretrained_path=None)
        windows = served.windows
    else:
        loaded = episodes.load(served.path)
        policy, pre, post = loaded.policy, loaded.pre, loaded.post
        windows = episodes.watch(policy)
    engine = RTCInferenceEngine(policy, pre, post, WRAPPER, RTCConfig(), FEATURES, "press", 30, "cpu")
    engine.start()
    try:
        for episode, frames in enumerate(served.seen):
            engine.pause()
            engine.notify_observation(None)
            engine.reset()
            windows.clear()
            for frame in frames[:6]:
                engine.notify_observation(observation(frame))
            engine.resume()
            until = time.monotonic() + 60
            wanted = [expected(one, 5) for one in range(episode + 1)]
            while not any(torch.equal(seen, wanted[-1]) for seen in windows):
                assert time.monotonic() < until
                time.sleep(0.01)
            # A chunk that was in flight may have ended meanwhile; nothing is ever a mixture.
            assert all(any(torch.equal(seen, one) for one in wanted) for seen in list(windows))
    finally:
        engine.stop()


def test_a_history_of_windows_and_of_observations_at_once():
    """A policy may look at several observations, each with the samples before it."""
    history = History(2, {"force": 3, "state": 1})
    assert history.windows == ("force",)
    for value in range(4):
        sent = history.add({"force": np.full(1, value), "state": np.full(1, value)})
    assert sent["state"][:, 0].tolist() == [2, 3]
    assert sent["force"][..., 0].tolist() == [[0, 1, 2], [1, 2, 3]]
    history.clear()
    assert history.add({"force": np.full(1, 9), "state": np.full(1, 9)})["force"].tolist() == [[[9]] * 3]
