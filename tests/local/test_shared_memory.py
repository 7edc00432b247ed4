"""On `ipc://` arrays go through shared memory, and nothing of it is left behind."""

from __future__ import annotations

import logging
import os
import queue
import threading

import numpy as np
import pytest
import standin

from simplify_work.local import PolicyClient
from simplify_work.server import server as server_module
from simplify_work.wire import shared
from simplify_work.wire.errors import ServerUnreachable

pytestmark = pytest.mark.skipif(not shared.FOLDER.is_dir(), reason="there is no /dev/shm")


def segments() -> set[str]:
    """Shared memory that this process holds or that still has a name."""
    held = (
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    )
    return {path for path in held if "lrx_" in path} | {p.name for p in shared.FOLDER.glob("lrx_*")}


@pytest.fixture
def address(tmp_path):
    return f"ipc://{tmp_path}/brain"


def test_arrays_arrive_and_are_not_sent(serve, address):
    runner = standin.StandIn(depth=True)
    serve(runner, address)
    with PolicyClient(address, timeout_s=30) as client:
        for seed in range(6):  # more than there are slots
            frame = standin.observation(seed, depth=True)
            chunk = client.infer(frame)
            assert chunk.codec == "shared"
            assert chunk.sent_bytes < 1000
            for name, array in frame.items():
                np.testing.assert_array_equal(runner.seen[-1].observation[name], array)
            np.testing.assert_array_equal(chunk.actions, standin.actions_for(frame))


def test_the_memory_has_no_name_while_it_is_used_and_is_gone_afterwards(serve, address):
    before = segments()
    server, _ = serve(standin.StandIn(), address)
    with PolicyClient(address, timeout_s=30) as client:
        client.infer(standin.observation())
        assert not [path for path in shared.FOLDER.glob("lrx_*") if path.name not in before]
        assert segments() - before
    server.stop()
    assert segments() <= before


def test_larger_observations_get_more_memory(serve, address):
    runner = standin.StandIn()
    serve(runner, address)
    with PolicyClient(address, timeout_s=30) as client:
        client.infer(standin.observation(0, 240, 320))
        chunk = client.infer(standin.observation(1))
    assert (chunk.codec, chunk.sent_bytes < 1000) == ("shared", True)


def test_a_server_that_came_back_gets_new_memory(serve, address):
    server, _ = serve(standin.StandIn(), address)
    frame = standin.observation()
    with PolicyClient(address, timeout_s=30) as client:
        client.infer(frame)
        server.stop()
        serve(standin.StandIn(), address)
        chunk = client.infer(frame)
    assert chunk.codec == "shared"
    np.testing.assert_array_equal(chunk.actions, standin.actions_for(frame))


def test_memory_that_was_not_agreed_on_in_time_is_offered_again(serve, address, monkeypatch):
    offered, goes_on = queue.Queue(), threading.Event()

    class Late(shared.SharedView):
        def __init__(self, name):
            offered.put(name)
            goes_on.wait(60)
            super().__init__(name)

    monkeypatch.setattr(server_module, "SharedView", Late)
    serve(standin.StandIn(), address)
    with PolicyClient(address, timeout_s=30) as client:
        client.connect()
        with pytest.raises(ServerUnreachable):
            client.infer(standin.observation(), timeout_s=0.2)
        name = offered.get(timeout=60)
        assert not any(name in path for path in segments()), "nothing is kept that may never be read"
        goes_on.set()
        assert client.infer(standin.observation()).codec == "shared"


def test_two_threads_do_not_write_over_each_other(serve, address):
    serve(standin.StandIn(48, 64), address)
    wrong = []
    with PolicyClient(address, timeout_s=30) as client:

        def ask(index):
            frame = standin.observation(index, 48, 64)
            for _ in range(50):
                try:
                    chunk = client.infer(frame)
                except Exception as error:
                    wrong.append(getattr(error, "kind", error) != "superseded")
                else:
                    wrong.append(not np.array_equal(chunk.actions, standin.actions_for(frame)))

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(wrong) == 100
    assert not any(wrong)


def test_without_shared_memory_arrays_are_sent_and_it_is_said_once(
    serve, address, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(shared, "FOLDER", tmp_path / "nowhere")
    serve(standin.StandIn(), address)
    frame = standin.observation()
    with caplog.at_level(logging.INFO, "simplify_work.local"), PolicyClient(address, timeout_s=30) as client:
        chunks = [client.infer(frame) for _ in range(3)]
    assert {chunk.codec for chunk in chunks} == {"raw"}
    np.testing.assert_array_equal(chunks[0].actions, standin.actions_for(frame))
    assert len([record for record in caplog.records if "shared memory" in record.getMessage()]) == 1
