"""π0, π0.5 and GR00T as LeRobot has them, small: guided here and on a server, seeded, and at two rates in the engine."""

import contextlib
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from guidance_requests import STEPS, WIDTH, ask, finite_difference_gaps, lerobots_chunk, rand
from lerobot.policies.groot.configuration_groot import infer_groot_model_version, is_raw_groot_n1_7_checkpoint
from lerobot.policies.groot.processor_groot import GrootN17ActionDecodeStep
from lerobot.policies.utils import prepare_observation_for_inference
from local_policy import FEATURES, JOINTS, TASK, frame, load, make, observation
from tiny_pi import make_pi, tiny_pi

from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.guidance import guided, supports_guidance
from lerobot_ext.rollout.loop import PacedLoop
from lerobot_ext.rollout.sources import LocalSource, RemoteSource, Request
from lerobot_ext.virtual.tiny_groot import groot_overrides, make_tiny_groot, use_tiny_backbone
from simplify_work.server.runner import PolicyRunner
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.messages import Rtc

FORMS = ("identity", "jacobian")


@pytest.fixture(scope="module", autouse=True)
def small():
    with tiny_pi():
        yield


def make_groot(folder):
    pytest.importorskip("tree", reason="LeRobot's groot takes dm-tree, of the extra lerobot[groot]")
    tiny = make_tiny_groot(folder / "tiny", chunk_size=STEPS)
    options = groot_overrides(tiny, chunk_size=STEPS)
    for name in ("type", "device", "push_to_hub"):
        options.pop(name)
    return make_checkpoint(
        "groot", folder / "groot", change=lambda pre, post: use_tiny_backbone(pre, tiny), **options
    )


