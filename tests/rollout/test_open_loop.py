"""Open-loop evaluation: a policy that knows the recording by heart has no error, one that is ahead has a known one."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import modeling_recall
import numpy as np
import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_ext.commands import main, open_loop
from lerobot_ext.errors import UserError
from lerobot_ext.robots import ReplayRobotConfig
from lerobot_ext.robots.replay import ReplayRobot
from lerobot_ext.rollout.open_loop import Errors, OpenLoop, watching

sys.path.insert(0, str(Path(__file__).parents[1] / "modality"))
import small_dataset

FPS, FRAMES, EPISODES, DIM, CHUNK = 30, 24, 2, 3, 10
JOINTS = ["pan.pos", "lift.pos", "grip.pos"]
SLOPES = np.arange(1, DIM + 1)  # of the actions, a step
FEATURES = {
    "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (DIM,))},
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (DIM,))},
}


def recorded(episode):
    """States, by which the frame can be told, and actions that rise by SLOPES; they go on beyond the episode."""
    frames = np.arange(FRAMES + 2 * CHUNK, dtype=np.float32)[:, None]
    return 1000 * episode + frames + np.zeros(DIM, np.float32), (100 * episode + frames * SLOPES).astype(
        np.float32
    )


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("open_loop") / "dataset"
    vector = {"dtype": "float32", "shape": (DIM,), "names": JOINTS}
    features = {"observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create("test/ramp", fps=FPS, features=features, root=root)
    for episode in range(EPISODES):
        for state, action in list(zip(*recorded(episode), strict=True))[:FRAMES]:
            dataset.add_frame({"observation.state": state, "action": action, "task": "rise"})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture(scope="session")
def recall(tmp_path_factory):
    """A checkpoint that knows the recording by heart, ahead of it by so many steps."""

    def make(shift=0):
        states, actions = (
            np.concatenate(parts) for parts in zip(*map(recorded, range(EPISODES)), strict=True)
        )
        path = tmp_path_factory.mktemp("recall") / "checkpoint"
        return modeling_recall.save(path, states, actions, FEATURES, chunk_size=CHUNK, shift=shift)

    return make


@pytest.fixture
def evaluate(root, tmp_path, monkeypatch, undisturbed_logging, capsys):
    """Runs `lerobot-ext evaluate` on the replay in this process; the report, or the error."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    quit_before = signal.getsignal(signal.SIGQUIT)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.delenv("ENV", raising=False)

    def run(checkpoint, *options, status=0, replayed=root):
        output = tmp_path / "report"
        words = [f"--robot.root={replayed}", f"--policy.path={checkpoint}", f"--open_loop.output={output}"]
        found = main.main(["evaluate", "--robot.type=replay", *words, *options])
        text = capsys.readouterr()
        assert found == status, text.err
        if status:
            return text.err
        for ending in ("html", "png"):
            assert (output / f"open_loop.{ending}").stat().st_size > 1000
        assert "predicted against recorded" in text.out
        return json.loads((output / "open_loop.json").read_text())

    yield run
    for number, handler in signals.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGQUIT, quit_before)


# --- the numbers ---


def test_errors_are_those_of_all_chunks_together():
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(length, 2)) for length in (3, 5, 4)]
    errors = Errors(2)
    for chunk in chunks:
        errors.add(chunk)
    together = np.full((3, 5, 2), np.nan)
    for padded, chunk in zip(together, chunks, strict=True):
        padded[: len(chunk)] = chunk
    assert errors.count.tolist() == [3, 3, 3, 2, 1]
    for figures, axis in (
        (errors.by_joint_and_step(), 0),
        (errors.by_joint(), (0, 1)),
        (errors.by_step(), (0, 2)),
        (errors.overall(), None),
    ):
        np.testing.assert_allclose(figures["mae"], np.nanmean(np.abs(together), axis=axis))
        np.testing.assert_allclose(figures["rmse"], np.sqrt(np.nanmean(together**2, axis=axis)))
        np.testing.assert_allclose(figures["max"], np.nanmax(np.abs(together), axis=axis))


