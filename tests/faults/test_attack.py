"""Pickles and worse at every port that this product opens: nothing is executed, and everybody is served as before."""

import re
import urllib.request

import msgspec
import numpy as np
import pytest
import serial
import zmq
from attackers import byte_attack, message_attack, serial_attack
from rig import wait_for
from stand_in import DIM, STATE, StandIn

from lerobot_ext.virtual import feetech
from lerobot_ext.virtual.testing import free_port
from simplify_work.local.client import PolicyClient
from simplify_work.wire.keys import ClientKeys, make_keys

MOVED_RAD = 0.02  # the arm sags a little when it is let go of


@pytest.fixture
def proof(tmp_path):
    """A path at which nothing may appear."""
    yield tmp_path / "proof"
    assert not (tmp_path / "proof").exists(), "a payload was executed"


@pytest.fixture
def lab_log(lab):
    """What the lab logs from now on."""
    path = lab.directory.parent / "log"
    before = path.stat().st_size
    return lambda: path.read_text()[before:]


@pytest.fixture(autouse=True)
def the_lab_goes_on(request):
    """It is the same process as before, and its arm is where it was."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab = request.getfixturevalue("lab")
    before = lab.client.status()
    yield
    after = lab.client.status()
    assert after.pid == before.pid and lab.process.poll() is None
    assert np.allclose(after.joints_rad, before.joints_rad, atol=MOVED_RAD)


@pytest.mark.parametrize("port", ["control", "side", "wrist"])
def test_the_labs_zeromq_ports(lab, lab_log, proof, port):
    address = f"tcp://127.0.0.1:{lab.wrist_port}" if port == "wrist" else f"ipc://{lab.directory / port}"
    kinds = [zmq.DEALER] if port == "control" else [zmq.XSUB]
    before = lab.client.status().refused
    with (
        byte_attack(address, proof),
        message_attack(address, proof, kinds, [b""] if port == "control" else []),
    ):
        wait_for(lambda: lab.client.status().refused >= before + 20, "hardly anything was counted")
        if port != "control":
            assert_published(address, port)
    assert f"refused at '{port}'" in lab_log()


def assert_published(address, port):
    """A subscriber gets what it came for."""
    context = zmq.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.rcvtimeo = 20_000
        socket.subscribe(b"")
        socket.connect(address)
        frames = socket.recv_multipart()
    finally:
        context.destroy(linger=0)
    assert len(frames) == (3 if port == "side" else 1)
    assert isinstance(msgspec.json.decode(frames[0]), dict)


@pytest.mark.parametrize("port", ["follower", "leader"])
def test_the_labs_servos(lab, lab_log, proof, port):
    before = lab.client.status().refused
    serial_attack(lab.directory / port, proof)
    wait_for(lambda: lab.client.status().refused > before, "nothing was counted")
    assert f"refused at '{port}'" in lab_log()
    ping = bytes([1, 2, 1])
    with serial.Serial(str(lab.directory / port), 1_000_000, timeout=0.2) as bus:

        def answers():
            bus.reset_input_buffer()
            bus.write(b"\xff\xff" + ping + bytes([feetech.checksum(ping)]))
            return bus.read(6).startswith(b"\xff\xff\x01\x02\x00")

        wait_for(answers, "the servo does not answer any more")


def test_the_labs_skin_does_not_read_and_goes_on_talking(lab, proof):
    serial_attack(lab.skin, proof)
    with serial.Serial(str(lab.skin), 115200, timeout=5) as port:
        assert len(port.read(820)) == 820


@pytest.mark.parametrize("kind", ["tcp", "ipc", "tcp with keys"])
def test_the_policy_server(proof, tmp_path, kind):
    address = f"ipc://{tmp_path}/s" if kind == "ipc" else f"tcp://127.0.0.1:{free_port()}"
    metrics = free_port()
    keys = tmp_path / "keys"
    make_keys(keys, ["arm", "stolen"])
    options = [f"--keys={keys / 'server'}"] if kind == "tcp with keys" else []
    with StandIn(address, f"--metrics_port={metrics}", *options) as server:
        with byte_attack(address, proof), message_attack(address, proof, [zmq.DEALER, zmq.REQ]):
            serves(address, keys / "arm" if options else None)
            with message_attack(address, proof, [zmq.DEALER], configure=with_keys(keys / "stolen", options)):
                wait_for(lambda: malformed(metrics) >= 20, "hardly anything was counted")
                serves(address, keys / "arm" if options else None)
        serves(address, keys / "arm" if options else None)
        assert server.alive
        assert 1 <= sum("WARNING refused" in line for line in server.log) <= 30
        assert "Traceback" not in "".join(server.log)


def with_keys(folder, wanted):
    """What gives a socket the keys of a robot that has turned."""

    def configure(socket):
        if wanted:
            keys = ClientKeys.load(folder)
            socket.curve_serverkey = keys.server
            socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret

    return configure


def serves(address, keys):
    """An honest robot is answered."""
    with PolicyClient(address, timeout_s=20, connect_timeout_s=20, keys=keys) as client:
        chunk = client.infer({STATE: np.zeros(DIM, np.float32)})
    assert chunk.actions.shape[1] == DIM


def malformed(metrics):
    """How many messages the server could not read, as its metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=20) as page:
        return float(re.search(r"^lerobot_server_malformed_total (\S+)", page.read().decode(), re.M).group(1))


def test_the_metrics_of_the_policy_server(proof):
    metrics = free_port()
    address = f"tcp://127.0.0.1:{free_port()}"
    with StandIn(address, f"--metrics_port={metrics}") as server:
        with byte_attack(f"tcp://127.0.0.1:{metrics}", proof):
            assert malformed(metrics) == 0
            serves(address, None)
        assert server.alive
