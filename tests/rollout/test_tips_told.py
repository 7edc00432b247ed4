"""The language tip at the robot: the very words of training, for a policy that was trained on tips, and no other."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import standin
import torch
from lerobot.rollout.inference import factory
from local_policy import FEATURES, JOINTS, frame, load, make, observation

from lerobot_ext.features import TIP
from lerobot_ext.modality import ModalityStep, Selection
from lerobot_ext.policies.remote.configuration_remote import RemoteConfig
from lerobot_ext.policies.remote.modeling_remote import RemotePolicy
from lerobot_ext.recording.tips import TipPlan, tips, with_column
from lerobot_ext.rollout.config import AsyncInferenceConfig
from lerobot_ext.rollout.sources import Request
from simplify_work.server.protocol import Request as Asked
from simplify_work.server.runner import PolicyRunner

RAW = {
    "observation.state": {"kind": "other", "shape": [6], "names": list("abcdef")},
    "observation.images.side": {"kind": "rgb", "shape": [64, 64, 3]},
}
TOKENS = "observation.language.tokens"


@pytest.fixture(scope="module")
def tipped(smolvla, tmp_path_factory):
    """A checkpoint that was trained on tips."""
    path = shutil.copytree(smolvla, tmp_path_factory.mktemp("tipped") / "checkpoint")
    _, preprocessor, _ = load(path)
    preprocessor.steps = [ModalityStep(Selection(language_tip=True), RAW), *preprocessor.steps]
    preprocessor.save_pretrained(path)
    return path


def trained_on(path, tip: str) -> torch.Tensor:
    """The task's tokens as the train loop makes them of a batch of two, the second with this tip."""
    seen = frame(observation())
    picture = torch.from_numpy(seen["observation.images.side"]).permute(2, 0, 1) / 255
    batch = {
        "observation.state": torch.from_numpy(seen["observation.state"]).expand(2, -1),
        "observation.images.side": picture.expand(2, -1, -1, -1),
        "action": torch.zeros(2, 10, 6),
        "task": ["press", "press"],
        "observation.language_tip": ["", tip],
    }
    _, preprocessor, _ = load(path)
    return preprocessor(batch)[TOKENS][1]


def told(path, tip: str | None) -> torch.Tensor:
    """The task's tokens at the robot, in a session with this tip."""
    with tips.session(None if tip is None else TipPlan.of(tip)):
        engine = make(path, AsyncInferenceConfig())
    return engine._source._batch(Request((observation(),)))[TOKENS][0]


def words(tokens: torch.Tensor) -> list[int]:
    """Without the padding at the end."""
    return tokens[tokens != tokens[-1]].tolist()


def test_the_policy_here_is_told_what_it_was_trained_on(tipped):
    assert words(trained_on(tipped, "slow")) != words(trained_on(tipped, ""))
    assert words(told(tipped, "slow")) == words(trained_on(tipped, "slow"))


def test_a_policy_that_was_not_trained_on_tips_is_told_none(smolvla, caplog):
    assert torch.equal(told(smolvla, "slow"), told(smolvla, None))
    warnings = [record.message for record in caplog.records if "language tip" in record.message]
    assert warnings == [
        "language tip 'slow' is left out: the policy was not trained on tips (train it with use_language_tip: true)"
    ]


def test_none_given_is_as_an_episode_without(tipped, caplog):
    caplog.set_level("INFO")
    assert words(told(tipped, None)) == words(trained_on(tipped, ""))
    assert sum("none is given" in record.message for record in caplog.records) == 1


def test_what_is_recorded_is_what_the_policy_was_told(tipped, smolvla):
    for path, expected in ((tipped, "slow"), (smolvla, "")):
        with tips.session(TipPlan.of("slow")):
            make(path, AsyncInferenceConfig())
            assert tips.at(0) == expected
            assert TIP in with_column(FEATURES), "a tip was given, so the column is there"


def test_the_server_says_whether_it_takes_one_and_its_policy_gets_the_words_of_training(tipped, smolvla):
    assert not PolicyRunner(smolvla, device="cpu").served.takes_tip
    runner = PolicyRunner(tipped, device="cpu")
    assert runner.served.takes_tip
    session = runner.open_session()
    (batch,) = session.preprocess(Asked(session, frame(observation()), task="press Tip: slow"))
    assert words(batch[TOKENS][0]) == words(trained_on(tipped, "slow"))


@pytest.mark.parametrize(("takes", "expected"), [(True, "press Tip: slow"), (False, "press")])
def test_a_policy_on_a_server_is_told_likewise(takes, expected):
    runner = standin.StandIn(64, 64, takes_tip=takes)
    server, address = standin.start(runner)
    try:
        policy = RemotePolicy(RemoteConfig(address=address, timeout_s=30))
        with tips.session(TipPlan.of("slow")):
            engine = make_remote(policy)
        engine._source.infer(Request((observation(),)))
        policy.close()
    finally:
        server.stop()
    assert [request.task for request in runner.seen] == [expected]
    np.testing.assert_array_equal(runner.seen[0].observation[standin.SIDE], observation()["side"])


def make_remote(policy):
    """An engine for a policy that is connected."""
    return factory.create_inference_engine(
        AsyncInferenceConfig(),
        policy=policy,
        preprocessor=None,
        postprocessor=None,
        robot_wrapper=SimpleNamespace(robot_type="so101_follower", inner=SimpleNamespace()),
        hw_features=FEATURES,
        dataset_features=FEATURES,
        ordered_action_keys=JOINTS,
        task="press",
        fps=30.0,
        device="cpu",
    )
