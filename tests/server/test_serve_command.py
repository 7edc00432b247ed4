"""`lerobot-ext serve`: mistakes get a sentence and exit status 2; a real process serves and ends cleanly."""

from __future__ import annotations

import io
import socket
import tempfile
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest
import zmq
from servers import ServerProcess

from lerobot_ext.commands import main as commands
from lerobot_ext.commands import serve
from simplify_work.local import PolicyClient
from simplify_work.server.metrics import Metrics
from simplify_work.wire import sockets
from simplify_work.wire.address import parse_address
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import ServerStopped, ServerUnreachable
from simplify_work.wire.keys import ClientKeys, make_keys
from simplify_work.wire.messages import Bye, Durations, Hello, Welcome


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "required: --policy.path"),
        (["--policy.path={tmp}/nowhere"], "nowhere is not there"),
        (["--policy.path={tmp}"], "is not a LeRobot checkpoint"),
        (["--policy.path={act}", "--prot=1"], "there is no option '--prot', did you mean '--port'?"),
        (["--policy.path={act}", "--port=70000"], "--port=70000 is not a port"),
        (["--policy.path={act}", "--metrics_port=-1"], "--metrics_port=-1 is not a port"),
        (["--policy.path={act}", "--max_batch=0"], "--max_batch=0 infers nothing"),
        (["--policy.path={act}", "--idle_timeout_s=nan"], "--idle_timeout_s=nan ends every session"),
        (["--policy.path={act}", "--keys={tmp}/nowhere"], "nowhere"),
        (["--policy.path={act}", "--host=0.0.0.0"], "can be reached from other machines"),
        (["--policy.path={act}", "--host=0.0.0.0"], "--insecure"),
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
    text = capsys.readouterr().out
    for option in ("--policy.path", "--keys", "--insecure", "--compile", "--max_batch", "--metrics_port"):
        assert option in text


FRAME = checkpoints.observation(3)


def check_parity(client, path):
    local = checkpoints.local_chunk(path, FRAME, "press the block", seed=11).numpy()
    chunk = client.infer(FRAME, task="press the block", robot_type="so100", seed=11)
    assert np.abs(chunk.actions - local).max() < 1e-5
    assert 0 < chunk.durations.total_s < chunk.round_trip_s


def test_a_second_process_gives_the_local_chunk_and_ends_cleanly(smolvla):
    with ServerProcess(smolvla) as server:
        assert "ready: smolvla at tcp://127.0.0.1:" in server.ready
        with PolicyClient(server.address, timeout_s=30) as client:
            check_parity(client, smolvla)
            assert server.terminate() == 0
            with pytest.raises((ServerUnreachable, ServerStopped)):
                client.infer(FRAME, timeout_s=3)
    assert server.output[-1] == "stopped.\n"


def test_with_keys_and_metrics_beyond_this_machine_and_sigterm_says_goodbye(act):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        make_keys(folder, ["arm1", "arm2"])
        keys = Path(folder)
        options = ("--host=0.0.0.0", f"--keys={keys / 'server'}", "--metrics_port=0", "--max_batch=4")
        with ServerProcess(act, options=options) as server:
            address = f"tcp://127.0.0.1:{server.port}"
            with PolicyClient(address, timeout_s=30, keys=keys / "arm1") as client:
                check_parity(client, act)
            context = zmq.Context()
            idle = sockets.dealer(context, parse_address(address), b"arm2", ClientKeys.load(keys / "arm2"))
            try:
                idle.send_multipart(pack(Hello(request=1, client="arm2")))
                assert idle.poll(20_000)
                assert isinstance(unpack(idle.recv_multipart())[0], Welcome)
                url = next(line for line in server.output if line.startswith("metrics at ")).split()[-1]
                assert url.startswith("http://127.0.0.1:")
                with urllib.request.urlopen(url, timeout=10) as answer:
                    assert "lerobot_server_chunks_total 1.0" in answer.read().decode()
                assert server.terminate() == 0
                assert idle.poll(10_000)
                assert isinstance(unpack(idle.recv_multipart())[0], Bye)
            finally:
                context.destroy(linger=0)


@pytest.fixture
def watched():
    """A server that has just sent a chunk."""
    metrics = Metrics(lambda: 1)
    metrics.chunk_sent(Durations(0.001, 0.002, 0.02, 0.001), 3)
    return SimpleNamespace(running=True, metrics=SimpleNamespace(figures=lambda *_: metrics.figures(60)))


@pytest.fixture
def half_a_second():
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    yield stop
    timer.cancel()


def test_figures_go_to_the_log_where_there_is_no_terminal(watched, half_a_second, monkeypatch, caplog):
    monkeypatch.setattr(serve, "_LINE_EVERY_S", 0.05)
    monkeypatch.setattr(serve, "_STATUS_EVERY_S", 0.05)
    with caplog.at_level("INFO"):
        serve._watch(watched, half_a_second)
    assert "1 sessions" in caplog.text
    assert "infer 20.0/20.0" in caplog.text


def test_a_terminal_gets_a_status_line(watched, half_a_second, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(serve, "_STATUS_EVERY_S", 0.05)
    serve._watch(watched, half_a_second)
    assert "1 sessions" in terminal.getvalue()
    assert "infer 20.0/20.0" in terminal.getvalue()


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
