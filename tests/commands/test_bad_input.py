"""What goes wrong at a newcomer's desk is answered with one sentence, an exit status of 2, and no traceback."""

import os
import pty
import subprocess
import sys
import time
import tty

import pytest

from lerobot_ext.commands import help
from lerobot_ext.commands.main import main


@pytest.fixture
def silent_port():
    """A serial port behind which there is nothing."""
    controller, device = pty.openpty()
    tty.setraw(device)
    yield os.ttyname(device)
    os.close(controller)
    os.close(device)


def refused(capsys, *words: str) -> str:
    """Run a command that must fail; returns its sentence."""
    assert main(list(words)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_unknown_command(capsys):
    assert "did you mean 'record'?" in refused(capsys, "recrod")


def test_port_that_is_not_there(capsys, config, tmp_path):
    said = refused(capsys, "record", config("collect.yaml", **{"robot.port": "/dev/ttyACM77"}))
    assert "/dev/ttyACM77" in said
    assert not (tmp_path / "dataset").exists(), "an empty dataset would be in the way of the next try"


def test_port_with_no_arm_behind_it(capsys, config, silent_port):
    said = refused(capsys, "record", config("collect.yaml", **{"robot.port": silent_port}))
    assert silent_port in said


def test_camera_serial_that_is_not_there_lists_those_that_are(capsys, config, lab):
    said = refused(
        capsys,
        "record",
        config("collect.yaml", **{"robot.cameras.side.serial_number_or_name": "999999999999"}),
    )
    assert "999999999999" in said
    assert str(lab.directory) in said


def test_skin_that_sends_nothing(capsys, config, silent_port):
    said = refused(capsys, "record", config("collect.yaml", **{"robot.force_sensors.skin.port": silent_port}))
    assert silent_port in said
    assert "no frame within 1 s" in said


def test_key_that_does_not_exist(capsys, config):
    said = refused(capsys, "record", config("collect.yaml", **{"dataset.num_epsiodes": 3}))
    assert "did you mean 'dataset.num_episodes'?" in said


def test_dataset_folder_that_exists(capsys, config, tmp_path):
    (tmp_path / "dataset").mkdir()
    said = refused(capsys, "record", config("collect.yaml"))
    assert "exists already" in said
    assert "--resume=true" in said


def test_resume_without_a_dataset(capsys, config):
    assert "holds no dataset" in refused(capsys, "record", config("collect.yaml", resume=True))


@pytest.mark.parametrize("command", ["evaluate", "record"])
def test_checkpoint_that_is_not_there(capsys, config, tmp_path, monkeypatch, command):
    monkeypatch.delenv("ENV", raising=False)
    said = refused(
        capsys, command, config("evaluate_record.yaml", **{"policy.path": str(tmp_path / "nothing")})
    )
    assert "there is no checkpoint" in said


def test_evaluation_with_a_name_that_lerobot_refuses(capsys, config):
    said = refused(
        capsys, "evaluate", config("evaluate_record.yaml", **{"dataset.repo_id": "lab/eval_press"})
    )
    assert "write 'lab/rollout_press'" in said


def test_server_that_is_not_there(capsys, config, monkeypatch):
    monkeypatch.setenv("ENV", "local")
    words = config("evaluate_record.yaml", **{"server.address": "tcp://127.0.0.1:9"})
    start = time.monotonic()
    said = refused(capsys, "evaluate", words)
    assert "tcp://127.0.0.1:9" in said
    assert "lerobot-ext serve" in said
    assert time.monotonic() - start < 30, "the wait for the server is bounded (4.5 s beside the imports)"


def test_train_without_its_dataset(capsys, tmp_path):
    said = refused(capsys, "train", "--config_path=configs/train.yaml", f"--dataset.root={tmp_path / 'no'}")
    assert "there is no dataset" in said


def test_visualize_without_its_dataset(capsys, tmp_path):
    assert "there is no folder" in refused(capsys, "visualize", f"--root={tmp_path / 'no'}")


@pytest.mark.parametrize("command", ["demo", "lab", "record", "train", "serve", "evaluate", "visualize"])
def test_help_explains(capsys, command):
    try:
        status = main([command, "--help"])
    except SystemExit as ended:  # argparse's way
        status = ended.code
    assert not status
    assert f"lerobot-ext {command}" in capsys.readouterr().out


def test_help_does_not_wait_for_lerobot():
    """It takes seconds to import, and torch with it."""
    code = (
        "import contextlib, sys\n"
        "from lerobot_ext.commands import main\n"
        "for command in main.COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        assert main.main([command, '--help']) == 0, command\n"
        "print(sorted({'lerobot', 'torch', 'cv2', 'mujoco'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.splitlines()[-1:] == ["[]"], done.stderr


def test_help_tells_the_patience_that_there_is():
    from lerobot_ext.recording.taring import PATIENCE_S

    assert f"(default {PATIENCE_S:g})" in help.SESSION
