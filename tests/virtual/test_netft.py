"""The Net F/T's requests and records, as its manual has them."""

import socket
import struct

import numpy as np
import pytest

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.netft import NetFTServer

ZERO = np.zeros(3)


@pytest.fixture
def server():
    server = NetFTServer(0, seed=1)
    yield server
    server.close()


@pytest.fixture
def client(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", server.port))
        client.settimeout(2)
        yield client


def ask(client, command, records=0):
    client.send(struct.pack(">HHI", 0x1234, command, records))


def records(client, count):
    return np.array([struct.unpack(">3I6i", client.recv(100)) for _ in range(count)])


def test_it_sends_nothing_until_it_is_asked(server, client):
    server.tick(0.01, ZERO)
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(100)


def test_a_stream_counts_its_records_and_measurements(server, client):
    server.tick(1.0, ZERO)
    ask(client, 2)
    server.tick(0.01, np.array([10.0, 0, 0]))
    got = records(client, 5)
    assert got[:, 0].tolist() == [1, 2, 3, 4, 5] and (np.diff(got[:, 1]) == 1).all() and got[0, 1] == 501
    assert (got[:, 2] == 0).all()
    assert np.allclose(got[:, 3:6].mean(axis=0) / 1e6, server.source.offset[:3] + (0, 0, 10), atol=0.3)


def test_so_many_records_as_were_asked_for(server, client):
    ask(client, 2, 3)
    server.tick(0.05, ZERO)
    assert len(records(client, 3)) == 3 and server.client is None


def test_it_stops_when_told_and_hears_nothing_that_is_no_request(server, client):
    ask(client, 2)
    server.tick(0.01, ZERO)
    for junk in (b"", b"hello", struct.pack(">HHI", 0x4321, 0, 0), struct.pack(">HHI", 0x1234, 7, 0)):
        client.send(junk)
    server.tick(0.01, ZERO)
    assert server.client is not None
    ask(client, 0)
    server.tick(0.01, ZERO)
    assert server.client is None


def test_its_own_bias_makes_the_present_zero(server, client):
    ask(client, 0x42)
    ask(client, 2)
    server.tick(0.1, ZERO)
    assert np.allclose(records(client, 50)[:, 3:].mean(axis=0) / 1e6, 0, atol=0.1)


def test_lost_records_leave_gaps_and_a_status_is_in_all(server, client):
    server.faults.lost, server.faults.status = 0.5, 0x80000004
    ask(client, 2)
    server.tick(0.2, ZERO)
    got = records(client, 25)
    assert (np.diff(got[:, 0]) > 1).any() and (got[:, 2] == 0x80000004).all()


def test_a_taken_port_is_one_sentence(server):
    with pytest.raises(UserError, match=f"UDP port {server.port}.*choose another --netft_port"):
        NetFTServer(server.port)