def test_without_chunks_there_are_no_errors():
    errors = Errors(2)
    assert np.isnan(errors.overall()["mae"]) and np.isnan(errors.by_joint()["max"]).all()
    errors.add(np.empty((0, 2)))
    assert not len(errors.by_step()["mae"])


@pytest.fixture
def ramp(root):
    with ReplayRobot(ReplayRobotConfig(root=str(root), episode=[0, 1], stride=2, speed=0)) as robot:
        yield robot


def test_a_chunk_is_compared_with_its_own_episode_only_and_in_shown_frames(ramp):
    loop = OpenLoop(ramp, JOINTS[::-1])
    assert loop.recorded[1].tolist() == SLOPES[::-1].tolist()
    assert np.array_equal(loop.after(4, 3)[:, 2], [4, 6, 8])
    assert len(loop.after(FRAMES - 3, 9)) == 2 and len(loop.after(FRAMES, 99)) == FRAMES / 2
    loop.add(FRAMES - 2, loop.recorded[[FRAMES - 2] * 4], {"round_trip_s": 0.1})
    assert loop.predicted.count.tolist() == [1] and loop.predicted.overall()["max"] == 0
    assert loop.report()["round_trip_s"]["p50"] == pytest.approx(0.1)


# --- the command ---


def by_joint(part):
    return np.array([part["by_joint"][name]["mae"] for name in JOINTS])


def test_a_perfect_memory_has_no_error_in_the_whole_pipeline(evaluate, recall):
    report = evaluate(recall(), "--robot.episode=[0, 1]")
    assert report["episodes"] == [0, 1] and report["joints"] == JOINTS
    assert report["chunks"] >= 2 and report["predicted"]["overall"]["max"] == 0
    assert report["predicted"]["by_step"]["count"][0] == report["chunks"]
    assert 0 < report["executed"]["actions"] <= EPISODES * FRAMES
    assert not watching._on


def test_one_that_is_ahead_has_the_error_of_being_ahead(evaluate, recall):
    checkpoint = recall(shift=2)
    report = evaluate(checkpoint, "--open_loop.every=1")
    assert report["chunks"] == FRAMES and report["executed"]["actions"] == 0
    assert report["predicted"]["by_step"]["count"] == [FRAMES - i for i in range(CHUNK)]
    assert by_joint(report["predicted"]) == pytest.approx(2 * SLOPES)
    assert report["predicted"]["by_joint_and_step"]["grip.pos"]["rmse"] == pytest.approx([6] * CHUNK)
    again = evaluate(checkpoint, "--open_loop.every=1")
    assert again["predicted"] == report["predicted"]


def test_a_policy_on_a_server_is_compared_the_same_way(evaluate, recall, monkeypatch):
    from simplify_work.server.runner import PolicyRunner
    from simplify_work.server.server import PolicyServer
    from simplify_work.wire import listen
    from simplify_work.wire.address import parse_address

    checkpoint = recall(shift=1)
    socket = listen.bind(parse_address("tcp://127.0.0.1:0"))
    server = PolicyServer(PolicyRunner(checkpoint, device="cpu"), socket)
    address = listen.endpoint(socket)
    server.start()
    try:
        monkeypatch.setenv("ENV", "local")
        options = (f"--server.address={address}", "--server.timeout_s=30")
        quick = evaluate(checkpoint, *options, "--open_loop.every=3")
        assert quick["chunks"] == FRAMES / 3 and by_joint(quick["predicted"]) == pytest.approx(SLOPES)
        looped = evaluate(checkpoint, *options)
        assert looped["chunks"] and by_joint(looped["predicted"]) == pytest.approx(SLOPES)
        assert looped["executed"]["actions"]
    finally:
        server.stop()


def test_the_loop_with_two_rates_plays_and_ends_too(evaluate, recall):
    report = evaluate(recall(), "--inference.policy_hz=30", "--inference.control_hz=60")
    assert report["chunks"] and report["predicted"]["overall"]["max"] == 0
    assert report["executed"]["actions"]


