"""Several robots at one server, with a stand-in for the policy: batches, turns, slow and dead robots, goodbyes."""

from __future__ import annotations

import threading
import time
import urllib.request

import numpy as np
import pytest
import zmq
from standins import StandIn, state

from lerobot_ext.errors import UserError
from simplify_work.server.metrics import Metrics
from simplify_work.server.server import PolicyServer
from simplify_work.wire import listen
from simplify_work.wire.address import parse_address
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import SessionLost, Superseded, WireFormatError
from simplify_work.wire.messages import (
    ACTIONS,
    PREV_CHUNK_LEFT_OVER,
    Bye,
    Chunk,
    Done,
    Durations,
    Error,
    Hello,
    Infer,
    Reset,
    Rtc,
    Welcome,
)
from simplify_work.wire.pictures import PictureEncoder
from simplify_work.wire.shared import SharedArrays


class Robot:
    """A bare peer in a session: what it sends and when it reads is up to the test."""

    def __init__(self, context, address, name="robot", **hello):
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)
        self.send(Hello(request=0, client=name, **hello))
        self.welcome, _ = self.read()
        assert isinstance(self.welcome, Welcome)

    def send(self, message, arrays=None, **options):
        self.socket.send_multipart(pack(message, arrays, **options))

    def ask(self, request, value=0.0, **fields):
        self.send(Infer(request=request, **fields), state(value))

    def read(self, timeout_s=20.0):
        assert self.socket.poll(timeout_s * 1000), "the server did not answer"
        return unpack(self.socket.recv_multipart())


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def start():
    """Start a server for a runner; returns it with its address."""
    running = []

    def start(runner, address="tcp://127.0.0.1:0", **options):
        socket = listen.bind(parse_address(address))
        endpoint = listen.endpoint(socket)
        server = PolicyServer(runner, socket, **options)
        server.start()
        running.append((runner, server))
        return server, endpoint

    yield start
    for runner, server in running:
        runner.go.set()
        server.stop()


def busy(runner, robot):
    """Let the policy be busy with this robot's observation until `runner.go` is set."""
    runner.go.clear()
    robot.ask(1)
    assert runner.entered.wait(20)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_together_is_one_batch_and_everybody_gets_their_own(start, context):
    runner = StandIn()
    server, address = start(runner)
    robots = [Robot(context, address) for _ in range(5)]
    busy(runner, robots[0])
    for number, robot in enumerate(robots[1:], 1):
        robot.ask(7, number)
    wait_until(lambda: len(server.worker.waiting) == 4)
    runner.go.set()
    for number, robot in enumerate(robots):
        reply, arrays = robot.read()
        assert isinstance(reply, Chunk)
        np.testing.assert_array_equal(arrays[ACTIONS], np.full((50, 6), number))
    assert [len(batch) for batch in runner.batches] == [1, 4]


def test_a_batch_is_bounded_and_who_is_left_comes_first_next_time(start, context):
    runner = StandIn()
    server, address = start(runner, max_batch=2)
    robots = [Robot(context, address) for _ in range(4)]
    busy(runner, robots[0])
    for number, robot in enumerate(robots[1:], 1):
        robot.ask(2, number)
        wait_until(lambda number=number: len(server.worker.waiting) == number)
    robots[0].ask(2, 0)
    wait_until(lambda: len(server.worker.waiting) == 4)
    runner.go.set()
    for robot in robots:
        robot.read()
    robots[0].read()
    served = [[request.observation["observation.state"][0] for request in batch] for batch in runner.batches]
    assert served == [[0], [1, 2], [3, 0]]


def test_the_newest_observation_is_inferred_and_the_older_one_told(start, context):
    runner = StandIn()
    server, address = start(runner)
    robot = Robot(context, address)
    busy(runner, robot)
    robot.ask(2, 2)
    robot.ask(3, 3)
    error, _ = robot.read()
    assert (error.request, error.error) == (2, Superseded.kind)
    runner.go.set()
    assert [robot.read()[0].request for _ in range(2)] == [1, 3]
    assert len(runner.batches) == 2
    assert server.metrics.superseded._value.get() == 1


def test_a_busy_policy_keeps_nobody_from_a_welcome_or_a_refusal(start, context):
    runner = StandIn()
    _, address = start(runner)
    busy(runner, Robot(context, address))
    other = Robot(context, address)  # is welcomed
    other.socket.send_multipart([b"garbage"])
    assert other.read()[0].error == WireFormatError.kind
    other.send(Reset(request=5))
    assert not other.socket.poll(50)
    runner.go.set()
    assert isinstance(other.read()[0], Done)


def test_a_robot_that_never_reads_holds_up_nobody(start, context):
    runner = StandIn()
    server, address = start(runner)
    deaf = context.socket(zmq.DEALER)
    deaf.linger, deaf.rcvhwm, deaf.rcvbuf = 0, 1, 1024
    deaf.connect(address)
    deaf.send_multipart(pack(Hello(request=0, client="deaf")))
    wait_until(lambda: len(server._clients) == 1)
    robot = Robot(context, address)
    for number in range(1, 400):
        deaf.send_multipart(pack(Infer(request=number), state(0)), zmq.NOBLOCK)
        robot.ask(number, number)
        assert robot.read()[0].request == number


def test_a_robot_that_vanishes_holds_up_nobody(start, context):
    runner = StandIn()
    server, address = start(runner, idle_timeout_s=0.5)
    dead, robot = Robot(context, address), Robot(context, address)
    busy(runner, dead)
    dead.socket.close(linger=0)
    robot.ask(2, 2)
    runner.go.set()
    assert robot.read()[0].request == 2
    wait_until(lambda: len(server._clients) == 0)
    robot.ask(3)
    assert robot.read()[0].error == SessionLost.kind


