"""The network that is slow or broken on purpose: what it lets through, when, and what it holds."""

import contextlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lerobot_ext.virtual.network import Link
from lerobot_ext.virtual.pipes import RETRANSMISSION_S

SILENCE_S = 0.3


class Echo:
    """A server that gives back what it gets, and remembers it."""

    def __init__(self, port: int = 0) -> None:
        self.got = bytearray()
        self.ends = 0
        self._sockets = [socket.create_server(("127.0.0.1", port))]
        self.port = self._sockets[0].getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._sockets[0].accept()
                self._sockets.append(end)
                threading.Thread(target=self._answer, args=(end,), daemon=True).start()

    def _answer(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := end.recv(1 << 16):
                self.got += data
                end.sendall(data)
            end.shutdown(socket.SHUT_WR)
        self.ends += 1

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def echo():
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def link(echo):
    with Link("127.0.0.1", echo.port) as link:
        yield link


def connect(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=20)


def receive(end: socket.socket, n_bytes: int) -> bytes:
    got = bytearray()
    while len(got) < n_bytes and (data := end.recv(1 << 16)):
        got += data
    return bytes(got)


def there_and_back(end: socket.socket, data: bytes) -> float:
    """Seconds until all of it has come back, unchanged."""
    sender = threading.Thread(target=end.sendall, args=(data,))
    started = time.monotonic()
    sender.start()
    assert receive(end, len(data)) == data
    elapsed = time.monotonic() - started
    sender.join()
    return elapsed


def silent(end: socket.socket) -> bool:
    end.settimeout(SILENCE_S)
    try:
        return not end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(20)


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def test_bytes_arrive_as_they_were_sent_and_are_counted(link, echo):
    data = random.Random(0).randbytes(3_000_000)
    with connect(link) as end:
        there_and_back(end, data)
    wait_for(lambda: link.bytes_to_target == link.bytes_to_client == len(data), "not all was counted")


def test_order_and_content_survive_jitter_and_losses(link):
    link.slow(jitter_ms=20, loss=0.02, bandwidth_mbit=100)
    with connect(link) as one, connect(link) as other:
        there_and_back(one, random.Random(1).randbytes(300_000))
        there_and_back(other, random.Random(2).randbytes(300_000))


def test_bandwidth_is_what_was_asked_for(link):
    link.slow(bandwidth_mbit=20)
    data = bytes(1_250_000)
    with connect(link) as end:
        elapsed = there_and_back(end, data)
    ideal = len(data) * 8 / 20e6
    assert ideal * 0.95 < elapsed, "faster than the link"
    assert elapsed < ideal * 2, "much slower than the link, both ways at once"


def test_connections_share_the_bandwidth(link):
    link.slow(bandwidth_mbit=20)
    data = bytes(300_000)
    started = time.monotonic()
    with connect(link) as one, connect(link) as other:
        threads = [threading.Thread(target=there_and_back, args=(end, data)) for end in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert time.monotonic() - started > 2 * len(data) * 8 / 20e6 * 0.95


def test_delay_is_both_ways_and_does_not_cost_throughput(link):
    link.slow(delay_ms=100)
    with connect(link) as end:
        assert there_and_back(end, b"x") >= 0.2
        assert there_and_back(end, bytes(20_000_000)) < 5, "one piece after the other would take far longer"


def test_a_lost_segment_holds_up_what_follows(link):
    link.slow(loss=1.0)
    with connect(link) as end:
        assert there_and_back(end, b"x") >= 2 * RETRANSMISSION_S
        link.slow(loss=0.0)
        there_and_back(end, b"y")


def test_silent_cut_holds_the_bytes_until_it_is_restored(link, echo):
    with connect(link) as end:
        there_and_back(end, b"before")
        link.cut()
        end.sendall(b"during")
        assert silent(end)
        assert bytes(echo.got) == b"before"
        link.restore()
        assert receive(end, 6) == b"during"


def test_bytes_under_way_are_held_by_a_cut(link, echo):
    link.slow(delay_ms=200)
    with connect(link) as end:
        end.sendall(b"x")
        time.sleep(0.05)
        link.cut()
        assert silent(end) and not echo.got
        link.restore()
        assert receive(end, 1) == b"x"


def test_new_connections_hang_during_a_silent_cut(link):
    link.cut()
    with connect(link) as end:
        end.sendall(b"hello")
        assert silent(end)
        link.restore()
        assert receive(end, 5) == b"hello"


def test_reset_cut_is_told_to_both_sides(link, echo):
    with connect(link) as end:
        there_and_back(end, b"x")
        link.cut(reset=True)
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    wait_for(lambda: echo.ends == 1, "the target was not told")
    with pytest.raises(ConnectionResetError), connect(link) as end:
        end.recv(1)
    link.restore()
    with connect(link) as end:
        there_and_back(end, b"again")


def test_cut_in_the_middle_of_a_message(link, echo):
    with connect(link) as end:
        there_and_back(end, b"whole")
        link.cut(after_bytes=3)
        end.sendall(b"message")
        wait_for(lambda: len(echo.got) == 8, "the first part did not arrive")
        assert silent(end)
        assert bytes(echo.got) == b"wholemes"
        link.restore()
        wait_for(lambda: bytes(echo.got) == b"wholemessage", "the rest did not follow")


def test_injected_bytes_arrive_on_either_side(link, echo):
    with connect(link) as end:
        there_and_back(end, b"x")
        link.inject(b"garbage", to_target=False)
        assert receive(end, 7) == b"garbage"
        link.inject(b"more")
        assert receive(end, 4) == b"more"
    assert bytes(echo.got) == b"xmore"


def test_the_end_of_a_connection_is_passed_on(link, echo):
    with connect(link) as end:
        end.sendall(b"last")
        end.shutdown(socket.SHUT_WR)
        assert receive(end, 100) == b"last"
    wait_for(lambda: link.connections == 0, "the connection is still there")


def test_a_target_that_is_gone_resets_and_one_that_came_back_is_found(link, echo):
    with connect(link) as end:
        there_and_back(end, b"x")
        echo.close()
        with contextlib.suppress(ConnectionResetError):
            assert not end.recv(1)
    with pytest.raises(ConnectionResetError), connect(link) as end:
        end.recv(1)
    back = Echo(echo.port)
    with connect(link) as end:
        there_and_back(end, b"x")
    back.close()


def test_conditions_out_of_range_are_refused(link):
    with pytest.raises(ValueError, match="bandwidth_mbit is 0"):
        link.slow(bandwidth_mbit=0)
    with pytest.raises(ValueError, match="loss is 1.5"):
        Link("127.0.0.1", link.port, loss=1.5)
    assert link.conditions.bandwidth_mbit is None


def test_closing_frees_the_port_and_is_harmless_when_repeated(echo):
    link = Link("127.0.0.1", echo.port)
    with connect(link) as end:
        there_and_back(end, b"x")
        link.close()
        link.close()
        with contextlib.suppress(ConnectionResetError):
            assert not end.recv(1)
    with Link("127.0.0.1", echo.port, port=link.port) as again, connect(again) as end:
        there_and_back(end, b"x")


def test_as_a_command(echo):
    words = [
        sys.executable,
        "-m",
        "lerobot_ext.virtual.network",
        f"--to=127.0.0.1:{echo.port}",
        "--delay_ms=50",
    ]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r"tcp://127.0.0.1:(\d+)", process.stderr.readline()).group(1))
            with socket.create_connection(("127.0.0.1", port), timeout=20) as end:
                assert there_and_back(end, b"x") >= 0.1
            process.send_signal(signal.SIGTERM)
            assert "1 bytes went there, 1 came back" in process.communicate(timeout=20)[1]
            assert process.returncode == 0
        finally:
            process.kill()