@pytest.fixture(scope="module", params=["pi0", "pi05", "groot"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return make_groot(folder) if request.param == "groot" else make_pi(request.param, folder / request.param)


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def pi(request, tmp_path_factory):
    return load(make_pi(request.param, tmp_path_factory.mktemp("own") / request.param))


@pytest.fixture(scope="module")
def local(checkpoint):
    return local_source(*load(checkpoint))


@pytest.fixture(scope="module")
def address(checkpoint):
    with serving(checkpoint) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def remote(address):
    policy = RemotePolicy(RemoteConfig(address=address, timeout_s=60))
    yield RemoteSource(policy, features=FEATURES, task=TASK)
    policy.close()


def local_source(policy, preprocessor, postprocessor):
    return LocalSource(
        policy,
        preprocessor,
        postprocessor,
        features=FEATURES,
        action_names=JOINTS,
        task=TASK,
        robot_type="so100",
        device="cpu",
    )


@contextlib.contextmanager
def serving(path):
    runner = PolicyRunner(path, device="cpu")
    runner.warm_up()
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    server = PolicyServer(runner, socket)
    endpoint = listen.endpoint(socket)
    server.start()
    yield endpoint
    server.stop()


def batch_of(parts):
    with torch.no_grad():
        return parts[1](
            prepare_observation_for_inference(frame(observation(1)), torch.device("cpu"), TASK, "")
        )


def continuing(source, form="identity"):
    """A request whose chunk shall go on as the last one would have, from its fourth action on."""
    first = source.infer(Request((observation(0),), seed=3))
    left = first.model_actions[3:]
    return Request((observation(1),), Rtc(3, len(left), form), left, first.actions[3:], seed=5)


# The guidance of π0 and π0.5


@pytest.mark.parametrize(("schedule", "rows", "horizon"), [("linear", 8, 7), ("exp", 10, 7), ("ones", 4, 7)])
def test_identity_is_lerobots_own_on_the_real_classes(pi, schedule, rows, horizon):
    policy, batch, noise = pi[0], batch_of(pi), rand(1, STEPS, WIDTH)
    assert supports_guidance(policy)
    request = ask(horizon=horizon, schedule=schedule, rows=rows)
    expected = lerobots_chunk(policy, batch, noise, request)
    with torch.no_grad(), guided(policy, [request]):
        found = policy.predict_action_chunk(dict(batch), noise=noise)
    with torch.no_grad():
        free = policy.predict_action_chunk(dict(batch), noise=noise)
    assert (found - expected).abs().max() < 1e-5 < 1e-3 < (found - free).abs().max()


def test_jacobian_agrees_with_finite_differences_on_the_real_classes(pi, monkeypatch):
    gaps = finite_difference_gaps(pi[0], batch_of(pi), monkeypatch)
    assert len(gaps) == pi[0].config.num_inference_steps
    assert max(gaps) < 2e-2, gaps


# All three: here and on a server


@pytest.mark.parametrize("form", FORMS)
def test_the_new_chunk_begins_as_the_old_one_goes_on(local, form):
    request = continuing(local, form)
    free = local.infer(Request(request.observations, seed=5))
    bound = local.infer(request)
    far, near = (np.abs(answer.model_actions[:3] - request.left_over[:3]).mean() for answer in (free, bound))
    assert local.supports_rtc and near < 0.3 * far


@pytest.mark.parametrize("form", FORMS)
def test_a_server_guides_as_the_policy_here(local, remote, form):
    assert remote.supports_rtc
    request = continuing(local, form)
    here, there = local.infer(request), remote.infer(request)
    assert np.abs(here.model_actions - there.model_actions).max() < 1e-5
    assert np.abs(here.actions - there.actions).max() < 1e-5


def test_a_seed_repeats_a_chunk_here_and_there(local, remote):
    torch.manual_seed(0)
    first, other = (local.infer(Request((observation(0),), seed=seed)).actions for seed in (7, 8))
    torch.manual_seed(1)
    again, there = (source.infer(Request((observation(0),), seed=7)).actions for source in (local, remote))
    assert np.array_equal(first, again) and np.abs(first - other).max() > 1e-2
    assert np.abs(first - there).max() < 1e-5


def test_unseeded_noise_goes_on_as_if_no_seed_had_been(local):
    torch.manual_seed(4)
    plain = [local.infer(Request((observation(0),))).actions for _ in range(2)]
    torch.manual_seed(4)
    first = local.infer(Request((observation(0),))).actions
    local.infer(Request((observation(0),), seed=7))
    assert np.array_equal(plain[0], first)
    assert np.array_equal(plain[1], local.infer(Request((observation(0),))).actions)


class Still:
    """An arm that sees the same and counts what it is told."""

    def __init__(self):
        self.sent = []

    def get_observation(self):
        return observation(0)

    def send_action(self, action):
        self.sent.append(list(action.values()))


def test_a_slow_policy_drives_a_fast_arm_with_rtc(checkpoint):
    config = AsyncInferenceConfig(
        policy_hz=20.0,
        control_hz=100.0,
        seed=1,
        hold_joints=[JOINTS[-1]],
        action_limits=dict.fromkeys(JOINTS, (-1000000.0, 1000000.0)),
    )
    engine = make(checkpoint, config)
    assert engine._merge == "rtc"
    arm = Still()
    until = time.monotonic() + 60
    engine.reset()
    engine.start()
    engine.resume()
    try:
        loop = PacedLoop(engine, arm, stop=lambda: loop.tally.steps >= 15 or time.monotonic() > until)
        tally = loop.run()
        chunks = engine._log.counts.chunks
    finally:
        engine.stop()
    assert tally.steps >= 15 and chunks >= 2 and not engine.failed
    assert len(arm.sent) >= 4 * tally.steps and np.isfinite(arm.sent).all()


# GR00T's own way


def test_groot_keeps_what_will_have_been_executed_to_the_bit(tmp_path):
    source = local_source(*load(make_groot(tmp_path)))
    request = continuing(source)
    answer = source.infer(request)
    assert np.array_equal(answer.model_actions[:3], request.left_over[:3])
    short = Request(request.observations, Rtc(2, 4), request.left_over, request.planned, seed=5)
    answer = source.infer(short)
    assert np.array_equal(answer.model_actions[:2], request.left_over[:2]), (
        "the leftover's begin, not its end"
    )


def test_groot_with_relative_actions_is_not_guided():
    def groot(relative):
        config = SimpleNamespace(use_relative_actions=relative)
        return SimpleNamespace(name="groot", config=config, supports_rtc=lambda: True)

    native = SimpleNamespace(steps=[GrootN17ActionDecodeStep(use_relative_action=True)])
    assert supports_guidance(groot(False))
    assert not supports_guidance(groot(True)) and not supports_guidance(groot(False), native)


def test_the_small_groot_is_a_base_model_of_its_version_and_made_once(tmp_path):
    path = make_tiny_groot(tmp_path / "tiny")
    base = groot_overrides(path)["base_model_path"]
    assert is_raw_groot_n1_7_checkpoint(base) and infer_groot_model_version(base) == "n1.7"
    weights = path / "base" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert make_tiny_groot(path) == path and weights.stat().st_mtime_ns == before
    assert weights.stat().st_size < 16 << 20
    with pytest.raises(ValueError, match="image_size 80: expected a multiple of 32"):
        make_tiny_groot(tmp_path / "other", image_size=80)