def test_encoded_pictures_arrive_decoded_and_broken_ones_are_refused(start, context):
    runner = StandIn()
    server, address = start(runner)
    robot = Robot(context, address)
    depth = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64, 1)
    arrays = state(4) | {"depth": depth}
    robot.send(Infer(request=1), arrays, encoder=PictureEncoder("lossless"))
    assert isinstance(robot.read()[0], Chunk)
    np.testing.assert_array_equal(runner.batches[0][0].observation["depth"], depth)

    frames = pack(Infer(request=2), arrays, encoder=PictureEncoder("lossless"))
    frames[-1] = bytes(len(frames[-1]))
    robot.socket.send_multipart(frames)
    error, _ = robot.read()
    assert (error.request, error.error) == (2, WireFormatError.kind)
    robot.ask(3)
    assert robot.read()[0].request == 3
    assert server.malformed == 1


def test_arrays_in_shared_memory_are_read_from_there(start, context, tmp_path):
    runner = StandIn()
    _, address = start(runner, f"ipc://{tmp_path}/brain")
    shared = SharedArrays(4096)
    try:
        robot = Robot(context, address, shared_memory=shared.name)
        assert robot.welcome.shared_memory
        robot.send(Infer(request=1), state(8), shared=shared)
        _, arrays = robot.read()
        np.testing.assert_array_equal(arrays[ACTIONS], np.full((50, 6), 8))
        robot.send(Hello(request=2, client="again", shared_memory=shared.name))
        assert robot.read()[0].shared_memory
    finally:
        shared.close()


def test_shared_memory_is_not_looked_for_on_behalf_of_another_machine(start, context):
    _, address = start(StandIn())
    shared = SharedArrays(4096)
    try:
        assert not Robot(context, address, shared_memory=shared.name).welcome.shared_memory
    finally:
        shared.close()


def test_guidance_reaches_the_runner(start, context):
    runner = StandIn()
    _, address = start(runner)
    robot = Robot(context, address)
    left_over = np.ones((9, 6), np.float32)
    rtc = Rtc(3, 9, "jacobian", "exp", 5.0)
    robot.send(
        Infer(request=1, rtc=rtc, model_actions=True, seed=4, task="press", robot_type="so101"),
        state(1) | {PREV_CHUNK_LEFT_OVER: left_over},
    )
    robot.read()
    ((request,),) = runner.batches
    assert (request.rtc, request.model_actions, request.seed) == (rtc, True, 4)
    assert (request.task, request.robot_type) == ("press", "so101")
    np.testing.assert_array_equal(request.left_over, left_over)
    assert list(request.observation) == ["observation.state"]


def test_a_stopping_server_says_goodbye_to_idle_robots(start, context):
    server, address = start(StandIn())
    robots = [Robot(context, address) for _ in range(3)]
    server.stop()
    for robot in robots:
        assert isinstance(robot.read()[0], Bye)


def test_the_metrics_endpoint_tells_what_happened(start, context):
    runner = StandIn()
    server, address = start(runner)
    endpoint = server.metrics.serve(0)
    try:
        robot = Robot(context, address)
        for number in range(1, 4):
            robot.ask(number)
            robot.read()
        robot.send(Infer(request=9), {})
        assert isinstance(robot.read()[0], Error)
        robot.socket.send_multipart([b"garbage"])
        robot.read()
        wait_until(lambda: server.metrics.chunks._value.get() == 3)
        assert endpoint.url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(endpoint.url, timeout=10) as answer:
            text = answer.read().decode()
        with pytest.raises(UserError, match="cannot be had"):
            server.metrics.serve(int(endpoint.url.split(":")[2].split("/")[0]))
    finally:
        endpoint.close()
    for line in (
        "lerobot_server_sessions 1.0",
        "lerobot_server_requests_total 4.0",
        "lerobot_server_chunks_total 3.0",
        "lerobot_server_malformed_total 1.0",
        "lerobot_server_refused_total 1.0",
        "lerobot_server_superseded_total 0.0",
        'lerobot_server_stage_seconds_count{stage="queue"} 3.0',
        'lerobot_server_batch_size_bucket{le="1.0"} 3.0',
    ):
        assert line in text
    assert "robot" not in text.replace("lerobot", "").replace("Robots connected", "")


def test_figures_are_of_the_last_seconds():
    metrics = Metrics(lambda: 2)
    assert str(metrics.figures()) == "2 sessions, 0.0 Hz"
    for number in range(100):
        metrics.chunk_sent(Durations(0.001 * number, 0.002, 0.02, 0.0), 4)
    figures = metrics.figures(window_s=10)
    assert (figures.sessions, figures.chunks_per_s, figures.batch_size) == (2, 10.0, 4.0)
    p50, p95 = figures.stages_ms["queue"]
    assert abs(p50 - 49.5) < 1
    assert abs(p95 - 94) < 1
    assert "infer 20.0/20.0" in str(figures)


def test_two_threads_of_sessions_lose_no_reply(start, context):
    """The worker sends on the socket that the other thread reads: no message may get lost between the two."""
    runner = StandIn()
    _, address = start(runner)
    wrong = []

    def drive(seed):
        robot = Robot(context, address)
        for number in range(1, 301):
            robot.ask(number, seed)
            reply, arrays = robot.read()
            if reply.request != number or arrays[ACTIONS][0, 0] != seed:
                wrong.append((seed, number, reply))

    threads = [threading.Thread(target=drive, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert wrong == []
