"""What the lab leaves undone while nobody looks or nothing moves, and that it does it again when somebody needs it."""

import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import serial
import zmq

from lerobot_ext.virtual import skin
from lerobot_ext.virtual.lab import QUIET_S, Lab, LabConfig
from lerobot_ext.virtual.skin import Skin
from lerobot_ext.virtual.testing import free_port

PATIENCE_S = 10.0


class Bench:
    """A lab of this process whose time goes on only when it is told to, and which counts the pictures it renders."""

    def __init__(self, directory):
        self.directory, self.wrist_port = directory, free_port()
        self.lab = Lab(LabConfig(dir=directory, wrist_port=self.wrist_port, width=64, height=48))
        self.rendered = []
        for what in ("color", "depth"):
            self._count(what)

    def _count(self, what):
        render = getattr(self.lab._cameras, what)

        def counted(*camera):
            self.rendered.append("-".join((what, *camera)))
            return render(*camera)

        setattr(self.lab._cameras, what, counted)

    def frame(self):
        """What is rendered for the next frame."""
        self.rendered.clear()
        self.lab._frame()
        return list(self.rendered)

    def ticks(self, n):
        for _ in range(n):
            self.lab._tick()

    @contextlib.contextmanager
    def watching(self, address, port):
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.rcvtimeo = int(PATIENCE_S * 1000)
            socket.subscribe(b"")
            socket.connect(address)
            until(lambda: port.wanted)
            yield socket
        until(lambda: not port.wanted)

    def watching_side(self):
        return self.watching(f"ipc://{self.directory / 'side'}", self.lab._side)

    def watching_wrist(self):
        return self.watching(f"tcp://127.0.0.1:{self.wrist_port}", self.lab._wrist)


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def in_lab(tmp_path_factory):
    """Runs a function of a bench in the one thread that the lab's OpenGL context belongs to."""
    interval = sys.getswitchinterval()
    with ThreadPoolExecutor(1) as owner:
        bench = owner.submit(Bench, tmp_path_factory.mktemp("rest") / "lab").result()
        try:
            yield lambda test: owner.submit(test, bench).result()
        finally:
            owner.submit(bench.lab.close).result()
            sys.setswitchinterval(interval)


def test_a_camera_is_rendered_while_somebody_has_it_open(in_lab):
    def test(bench):
        assert bench.frame() == []
        with bench.watching_side() as socket:
            bench.ticks(30)
            assert bench.frame() == ["color-side", "depth"]
            header, color, _ = socket.recv_multipart()
            assert np.frombuffer(color, np.uint8).std() > 5
        bench.ticks(30)
        assert bench.frame() == []
        with bench.watching_wrist():
            assert bench.frame() == ["color-wrist"]

    in_lab(test)


def test_what_stands_still_is_shown_again_without_rendering_until_something_changes(in_lab):
    def test(bench):
        world = bench.lab._task.world
        bench.ticks(500)
        with bench.watching_side() as socket:
            bench.frame()
            first = socket.recv_multipart()
            bench.ticks(3)
            assert bench.frame() == []
            second = socket.recv_multipart()
            assert second[0] != first[0], "a frame of its own: number and time"
            assert second[1:] == first[1:]
            world.set_lamp(True)
            assert bench.frame() == ["color-side", "depth"]
            assert socket.recv_multipart()[1] != first[1]
            assert bench.frame() == []
            world.data.qpos[0] += 0.001
            assert bench.frame() == ["color-side", "depth"]
        world.set_lamp(False)

    in_lab(test)


def test_a_camera_that_is_unplugged_or_frozen_is_not_rendered(in_lab):
    def test(bench):
        bench.ticks(30)
        with bench.watching_wrist() as socket:
            bench.frame()
            shown = socket.recv_multipart()
            for fault in ("frozen", "unplugged"):
                bench.lab._fault("wrist", fault)
                bench.lab._task.world.data.qpos[0] += 0.01
                assert bench.frame() == []
                assert bool(socket.poll(200)) == (fault == "frozen")
                if fault == "frozen":
                    assert socket.recv_multipart() == shown
            bench.lab._fault("wrist", "")
            assert bench.frame() == ["color-wrist"]

    in_lab(test)


def test_the_lab_is_alone_only_while_nobody_uses_a_port(in_lab):
    def test(bench):
        lab = bench.lab
        bench.ticks(1)
        assert lab._alone(time.monotonic())
        with serial.Serial(str(bench.directory / "skin"), 115200, timeout=PATIENCE_S) as port:
            bench.ticks(2)
            assert not lab._alone(time.monotonic())
            assert len(port.read(82)) == 82
        bench.ticks(1)
        assert lab._alone(time.monotonic())
        with serial.Serial(str(bench.directory / "follower"), 1_000_000, timeout=PATIENCE_S) as port:
            port.write(bytes.fromhex("ff ff 01 02 01 fb"))
            assert len(port.read(6)) == 6
            heard = time.monotonic()
            assert not lab._alone(heard)
            assert lab._alone(heard + QUIET_S)

    in_lab(test)


def test_a_skin_that_nobody_read_feels_the_same_afterwards(monkeypatch):
    monkeypatch.setattr(skin, "NOISE", (0.0,) * 4)
    read, unread = Skin(seed=1), Skin(seed=1)
    for n in range(50):
        force = np.array([n * 0.05, 0.2, -0.1])
        read.step(0.01, force)
        unread.wait(0.01, force)
    assert np.array_equal(read.step(0.01, force), unread.step(0.01, force))
