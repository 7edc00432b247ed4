"""Whatever fails between robot and server: the arm holds, one line says why, and it goes on by itself.

One rollout for all of them, through a link that can be cut; each test leaves it moving.
"""

import numpy as np
import pytest
from attackers import byte_attack, message_attack
from rig import FPS, PATIENCE_S, wait_for
from stand_in import CHUNK, DIM
from zmq import DEALER

from simplify_work.local.client import PolicyClient


def test_link_cut_and_restored(moving, link):
    with moving.outage("timeout", link.address, "link is down"):
        link.cut()
    with moving.recovery():
        link.restore()


def test_link_reset_and_restored(moving, link):
    with moving.outage("unreachable", link.address):
        link.cut(reset=True)
    with moving.recovery():
        link.restore()


def test_server_killed_and_restarted_on_the_same_port(moving, link, servers):
    with moving.outage("unreachable", link.address):
        servers.now.kill()
    with moving.recovery():
        servers.start()


def test_server_that_is_stopped_for_a_while(moving, link, servers):
    with moving.outage("timeout", link.address, "busy"):
        servers.now.pause()
    with moving.recovery():
        servers.now.go_on()


def test_server_that_has_no_session_left(moving, link, servers):
    with moving.outage("unreachable", link.address):
        link.cut(reset=True)
        servers.now.kill()
    servers.start("--max_sessions=1")
    with PolicyClient(servers.address) as other:
        other.connect()
        link.restore()
        wait_for(lambda: "session of" in "".join(servers.now.log), "the other client has no session")
        resumed = len(moving.events("resumed"))
        place = moving.wait_still()
        assert len(moving.events("resumed")) == resumed and np.all(np.isfinite(place))
    with moving.recovery():
        pass


def test_slow_network(moving, link):
    with moving.no_outage():
        link.slow(delay_ms=250)
        chunks = len(moving.events("chunk"))
        wait_for(lambda: len(moving.events("chunk")) >= chunks + 4, "no chunks")
        moving.wait_moving()
        link.slow(delay_ms=0)
    late = moving.events("chunk")[chunks + 1 : chunks + 4]
    assert all(chunk["round_trip_s"] >= 0.5 for chunk in late)
    assert all(chunk["trimmed"] == chunk["delay"] >= FPS / 4 for chunk in late)


def test_lost_packets(moving, link):
    with moving.no_outage():
        link.slow(loss=0.2)
        chunks = len(moving.events("chunk"))
        wait_for(lambda: len(moving.events("chunk")) >= chunks + 5, "no chunks")
        link.slow(loss=0.0)


@pytest.mark.parametrize(
    ("mood", "kind", "words"),
    [
        ("nan", "inference", "finite"),
        ("limits", "refused", "700"),
        ("width", "inference", f"({CHUNK}, {DIM + 1})"),
    ],
)
def test_bad_chunks_are_refused_whole(moving, servers, mood, kind, words):
    refused = len(moving.events("refused"))
    with moving.outage(kind, words):
        servers.now.be(mood)
    assert len(moving.events("refused")) > refused
    with moving.recovery():
        servers.now.be("good")


def test_message_cut_in_half(moving, link):
    with moving.outage("unreachable", link.address):
        link.cut(reset=True, after_bytes=40)
    with moving.recovery():
        link.restore()


@pytest.mark.parametrize("to_target", [True, False], ids=["to the server", "to the robot"])
def test_garbage_in_the_stream(moving, link, to_target):
    """The connection is dropped and made anew; an arm with a queue of actions need not even stop for it."""
    chunks = len(moving.events("chunk"))
    link.inject(b"\xde\xad\xbe\xef" * 50, to_target=to_target)
    wait_for(lambda: len(moving.events("chunk")) >= chunks + 3, "chunks do not come again")
    moving.wait_moving()


def test_attackers_at_the_port_do_not_disturb(moving, servers, tmp_path):
    with (
        moving.no_outage(),
        byte_attack(servers.address, tmp_path / "proof"),
        message_attack(servers.address, tmp_path / "proof", [DEALER]),
    ):
        chunks = len(moving.events("chunk"))
        wait_for(lambda: len(moving.events("chunk")) >= chunks + 3, f"no chunks within {PATIENCE_S} s")
    assert not (tmp_path / "proof").exists()
