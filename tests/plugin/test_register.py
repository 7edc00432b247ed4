"""Installing the plugin teaches LeRobot its types, and costs next to nothing."""

import ast
import subprocess
import sys
import textwrap

import lerobot_ext
from lerobot_ext.recording import episodes


def in_a_new_process(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_type_is_known():
    from lerobot.cameras.configs import CameraConfig
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.robots.config import RobotConfig

    from lerobot_ext.sensors import ForceSensorConfig

    assert "realsense_rgbd" in CameraConfig.get_known_choices()
    assert "anyskin" in ForceSensorConfig.get_known_choices()
    assert {"so100_follower_ext", "so101_follower_ext"} <= set(RobotConfig.get_known_choices())
    assert "remote" in PreTrainedConfig.get_known_choices()


def test_taring_listens_and_registering_again_changes_nothing(monkeypatch):
    before = dict(episodes._listeners)
    assert "taring" in before
    lerobot_ext.register()
    assert episodes._listeners == before


def test_lerobots_discovery_finds_the_plugin():
    out = in_a_new_process(
        """
        from lerobot.utils.import_utils import register_third_party_plugins
        register_third_party_plugins()
        from lerobot.configs.types import FeatureType
        print(FeatureType.FORCE.value)
        """
    )
    assert out.splitlines()[-1] == "FORCE"


def test_nothing_heavy_is_loaded_that_lerobot_did_not_load():
    out = in_a_new_process(
        """
        import sys
        import lerobot.scripts.lerobot_train  # the script with the least devices in it
        before = set(sys.modules)
        import lerobot_ext
        lerobot_ext.register()
        print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
        """
    )
    loaded = set(ast.literal_eval(out.splitlines()[-1]))
    assert loaded <= {"lerobot", "lerobot_ext", "packaging", "scservo_sdk", "serial"}


def test_an_unsupported_lerobot_gives_one_sentence():
    out = in_a_new_process(
        """
        import importlib.metadata
        version = importlib.metadata.version
        importlib.metadata.version = lambda name: "0.9.0" if name == "lerobot" else version(name)
        import lerobot_ext
        try:
            lerobot_ext.register()
        except ImportError as error:
            print(error)
        """
    )
    assert out.count("\n") == 0 and "0.9.0" in out and ">=0.6.1,<0.7" in out
