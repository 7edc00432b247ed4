"""One lab, and a small config of the robot alone, for the tests of a run in two processes."""

import logging
import signal

import pytest
import yaml
from split_rig import SMALL_SERVER

from lerobot_ext.virtual.testing import running_lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("l")
    with running_lab(folder, log=folder / "log", no_operator=True) as lab:
        lab.client.timeout_s = 20.0
        yield lab


@pytest.fixture
def config(lab, tmp_path):
    """`config(**{"split.load_s": 3})`: the words that name a config of the arm without cameras, with these changes."""

    def make(**changes) -> str:
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "config.json").write_text('{"type": "act"}')
        data = {
            "robot": {
                "type": "so101_follower_ext",
                "id": "follower",
                "port": str(lab.follower),
                "calibration_dir": str(lab.calibration),
            },
            "policy": {"path": str(checkpoint)},
            "initial_position": {"shoulder_pan": -20, "wrist_flex.pos": 80},
            "initial_speed": 60,
            "split": {"load_s": 60},
            "server": {"timeout_s": 20},
            "inference": {"type": "async", "policy_hz": 20, "control_hz": 40},
            "dataset": {
                "repo_id": "lab/rollout_split",
                "root": str(tmp_path / "dataset"),
                "single_task": "swing",
                "fps": 20,
                "num_episodes": 2,
                "episode_time_s": 30,
                "reset_time_s": 0,
                "push_to_hub": False,
            },
            "play_sounds": False,
            "visualize": False,
        }
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = data
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(data))
        return f"--config_path={path}"

    return make


@pytest.fixture
def small_server(monkeypatch):
    """The inference process is the small server, with the mood that is given."""
    from lerobot_ext.commands import split

    monkeypatch.setattr(split, "command", lambda name, *words: [*SMALL_SERVER, *words])

    def be(mood: str) -> None:
        monkeypatch.setenv("SMALL_SERVER", mood)

    return be


@pytest.fixture
def own_signals():
    """LeRobot's rollout puts handlers of its own in place."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Lines(logging.Handler):
    """What is logged, with its time."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def first(self, text: str) -> logging.LogRecord | None:
        return next((record for record in self.records if text in record.getMessage()), None)


@pytest.fixture
def lines():
    """Of the product's own modules, whatever becomes of the root logger."""
    lines = Lines()
    loggers = [logging.getLogger(name) for name in ("lerobot_ext", "simplify_work")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
    yield lines
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(lines)
        logger.setLevel(level)


@pytest.fixture(scope="package")
def act_of_the_lab(tmp_path_factory):
    """A tiny ACT that wants what the lab gives: joints and a wrist picture."""
    from checkpoints import make_act
    from lerobot.configs import FeatureType, PolicyFeature

    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 240, 424)),
    }
    return make_act(tmp_path_factory.mktemp("act") / "checkpoint", inputs=inputs)
