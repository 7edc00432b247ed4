"""`lerobot-ext serve --door=…`: mistakes get a sentence before anything is loaded; a real process opens and closes doors."""

from __future__ import annotations

import importlib
import pickle
import re
import socket
from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest
import zmq
from servers import ServerProcess

from lerobot_ext.commands import main as commands
from lerobot_ext.commands import serve
from lerobot_ext.commands.serve_doors import Where, check_doors, parse_door
from lerobot_ext.errors import UserError
from simplify_work.local import PolicyClient
from simplify_work.server import doors
from simplify_work.server.metrics import Metrics
from simplify_work.wire.messages import Durations


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("act_zmq:5555", Where("act_zmq", "127.0.0.1", 5555)),
        ("lerobot_grpc:0", Where("lerobot_grpc", "127.0.0.1", 0)),
        ("openpi_ws:0.0.0.0:8000", Where("openpi_ws", "0.0.0.0", 8000)),
        ("act_zmq:[::1]:5555", Where("act_zmq", "::1", 5555)),
        ("act_zmq:gpu.lab:1", Where("act_zmq", "gpu.lab", 1)),
    ],
)
def test_a_door_is_a_name_and_a_port(text, where):
    assert parse_door(text, "127.0.0.1") == where


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--door=act_zmk:5555"], "there is no door 'act_zmk'; there are: act_zmq, lerobot_grpc, openpi_ws"),
        (["--door=act_zmq"], "--door=act_zmq is not understood, expected NAME:PORT or NAME:HOST:PORT"),
        (["--door=act_zmq:70000"], "with a port of 0 to 65535"),
        (["--door=act_zmq:-1"], "with a port of 0 to 65535"),
        (["--door=act_zmq:5600", "--door=openpi_ws:5600"], "two doors are to listen on 127.0.0.1:5600"),
        (["--door=act_zmq:{taken}"], "door act_zmq cannot listen on 127.0.0.1:{taken}"),
        (["--door=act_zmq:{taken}"], "give another one: --door=act_zmq:PORT"),
        (["--door=act_zmq:no.such.host.invalid:5601"], "cannot listen on no.such.host.invalid:5601"),
        (["--policy.path={act}"], "--policy.path is given 2 times, but only doors let clients choose"),
        (["--policy.path={act}/nowhere", "--door=act_zmq:0"], "nowhere is not there"),
    ],
)
def test_mistakes_get_a_sentence(options, sentence, act, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = {"act": act, "taken": taken.getsockname()[1]}
        argv = ["serve", f"--policy.path={act}", "--port=0", *[option.format(**words) for option in options]]
        assert commands.main(argv) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert sentence.format(**words) in output.err
    assert "loading" not in output.out


def test_options_repeat(act):
    args = serve.parse(
        [
            f"--policy.path={act}",
            "--policy.path=b",
            "--door=act_zmq:1",
            "--door=openpi_ws:2",
            "--door_host=::1",
        ]
    )
    assert args.paths == [str(act), "b"]
    assert args.doors == [Where("act_zmq", "::1", 1), Where("openpi_ws", "::1", 2)]
    assert parse_door("act_zmq:1", "[::1]") == Where("act_zmq", "::1", 1)


def test_a_door_at_our_own_port_has_it(act):
    def port(*options):
        return serve.parse([f"--policy.path={act}", *options]).port

    assert port() == 5555
    assert port("--door=act_zmq:5555", "--door=lerobot_grpc:8080", "--door=openpi_ws:8000") == 5556
    assert port("--door=act_zmq:5555", "--door=lerobot_grpc:5556") == 5557
    assert port("--door=act_zmq:5555", "--port=6000") == 6000


def test_help_explains(capsys):
    with pytest.raises(SystemExit):
        commands.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--door NAME:PORT",
        "--door_host",
        "act_zmq",
        "lerobot_grpc",
        "openpi_ws",
        "none of their protocols is safe",
    ):
        assert words in text


def test_beyond_this_machine_is_warned_of(caplog):
    check_doors([Where("act_zmq", "127.0.0.1", 0)])
    assert caplog.text == ""
    check_doors([Where("act_zmq", "0.0.0.0", 0)])
    assert "door act_zmq listens on 0.0.0.0, beyond this machine" in caplog.text
    assert "no encryption and no authentication" in caplog.text


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    def lacking(name):
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr(importlib, "import_module", lacking)
    with pytest.raises(UserError, match=r"door 'lerobot_grpc' needs the package 'grpc'.*pip install"):
        doors.load("lerobot_grpc")


def test_every_door_can_be_had():
    for name in doors.DOORS:
        assert doors.load(name).name == name


def test_figures_of_each_checkpoint_are_shown(monkeypatch, caplog):
    metrics = Metrics(lambda: 1)
    metrics.chunk_sent(Durations(0.001, 0.002, 0.02, 0.001), 3)
    each = SimpleNamespace(running=True, metrics=SimpleNamespace(figures=lambda *_: metrics.figures(60)))
    waits = iter([False, False, True])
    monkeypatch.setattr(serve, "_LINE_EVERY_S", 0.05)
    monkeypatch.setattr(serve, "_STATUS_EVERY_S", 0.05)
    with caplog.at_level("INFO"):
        serve._watch(each, SimpleNamespace(wait=lambda _: next(waits)), [each])
    assert "checkpoint 1: 1 sessions" in caplog.text
    assert "checkpoint 2: 1 sessions" in caplog.text


def test_a_real_process_serves_two_checkpoints_with_a_door_and_closes_it(act, tmp_path):
    other = checkpoints.make_act(tmp_path / "other", seed=1)
    options = (f"--policy.path={other}", "--door=act_zmq:0", "--door=openpi_ws:0")
    frame = checkpoints.observation(4)
    with ServerProcess(act, options=options) as server:
        assert server.ready.startswith("ready: act at tcp://127.0.0.1:")
        second, act_zmq, openpi_ws = (server._wait_for("ready:", 60) for _ in range(3))
        assert second.startswith(f"ready: act at the doors as {other} wants observation.state (6,)")
        assert openpi_ws.startswith("ready: door openpi_ws at ws://127.0.0.1:")
        endpoint = re.fullmatch(r"ready: door act_zmq at (tcp://127\.0\.0\.1:\d+)\n", act_zmq)[1]
        with PolicyClient(server.address, timeout_s=30) as client:
            expected = client.infer(frame).actions[0]
        with zmq.Context() as context, context.socket(zmq.REQ) as foreign:
            foreign.linger = 0
            foreign.connect(endpoint)
            foreign.send(
                pickle.dumps(
                    {"qpos": frame["observation.state"], "images": {"side": frame[checkpoints.IMAGE]}}
                )
            )
            assert foreign.poll(30_000)
            np.testing.assert_allclose(pickle.loads(foreign.recv())["action"], expected, rtol=1e-4, atol=1e-4)
        assert server.terminate() == 0
        port = int(endpoint.rpartition(":")[2])
        with socket.socket() as free, pytest.raises(ConnectionRefusedError):
            free.connect(("127.0.0.1", port))
    assert server.output[-1] == "stopped.\n"
