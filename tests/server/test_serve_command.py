"""`lerobot-ext serve`: mistakes get a sentence and exit status 2; a real process serves and ends cleanly."""

from __future__ import annotations

import socket
import threading

import checkpoints
import numpy as np
import pytest
from servers import ServerProcess

from lerobot_ext.commands import main as commands
from simplify_work.local import PolicyClient
from simplify_work.wire.errors import ServerStopped, ServerUnreachable


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "required: --policy.path"),
        (["--policy.path={tmp}/nowhere"], "nowhere is not there"),
        (["--policy.path={tmp}"], "is not a LeRobot checkpoint"),
        (["--policy.path={act}", "--prot=1"], "there is no option '--prot', did you mean '--port'?"),
        (["--policy.path={act}", "--port=70000"], "--port=70000 is not a port"),
        (["--policy.path={act}", "--host=0.0.0.0"], "can be reached from other machines"),
        (["--policy.path={act}", "--host=no.such.host.invalid"], "can be reached from other machines"),
        (["--policy.path={act}", "--port=0", "--device=nonsense"], "device 'nonsense' is not available"),
        (["--policy.path={act}", "--port=0", "--dtype=int3"], "dtype 'int3' is not offered"),
    ],
)
def test_mistakes_get_a_sentence(options, sentence, act, tmp_path, capsys):
    argv = ["serve", *[option.format(act=act, tmp=tmp_path) for option in options]]
    assert commands.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error


def test_a_taken_port_gets_a_sentence(act, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert commands.main(["serve", f"--policy.path={act}", f"--port={port}"]) == 2
    assert f"127.0.0.1:{port} is taken by another program" in capsys.readouterr().err


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(["serve", "--help"])
    assert ended.value.code == 0
    assert "--policy.path" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_a_second_process_gives_the_local_chunk_and_ends_cleanly(kind, request):
    path = request.getfixturevalue(kind)
    frame = checkpoints.observation(3)
    local = checkpoints.local_chunk(path, frame, "press the block", seed=11).numpy()
    with ServerProcess(path) as server:
        assert f"ready: {kind} at tcp://127.0.0.1:" in server.ready
        with PolicyClient(server.address, timeout_s=30) as client:
            chunk = client.infer(frame, task="press the block", robot_type="so100", seed=11)
            assert np.abs(chunk.actions - local).max() < 1e-5
            assert 0 < chunk.durations.total_s < chunk.round_trip_s
            assert server.terminate() == 0
            with pytest.raises((ServerUnreachable, ServerStopped)):
                client.infer(frame, timeout_s=3)
    assert server.output[-1] == "stopped.\n"


def test_a_killed_server_is_an_error_in_time_and_a_restarted_one_works(act):
    frame = checkpoints.observation()
    with (
        ServerProcess(act) as first,
        PolicyClient(first.address, timeout_s=1.5, connect_timeout_s=1) as client,
    ):
        expected = client.infer(frame, timeout_s=30).actions
        first.pause()
        killer = threading.Timer(0.5, first.kill)
        killer.start()
        with pytest.raises((TimeoutError, ConnectionError), match="127.0.0.1"):
            client.infer(frame)
        killer.join()
        with pytest.raises(ServerUnreachable, match=r"lerobot-ext serve .*--port="):
            client.infer(frame)
        with ServerProcess(act, port=first.port):
            np.testing.assert_allclose(client.infer(frame, timeout_s=30).actions, expected, atol=1e-5)
            client.reset()
