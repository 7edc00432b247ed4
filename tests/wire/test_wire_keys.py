"""Keys: made once, kept secret, and nobody without the right ones gets a word through."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket as plain
import stat
import threading
import time
import uuid

import pytest
import zmq

from simplify_work.wire import listen, sockets
from simplify_work.wire.address import Address, parse_address, tcp_address
from simplify_work.wire.codec import pack, unpack
from simplify_work.wire.errors import AddressError, KeyRefused
from simplify_work.wire.keys import ClientKeys, ServerKeys, make_keys
from simplify_work.wire.messages import Reset

# Generous, for loaded machines: refusals come within milliseconds.
PATIENCE_MS = 20_000


@pytest.fixture
def folder(tmp_path):
    make_keys(tmp_path / "keys", ["arm1", "arm2"])
    return tmp_path / "keys"


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def serve(context):
    """`serve(keys)`: a bound router and its address."""

    def bound(keys: ServerKeys | None = None, host: str = "127.0.0.1") -> tuple[zmq.Socket, Address]:
        router = sockets.router(context, tcp_address(host, 0), keys)
        return router, parse_address(listen.endpoint(router))

    return bound


@pytest.fixture
def call(context):
    """`call(address, keys)`: a dealer that has sent a message, and its watch."""
    kept = []  # a socket that nobody holds is closed, with what it has not sent yet

    def sent(address: Address, keys: ClientKeys | None = None) -> tuple[zmq.Socket, sockets.HandshakeWatch]:
        dealer = sockets.dealer(context, address, b"c" + uuid.uuid4().bytes, keys)
        kept.append(dealer)
        with contextlib.suppress(zmq.Again):  # refused already
            dealer.send_multipart(pack(Reset(request=7)), zmq.NOBLOCK)
        return dealer, sockets.HandshakeWatch(dealer, address, keys)

    return sent


def refused(watch: sockets.HandshakeWatch) -> str:
    """Wait for the refusal; returns its sentence."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    with pytest.raises(KeyRefused) as caught:
        while time.monotonic() < deadline:
            watch.events.poll(100)
            watch.check()
    return str(caught.value)


def silent(router: zmq.Socket) -> bool:
    return router.poll(50) == 0


def test_the_right_key_opens_and_names_the_robot(folder, serve, call):
    router, address = serve(ServerKeys.load(folder / "server"))
    dealer, watch = call(address, ClientKeys.load(folder / "arm1"))
    assert router.poll(PATIENCE_MS)
    identity, *frames = sockets.receive(router)
    assert unpack(frames)[0] == Reset(request=7)
    assert frames[0].get("User-Id") == "arm1"
    router.send_multipart([identity.bytes, b"answer"])
    assert dealer.poll(PATIENCE_MS) and dealer.recv() == b"answer"
    watch.check()


def test_nothing_is_readable_on_the_way(folder, serve, call):
    """What a listener on the wire sees of an encrypted message and of a plain one."""
    for keys, visible in ((ServerKeys.load(folder), False), (None, True)):
        router, address = serve(keys)
        seen, tap = tapped(address)
        call(tap, ClientKeys.load(folder / "arm1") if keys else None)
        assert router.poll(PATIENCE_MS)
        assert (b"LrxW" in b"".join(seen)) is visible


def tapped(address: Address) -> tuple[list[bytes], Address]:
    """A relay to `address` that keeps what it carries."""
    listener, seen = plain.create_server(("127.0.0.1", 0)), []

    def carry(source: plain.socket, target: plain.socket) -> None:
        while data := _received(source):
            seen.append(data)
            target.sendall(data)

    def accept() -> None:
        with listener:
            near, _ = listener.accept()
        far = plain.create_connection((address.host, address.port))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return seen, tcp_address("127.0.0.1", listener.getsockname()[1])


