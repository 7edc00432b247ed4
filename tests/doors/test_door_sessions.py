"""Sessions and places behind the doors: each is given back, however its client ends."""

import pickle
import threading
import time

import grpc
import numpy as np
import pytest
from lerobot_client import Client
from openpi_client import WebsocketClientPolicy
from standin import SIDE, STATE, StandIn
from websockets.exceptions import ConnectionClosed

from simplify_work.server.doors import act_zmq, lerobot_grpc
from simplify_work.server.doors.act_zmq import ActZmqDoor
from simplify_work.server.doors.lerobot_grpc import LeRobotGrpcDoor
from simplify_work.server.doors.openpi_ws import OpenPiWsDoor
from simplify_work.server.worker import Worker
from simplify_work.wire.errors import Superseded

FRAME = {STATE: np.zeros(6, np.float32), SIDE: np.zeros((12, 16, 3), np.uint8)}


@pytest.fixture
def brain():
    with Worker(StandIn(12, 16), "runs/one/model", max_sessions=1) as brain:
        yield brain


@pytest.fixture
def websockets(brain):
    door = OpenPiWsDoor([brain], "127.0.0.1", 0, max_connections=1)
    door.start()
    yield door
    door.stop()


@pytest.fixture
def grpc_door(brain, monkeypatch):
    monkeypatch.setattr(lerobot_grpc, "_STRANGER_WAITS_S", 0.0)
    door = LeRobotGrpcDoor([brain], "127.0.0.1", 0, obs_queue_timeout_s=60.0)
    door.start()
    yield door
    door.stop()


def sessions(brain):
    return brain.metrics.figures().sessions


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def admitted(door):
    """A client; the place of the one before is free a moment after it left."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return WebsocketClientPolicy(door.endpoint)
        except ConnectionClosed:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_place_is_given_back_by_who_was_refused_who_failed_and_who_left(websockets, brain):
    other = brain.open_session("another")
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match="1 sessions"):
            WebsocketClientPolicy(websockets.endpoint)
        until(lambda: websockets._places._value == 1)
    other.close()
    for message in ({"wrong": 1}, FRAME, FRAME):
        with admitted(websockets) as client:
            assert sessions(brain) == 1
            if message is FRAME:
                client.infer(message)
            else:
                with pytest.raises(RuntimeError, match="is missing"):
                    client.infer(message)
        until(lambda: sessions(brain) == 0)


def test_no_more_requests_are_answered_at_once_than_there_is_room_for(connect, monkeypatch):
    monkeypatch.setattr(act_zmq, "_MAX_AT_ONCE", 1)
    request = {"qpos": FRAME[STATE], "images": {"side": FRAME[SIDE]}}
    stand_in = StandIn(12, 16)
    stand_in.leave.clear()
    with Worker(stand_in, "a") as brain:
        door = ActZmqDoor([brain], "127.0.0.1", 0)
        door.start()
        try:
            first, second = connect(door.endpoint), connect(door.endpoint)
            first.socket.send(pickle.dumps(request))
            assert stand_in.entered.wait(30)
            assert "1 requests are being answered; try again" in second.ask(request)["message"]
            stand_in.leave.set()
            assert first.socket.poll(30_000) and pickle.loads(first.socket.recv())["status"] == "OK"
            assert second.ask(request)["status"] == "OK"
        finally:
            stand_in.leave.set()
            door.stop()


def test_a_robot_has_one_session_whatever_it_says(grpc_door, brain):
    with Client(grpc_door.endpoint) as client:
        for _ in range(3):
            client.instruct()
            assert sessions(brain) == 1
        client.ready()
        assert sessions(brain) == 0
        client.instruct()
        client.observe()
        assert client.actions()
        grpc_door.stop()
        assert sessions(brain) == 0


def test_a_robot_that_waits_for_its_actions_does_not_hold_up_the_end(grpc_door):
    with Client(grpc_door.endpoint) as client:
        client.instruct()
        (robot,) = grpc_door._robots.values()
        asking = threading.Thread(target=lambda: pytest.raises(grpc.RpcError, client.actions))
        asking.start()
        until(lambda: robot.present)
        stopping = threading.Thread(target=grpc_door.stop)
        stopping.start()
        stopping.join(30)
        assert not stopping.is_alive(), "it was to wait for 60 s"
        asking.join(30)
    assert not asking.is_alive()


def test_an_inference_that_a_newer_one_replaced_is_an_empty_answer(grpc_door):
    with Client(grpc_door.endpoint) as client:
        client.instruct()
        (robot,) = grpc_door._robots.values()
        ask, robot.guest.infer = robot.guest.infer, lambda *args: (_ for _ in ()).throw(Superseded("newer"))
        client.observe(1)
        assert client.actions() == []
        robot.guest.infer = ask
        client.observe(2)
        assert len(client.actions()) == 5
