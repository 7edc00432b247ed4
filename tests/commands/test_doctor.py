"""`lerobot-ext doctor --server`: each thing that can be wrong is told apart, on real sockets, with a real server."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import zmq
from doctoring import examine, program_that, zmq_program

from lerobot_ext.commands import doctor_checks
from lerobot_ext.commands.demo import CONFIGS
from lerobot_ext.commands.main import main
from lerobot_ext.virtual.testing import free_port
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address, tcp_address
from simplify_work.wire.codec import MAGIC, pack
from simplify_work.wire.keys import ServerKeys, make_keys
from simplify_work.wire.messages import PROTOCOL_VERSION, Bye


@pytest.fixture
def doctor(capsys):
    """`status, checks = doctor("--server=…")`: the exit status, and each check's finding by its name."""
    return partial(examine, capsys)


def test_a_healthy_server_is_told_with_its_figures(server, doctor):
    status, checks = doctor(f"--server={server.address}")
    assert status == 0, checks
    assert list(checks) == [
        *("network", "program", "keys", "versions", "policy", "round trip", "chunks", "bandwidth", "delay")
    ]
    assert "state (6,), images.side (64, 64, 3)" in checks["policy"]["found"]
    assert "chunks of 20 actions of 6" in checks["policy"]["found"]
    assert f"protocol {PROTOCOL_VERSION} on both sides" in checks["versions"]["found"]
    small, chunks = checks["round trip"]["figures"], checks["chunks"]["figures"]
    assert 0 < small["median_ms"] <= small["p95_ms"] and small["median_ms"] < chunks["median_ms"]
    assert 0 < chunks["infer_ms"] <= chunks["server_ms"] <= chunks["p95_ms"]
    assert checks["delay"]["figures"]["steps"] >= 1 and checks["delay"]["figures"]["fps"] == 30