def _received(source: plain.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""


def test_an_unlisted_robot_is_refused_and_the_log_says_whose_key_it_was(folder, serve, call, caplog):
    (folder / "server" / "clients" / "arm2.key").unlink()
    router, address = serve(ServerKeys.load(folder))
    keys = ClientKeys.load(folder / "arm2")
    with caplog.at_level(logging.WARNING):
        said = [refused(call(address, keys)[1]) for _ in range(3)]
    assert "does not admit this robot's key" in said[0] and "arm2/client.key" in said[0]
    assert silent(router)
    lines = [record.getMessage() for record in caplog.records if keys.public.decode() in record.getMessage()]
    assert len(lines) == 1 and str(folder / "server" / "clients") in lines[0]


def test_a_robot_is_added_and_removed_while_the_server_runs(folder, serve, call):
    router, address = serve(ServerKeys.load(folder))
    make_keys(folder, ["arm3"])
    call(address, ClientKeys.load(folder / "arm3"))
    assert router.poll(PATIENCE_MS)
    (folder / "server" / "clients" / "arm3.key").unlink()
    assert "does not admit" in refused(call(address, ClientKeys.load(folder / "arm3"))[1])


def test_a_server_that_is_not_the_one_is_refused(folder, tmp_path, serve, call):
    make_keys(tmp_path / "other", ["arm1"])
    router, address = serve(ServerKeys.load(tmp_path / "other"))
    said = refused(call(address, ClientKeys.load(folder / "arm1"))[1])
    assert "does not have the key that" in said and str(folder / "arm1" / "server.key") in said
    assert silent(router)


def test_a_missing_key_is_told_on_both_sides(folder, serve, call):
    secured, address = serve(ServerKeys.load(folder))
    assert "admits only robots with keys" in refused(call(address)[1])
    plain_router, plain_address = serve()
    said = refused(call(plain_address, ClientKeys.load(folder / "arm1"))[1])
    assert "does not use keys" in said and "--keys=" in said
    assert silent(secured) and silent(plain_router)


def test_a_tunnel_without_its_server_is_not_taken_for_a_wrong_key(folder, call):
    """It accepts the connection and drops it: so does a server whose key is another."""
    with plain.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_MS / 1000)
        address = tcp_address("127.0.0.1", listener.getsockname()[1])
        _, watch = call(address, ClientKeys.load(folder / "arm1"))
        stop = threading.Event()

        def drop() -> None:
            while not stop.is_set():
                listener.accept()[0].close()

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        for _ in range(3):
            assert watch.events.poll(PATIENCE_MS)
            watch.check()
        stop.set()
        plain.create_connection((address.host, address.port)).close()
        thread.join()


def test_two_servers_of_a_process_have_their_own_lists(folder, tmp_path, serve, call):
    make_keys(tmp_path / "other", ["arm9"])
    first, first_address = serve(ServerKeys.load(folder))
    second, second_address = serve(ServerKeys.load(tmp_path / "other"))
    for router, address, keys in (
        (first, first_address, folder / "arm1"),
        (second, second_address, tmp_path / "other/arm9"),
    ):
        call(address, ClientKeys.load(keys))
        assert router.poll(PATIENCE_MS)
    stranger = tmp_path / "stranger"
    shutil.copytree(folder / "arm1", stranger)
    shutil.copy(tmp_path / "other/arm9/server.key", stranger / "server.key")
    assert "does not admit" in refused(call(second_address, ClientKeys.load(stranger))[1])


def test_garbage_on_an_encrypted_port_does_no_harm(folder, serve, call):
    router, address = serve(ServerKeys.load(folder))
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95.",
        os.urandom(4096),
        b"\xff" + bytes(8) + b"\x7f\x03",
    ):
        with plain.create_connection((address.host, address.port)) as connection:
            connection.sendall(garbage)
    call(address, ClientKeys.load(folder / "arm1"))
    assert router.poll(PATIENCE_MS)


def test_a_server_says_which_mechanism_it_wants(folder, serve):
    _, address = serve(ServerKeys.load(folder))
    assert sockets.greeting_mechanism(address, 10) == "CURVE"
    with plain.create_server(("127.0.0.1", 0)) as listener:
        closed = tcp_address("127.0.0.1", listener.getsockname()[1])
    assert sockets.greeting_mechanism(closed) is None


