"""Clients that vanish, stall or come when something is short leave no session, no taken place and no shut door."""

import errno
import socket
import threading
import time

import numpy as np
import pytest
from lerobot.transport import services_pb2
from lerobot_client import Client
from openpi_client import WebsocketClientPolicy, pack
from standin import CHUNK, DIM, SIDE, STATE, StandIn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from simplify_work.server.doors import openpi_ws
from simplify_work.server.doors.lerobot_grpc import LeRobotGrpcDoor
from simplify_work.server.doors.openpi_ws import OpenPiWsDoor
from simplify_work.server.protocol import Inference
from simplify_work.server.worker import Worker

FRAME = {STATE: np.arange(DIM, dtype=np.float32), SIDE: np.zeros((12, 16, 3), np.uint8)}


@pytest.fixture
def stand_in():
    return StandIn(12, 16)


@pytest.fixture
def brain(stand_in):
    with Worker(stand_in, "runs/one/model") as brain:
        yield brain


@pytest.fixture
def openpi(brain):
    door = OpenPiWsDoor([brain], "127.0.0.1", 0)
    door.start()
    yield door
    door.stop()


@pytest.fixture
def lerobot(brain):
    door = LeRobotGrpcDoor([brain], "127.0.0.1", 0, obs_queue_timeout_s=0.3)
    door.start()
    yield door
    door.stop()


@pytest.fixture
def client(lerobot):
    with Client(lerobot.endpoint) as client:
        client.ready()
        client.instruct()
        yield client


def test_a_session_that_cannot_be_had_takes_no_place(stand_in, monkeypatch):
    with Worker(stand_in, "a") as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0, max_connections=1)
        door.start()
        try:
            monkeypatch.setattr(stand_in, "open_session", lambda: 1 / 0)
            for _ in range(2):
                with pytest.raises(ConnectionClosed, match="1011.*its log says where"):
                    WebsocketClientPolicy(door.endpoint)
            monkeypatch.undo()
            with WebsocketClientPolicy(door.endpoint) as client:
                assert client.get_server_metadata()
        finally:
            door.stop()


def test_the_door_outlives_a_shortage_of_files(openpi, monkeypatch):
    accept, failures = socket.socket.accept, iter([errno.EMFILE, errno.ECONNABORTED])
    port = int(openpi.endpoint.rpartition(":")[2])

    def short(self):
        if self.getsockname()[1] == port and (number := next(failures, None)):
            raise OSError(number, "none left")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", short)
    with WebsocketClientPolicy(openpi.endpoint) as client:
        assert client.infer(FRAME)["actions"].shape == (CHUNK, DIM)
    assert next(failures, None) is None


def test_stopping_while_a_client_waits_ends_its_session(stand_in):
    with Worker(stand_in, "a") as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0)
        door.start()
        stand_in.leave.clear()
        with WebsocketClientPolicy(door.endpoint) as client:
            client.socket.send(pack(FRAME))
            assert stand_in.entered.wait(30)
            stopper = threading.Thread(target=door.stop)
            stopper.start()
            with pytest.raises(ConnectionClosed, match="1001.*stopped"):
                client.socket.recv()
            stand_in.leave.set()
            stopper.join(30)
            assert not stopper.is_alive()
        assert brain.metrics.figures().sessions == 0


def test_a_client_that_reads_nothing_is_given_up_and_holds_up_no_end(stand_in, monkeypatch):
    monkeypatch.setattr(openpi_ws, "_SEND_TIMEOUT_S", 0.2)
    much = Inference(np.zeros((5000, 1000), np.float32), 0.0, 0.0, 0.0)
    monkeypatch.setattr(stand_in, "infer", lambda requests: [(0, much)])
    with Worker(stand_in, "a") as brain:
        door = OpenPiWsDoor([brain], "127.0.0.1", 0)
        door.start()
        with connect(door.endpoint, max_size=None, max_queue=1, close_timeout=0.1) as client:
            for _ in range(4):
                client.send(pack(FRAME))
            until = time.monotonic() + 30
            while brain.metrics.figures().sessions:
                assert time.monotonic() < until, "it is waited for"
                time.sleep(0.05)
            stopper = threading.Thread(target=door.stop, daemon=True)
            stopper.start()
            stopper.join(30)
            assert not stopper.is_alive()


def test_a_client_that_was_killed_while_it_waited_frees_its_place_at_once(lerobot, client):
    other = Client(lerobot.endpoint)
    other.instruct()
    asked = other.stub.GetActions.future(services_pb2.Empty())
    until = time.monotonic() + 20
    while not any(robot.present for robot in lerobot._robots.values()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not asked.done()
    other.channel.close()
    while len(lerobot._robots) > 1:
        assert time.monotonic() < until, "it would have been remembered for 30 s"
        time.sleep(0.02)
    client.observe()
    assert client.actions()


def test_a_call_that_was_given_up_does_not_end_the_robot_that_came_after_it(lerobot, client, monkeypatch):
    monkeypatch.setattr(lerobot, "_obs_queue_timeout_s", 1.0)
    asked = client.stub.GetActions.future(services_pb2.Empty())
    while not any(robot.present for robot in lerobot._robots.values()):
        time.sleep(0.01)
    asked.cancel()
    until = time.monotonic() + 20
    while any(robot.present for robot in lerobot._robots.values()):
        assert time.monotonic() < until
        time.sleep(0.01)
    client.ready()
    client.instruct()
    time.sleep(1.5)  # by now the call has noticed
    client.observe()
    assert client.actions()