def test_without_chunks_to_see_there_is_what_was_sent(evaluate, recall):
    report = evaluate(recall(), "--inference.type=sync", "--robot.speed=0", "--fps=200")
    assert report["chunks"] == 0 and report["executed"]["actions"] == FRAMES
    assert report["executed"]["overall"]["max"] == 0


def test_episodes_are_recorded_where_that_is_asked_for(evaluate, recall, tmp_path):
    new = tmp_path / "rollout_ramp"
    options = {"repo_id": "test/rollout_ramp", "root": new, "push_to_hub": False, "reset_time_s": 0}
    words = [f"--dataset.{key}={value}" for key, value in options.items()]
    report = evaluate(recall(), "--robot.episode=[1, 0]", "--play_sounds=false", "--visualize=false", *words)
    assert report["predicted"]["overall"]["max"] == 0
    dataset = LeRobotDataset("test/rollout_ramp", root=new)
    assert dataset.num_episodes == 2 and dataset.fps == FPS
    assert dataset.meta.tasks.index.tolist() == ["rise"]
    assert dataset.hf_dataset[0]["observation.state"][0] >= 1000  # of episode 1


def test_a_real_policy_with_a_camera_predicts_what_lerobot_computes(evaluate, tmp_path, monkeypatch):
    data = small_dataset.make_dataset(tmp_path / "pictures")
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        checkpoints.IMAGE: PolicyFeature(FeatureType.VISUAL, (3, small_dataset.HEIGHT, small_dataset.WIDTH)),
    }
    act = checkpoints.make_act(tmp_path / "act", inputs=inputs)
    report = evaluate(act, "--robot.episode=1", "--open_loop.every=8", replayed=data)
    assert report["chunks"] == 3
    item = LeRobotDataset("test/all", root=data, return_uint8=True, video_backend="pyav")[
        small_dataset.FRAMES + 8
    ]
    frame = {
        "observation.state": item["observation.state"].numpy(),
        checkpoints.IMAGE: item[checkpoints.IMAGE].permute(1, 2, 0).numpy(),
    }
    expected = checkpoints.local_chunk(act, frame, task="press").numpy()
    row, actions = watching.result.shown[1]
    assert watching.result.times_s[row] == pytest.approx(8 / small_dataset.FPS)
    np.testing.assert_allclose(actions, expected[: len(actions)], atol=1e-4)


# --- what does not go ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--robot.episode=9"], "there is no episode 9"),
        (["--robot.episode=one"], "robot.episode"),
        (["--open_loop.every=0"], "open_loop.every is 0"),
        (["--open_loop.every=1", "--robot.loop=true"], "it would never end"),
        (["--open_loop.every=1", "--inference.type=sync"], "chunks are seen with async only"),
        (["--open_loop.evry=1"], "did you mean 'open_loop.every'"),
        (["--fps=10"], r"the policy runs at 10 Hz, but the replay shows 30 frames a second"),
    ],
)
def test_a_mistake_is_one_sentence(evaluate, recall_once, options, sentence):
    error = evaluate(recall_once, *options, status=2)
    assert error.count("error: ") == 1 and sentence in error


@pytest.fixture(scope="session")
def recall_once(recall):
    return recall()


def test_a_policy_that_wants_a_camera_that_was_not_recorded_is_refused(evaluate, act):
    error = evaluate(act, status=2)
    assert "the policy wants observation.images.side, but the recording has observation.state;" in error


def test_a_policy_of_another_robot_is_refused(recall_once, root, tmp_path):
    from lerobot.configs import PreTrainedConfig

    policy = PreTrainedConfig.from_pretrained(recall_once)
    policy.output_features["action"] = PolicyFeature(FeatureType.ACTION, (7,))
    cfg = SimpleNamespace(policy=policy, robot=ReplayRobotConfig(root=str(root)), rename_map={})
    with pytest.raises(UserError, match="7 numbers in action, the recording 3; is it of another robot"):
        open_loop.check_inputs(cfg)


def test_a_comparison_needs_a_replay(capsys):
    assert (
        main.main(["evaluate", "--robot.type=so101_follower", "--policy.path=x", "--open_loop.every=1"]) == 2
    )
    assert "robot.type is so101_follower; set robot.type: replay" in capsys.readouterr().err