# --- addresses ---


def test_without_keys_other_machines_are_not_let_in_unless_that_is_wanted(caplog):
    with pytest.raises(AddressError, match=r"lerobot-ext keys .*--keys=.*--insecure"):
        listen.bind(tcp_address("0.0.0.0", 0))
    with caplog.at_level(logging.WARNING):
        listen.bind(tcp_address("0.0.0.0", 0), insecure=True).close(linger=0)
    assert "without keys" in caplog.text


def test_with_keys_other_machines_may_be_let_in(folder, caplog):
    with caplog.at_level(logging.WARNING):
        listen.bind(tcp_address("0.0.0.0", 0), ServerKeys.load(folder)).close(linger=0)
        listen.bind(tcp_address("127.0.0.1", 0)).close(linger=0)
    assert caplog.text == ""


# --- files ---


def test_secrets_are_readable_by_their_owner_only(tmp_path):
    before = os.umask(0)
    try:
        make_keys(tmp_path, ["arm1"])
    finally:
        os.umask(before)
    secrets = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.key_secret"))
    assert list(map(str, secrets)) == ["arm1/client.key_secret", "server/server.key_secret"]
    for path in secrets:
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o600
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix == ".key":
            assert "secret-key" not in path.read_text()
    assert not list(tmp_path.rglob(".*")), "nothing unfinished is left"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_secret_that_others_can_read_is_refused_with_the_remedy(folder, mode):
    for load, path in (
        (ServerKeys.load, "server/server.key_secret"),
        (ClientKeys.load, "arm1/client.key_secret"),
    ):
        (folder / path).chmod(mode)
        with pytest.raises(KeyRefused, match=rf"{mode:04o}.*chmod 600 {folder / path}"):
            load(folder / path.split("/")[0])


def test_existing_keys_are_never_replaced(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert make_keys(folder, ["arm1", "arm2", "arm3", "arm3"]) == ["arm3"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(ServerKeys.load(folder).admitted().values()) == ["arm1", "arm2", "arm3"]


def test_a_secret_is_not_shown(folder):
    for keys in (ServerKeys.load(folder), ClientKeys.load(folder / "arm1")):
        assert keys.secret.decode() not in repr(keys)


def test_pyzmq_reads_our_files(folder):
    import zmq.auth

    keys = ClientKeys.load(folder / "arm1")
    assert zmq.auth.load_certificate(folder / "arm1" / "client.key_secret") == (keys.public, keys.secret)
    assert list(zmq.auth.load_certificates(folder / "server" / "clients")) != []


@pytest.mark.parametrize("content", ["", "curve\n", 'curve\n    public-key = "short"\n', "\0\xff" * 50])
def test_damaged_files_are_refused(folder, content):
    for path in ("server.key", "client.key_secret"):
        (folder / "arm1" / path).write_text(content)
        with pytest.raises(KeyRefused, match=path):
            ClientKeys.load(folder / "arm1")
    (folder / "server/clients/arm1.key").write_text(content)
    assert list(ServerKeys.load(folder).admitted().values()) == ["arm2"]


def test_folders_that_are_not_one_robots_are_explained(folder, tmp_path):
    with pytest.raises(KeyRefused, match=rf"several machines \(arm1, arm2\).*{folder / 'arm1'}"):
        ClientKeys.load(folder)
    for load in (ClientKeys.load, ServerKeys.load):
        with pytest.raises(KeyRefused, match=r"key_secret cannot be read .*lerobot-ext keys"):
            load(tmp_path / "nowhere")


def test_the_secret_and_the_public_key_of_a_file_must_belong_together(folder):
    one, other = (folder / name / "client.key_secret" for name in ("arm1", "arm2"))
    public = one.read_text().split("public-key")[1].split("secret-key")[0]
    wrong = other.read_text().split("public-key")[1].split("secret-key")[0]
    one.write_text(one.read_text().replace(public, wrong))
    with pytest.raises(KeyRefused, match="does not hold a secret key with its public one"):
        ClientKeys.load(folder / "arm1")