def test_piped_output_is_a_plain_line_a_check(server, capsys):
    assert main(["doctor", "--server", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and not any("\x1b" in line for line in lines)
    assert lines[0].startswith("ok       network     tcp://127.0.0.1:")


def test_the_policy_is_compared_with_the_robot_of_the_yaml(server, doctor, tmp_path):
    text = (CONFIGS / "evaluate_record.yaml").read_text()
    fits = tmp_path / "fits.yaml"
    fits.write_text(text.replace("  fps: 30\n  num_episodes", "  fps: 12\n  num_episodes"))
    status, checks = doctor(f"--server={server.address}", f"--config_path={fits}")
    assert status == 0, checks
    assert "so101_follower_ext gives state (6,), images.side (240, 424, 3)" in checks["robot"]["found"]
    assert "12 steps a second" in checks["robot"]["found"]
    assert checks["features"]["status"] == "ok" and checks["delay"]["figures"]["fps"] == 12

    other = tmp_path / "other.yaml"
    other.write_text(text.replace("    side:\n", "    top:\n"))
    status, checks = doctor(f"--server={server.address}", f"--config_path={other}")
    assert status == 1 and checks["features"]["status"] == "failed"
    assert "observation.images.side is missing" in checks["features"]["found"]
    assert checks["delay"]["status"] != "skipped", "the link is looked at all the same"

    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("num_read_retries", "num_read_retrys"))
    status, checks = doctor(f"--server={server.address}", f"--config_path={wrong}")
    assert status == 1 and "did you mean 'robot.num_read_retries'" in checks["robot"]["found"] + checks["robot"]["advice"]  # fmt: skip
    assert checks["features"]["status"] == "skipped"


def test_a_closed_port(doctor):
    port = free_port()
    status, checks = doctor(f"--server=127.0.0.1:{port}")
    assert status == 1 and checks["network"]["status"] == "failed"
    assert f"127.0.0.1 is there, but nothing listens on port {port}" in checks["network"]["found"]
    assert "lerobot-ext serve" in checks["network"]["advice"]
    assert {each["status"] for name, each in checks.items() if name != "network"} == {"skipped"}


def test_a_machine_that_swallows_packets(doctor, monkeypatch):
    # A full backlog on Linux drops the packets of further connections, as a firewall would.
    from lerobot_ext.commands import doctor_link

    monkeypatch.setattr(doctor_link, "CONNECT_S", 0.5)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        status, checks = doctor(f"--server=127.0.0.1:{full.getsockname()[1]}")
    assert status == 1
    assert "firewall" in checks["network"]["found"] and "ping 127.0.0.1" in checks["network"]["advice"]


def test_a_name_of_no_machine_and_a_missing_ipc_socket(doctor, tmp_path):
    status, checks = doctor("--server=no.such.host.invalid:5555")
    assert status == 1 and "no machine is called 'no.such.host.invalid'" in checks["network"]["found"]
    status, checks = doctor(f"--server=ipc://{tmp_path}/none")
    assert status == 1 and f"nobody listens at {tmp_path}/none" in checks["network"]["found"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda c: c.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"), "an SSH server"),
        (lambda c: (c.recv(12), c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")), "a web server"),
        (lambda c: c.sendall(b"\x07garbage on the port" * 50), "an unknown one (it says b'\\x07garbage"),
        (lambda c: c.sendall(bytes([255]) * 200), None),
        (lambda c: c.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + bytes(52)), "wants mechanism"),
        (lambda c: c.recv(12), "said nothing"),
    ],
)
def test_garbage_on_the_port(answer, told, doctor):
    with program_that(answer) as port:
        status, checks = doctor(f"--server=127.0.0.1:{port}")
    assert status == 1 and checks["network"]["status"] == "ok"
    failed = [each for each in checks.values() if each["status"] == "failed"]
    assert len(failed) == 1 and failed[0]["check"] in ("program", "keys") and failed[0]["advice"]
    assert told is None or told in failed[0]["found"]


def test_a_program_that_says_nothing(doctor, monkeypatch):
    from lerobot_ext.commands import doctor_link

    monkeypatch.setattr(doctor_link, "CONNECT_S", 0.3)
    ending = threading.Event()
    with program_that(lambda c: ending.wait(5)) as port:
        status, checks = doctor(f"--server=127.0.0.1:{port}")
        ending.set()
    assert status == 1 and "said nothing" in checks["program"]["found"]
    assert "hangs" in checks["program"]["found"]


def test_another_zeromq_program(doctor):
    with zmq_program(zmq.PUB) as port:
        status, checks = doctor(f"--server=127.0.0.1:{port}")
    assert status == 1 and "its socket is a PUB" in checks["program"]["found"]


def test_a_server_of_another_version(doctor):
    def other_version(_):
        header = bytearray(pack(Bye())[0])
        struct.pack_into(">H", header, len(MAGIC), PROTOCOL_VERSION + 7)
        return [bytes(header)]

    with zmq_program(zmq.ROUTER, other_version) as port:
        status, checks = doctor(f"--server=127.0.0.1:{port}")
    assert status == 1 and checks["keys"]["status"] == "ok"
    found = checks["versions"]["found"]
    assert f"version {PROTOCOL_VERSION + 7}" in found and f"version {PROTOCOL_VERSION}" in found
    assert "same version of lerobot_ext on both machines" in checks["versions"]["advice"]


def test_a_router_that_is_no_policy_server(doctor):
    with zmq_program(zmq.ROUTER, lambda frames: [b"hello"]) as port:
        status, checks = doctor(f"--server=127.0.0.1:{port}")
    assert status == 1 and checks["versions"]["status"] == "failed"


@contextmanager
def serving(runner, address, keys=None):
    """The endpoint of a server in this process."""
    from simplify_work.server.server import PolicyServer

    bound = listen.bind(address, keys)
    served = PolicyServer(runner, bound)
    endpoint = listen.endpoint(bound)
    served.start()
    try:
        yield endpoint
    finally:
        served.stop()


@pytest.fixture
def locked(runner, tmp_path):
    """A server with keys, and the folder that `lerobot-ext keys` would have made, robots `arm` and `leg`."""
    folder = tmp_path / "keys"
    make_keys(folder, ["arm", "leg"])
    with serving(runner, tcp_address("127.0.0.1", 0), ServerKeys.load(folder / "server")) as address:
        yield address, folder


def test_a_server_on_this_machine_by_ipc(runner, doctor, tmp_path):
    with serving(runner, parse_address(f"ipc://{tmp_path}/server")) as address:
        status, checks = doctor(f"--server={address}")
    assert status == 0, checks
    assert "shared memory" in checks["bandwidth"]["found"]


def test_keys_that_are_admitted(locked, doctor):
    address, folder = locked
    status, checks = doctor(f"--server={address}", f"--keys={folder}/arm")
    assert status == 0, checks
    assert f"admits those in {folder}/arm" in checks["keys"]["found"]
    assert checks["delay"]["status"] != "skipped"


def test_no_keys_where_some_are_needed(locked, doctor):
    status, checks = doctor(f"--server={locked[0]}")
    assert status == 1 and "admits listed keys only, and none was given" in checks["keys"]["found"]
    assert "--robots=NAME" in checks["keys"]["advice"]


def test_keys_that_are_not_listed(locked, doctor, tmp_path):
    address, folder = locked
    (folder / "server" / "clients" / "leg.key").unlink()
    status, checks = doctor(f"--server={address}", f"--keys={folder}/leg")
    assert status == 1 and checks["keys"]["status"] == "failed", checks
    assert "does not admit this robot's key" in checks["keys"]["found"]
    assert "copy" in checks["keys"]["advice"]


def test_keys_of_another_server(locked, doctor, tmp_path):
    make_keys(tmp_path / "others", ["arm"])
    status, checks = doctor(f"--server={locked[0]}", f"--keys={tmp_path}/others/arm")
    assert status == 1 and checks["keys"]["status"] == "failed", checks
    assert "does not have the key" in checks["keys"]["found"]


def test_keys_for_a_server_without(server, doctor, tmp_path):
    make_keys(tmp_path / "keys", ["arm"])
    status, checks = doctor(f"--server={server.address}", f"--keys={tmp_path}/keys/arm")
    assert status == 1 and "the server has no keys" in checks["keys"]["found"]


def test_keys_that_cannot_be_used(locked, doctor, tmp_path):
    address, folder = locked
    _, checks = doctor(f"--server={address}", f"--keys={tmp_path}/nowhere")
    assert checks["keys"]["status"] == "failed" and "nowhere" in checks["keys"]["found"]
    (folder / "arm" / "client.key_secret").chmod(0o644)
    _, checks = doctor(f"--server={address}", f"--keys={folder}/arm")
    assert "chmod 600" in checks["keys"]["advice"]


def test_a_narrow_link_is_found_to_be_narrow(server, doctor):
    from lerobot_ext.virtual.network import Link

    with Link("127.0.0.1", server.port, bandwidth_mbit=20) as link:
        status, checks = doctor(f"--server=127.0.0.1:{link.port}")
    assert status == 0, checks
    assert checks["bandwidth"]["figures"]["bit_s"] < 30e6


# --- the command ---


def test_help_explains_all_uses_with_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "\n  lerobot-ext doctor\n" in text and "lerobot-ext doctor --udev" in text
    assert "lerobot-ext doctor --server tcp://" in text and "lerobot-ext doctor --policy.path=" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port=1"], "--port goes with --policy.path"),
        (["--keys=k"], "--keys goes with --server or --policy.path"),
        (["--server=a:1", "--udev"], "--udev goes with neither --server nor --policy.path"),
        (["--server=a:1", "--policy.path=b"], "give --server=ADDRESS at the robot, or --policy.path"),
        (["--server=a:1", "--port=1"], "--port goes with --policy.path"),
        (["--policy.path=b", "--config_path=c"], "--config_path goes with --server"),
        (["--policy.path=b", "--port=70000"], "--port=70000 is not a port"),
        (["--server=nonsense"], "is not understood"),
        (["--server=a:1", "--config_path=/nowhere.yaml"], "is not there"),
        (["--sever=a:1"], "did you mean '--server'?"),
    ],
)
def test_mistakes_get_a_sentence(words, sentence, capsys):
    assert main(["doctor", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_check_that_fails_takes_along_those_that_need_it_and_no_others():
    def broken(_):
        raise ValueError("the thing is broken; mend it.")

    checks = [
        doctor_checks.Check("a", broken),
        doctor_checks.Check("b", lambda _: doctor_checks.Finding("ok", "fine")),
        doctor_checks.Check("c", broken, needs=("a",)),
        doctor_checks.Check("d", broken, needs=("b", "c")),
    ]
    found = dict(doctor_checks.examine(checks, None))
    assert [finding.status for finding in found.values()] == ["failed", "ok", "skipped", "skipped"]
    assert (found["a"].found, found["a"].advice) == ("the thing is broken", "mend it.")
