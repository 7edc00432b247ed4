import pytest

from simplify_work.wire.address import parse_address, tcp_address
from simplify_work.wire.errors import AddressError


@pytest.mark.parametrize(
    ("text", "endpoint", "loopback"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555", True),
        ("localhost:5555", "tcp://localhost:5555", True),
        ("gpu.lab:6000", "tcp://gpu.lab:6000", False),
        ("tcp://0.0.0.0:5555", "tcp://0.0.0.0:5555", False),
        ("tcp://*:5555", "tcp://*:5555", False),
        ("[::1]:5555", "tcp://[::1]:5555", True),
        ("192.168.1.4:5555", "tcp://192.168.1.4:5555", False),
        ("ipc:///tmp/x", "ipc:///tmp/x", True),
    ],
)
def test_addresses_are_understood(text, endpoint, loopback):
    address = parse_address(text)
    assert (address.endpoint, address.is_loopback) == (endpoint, loopback)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "tcp://host",
        "udp://host:1",
        "host:99999",
        "host:-1",
        ":5",
        "ipc://",
        "ipc:///" + "x" * 200,
    ],
)
def test_what_is_no_address_is_explained(text):
    with pytest.raises(AddressError, match="address '"):
        parse_address(text)


def test_port_zero_asks_for_any():
    assert tcp_address("127.0.0.1", 0).endpoint == "tcp://127.0.0.1:*"
