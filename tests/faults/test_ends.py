"""When nothing helps, the rollout ends: at once where waiting is no use, after `give_up_s` elsewhere."""

import numpy as np
import pytest
from rig import Rig, wait_for
from stand_in import StandIn

from lerobot_ext.virtual.network import Link
from lerobot_ext.virtual.testing import free_port
from simplify_work.wire.errors import KeyRefused
from simplify_work.wire.keys import make_keys


@pytest.fixture
def address():
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def keys(tmp_path):
    """Of a server that knows one robot, and of another server with another one."""
    make_keys(tmp_path / "ours", ["arm"])
    make_keys(tmp_path / "theirs", ["stranger"])
    return tmp_path


def test_rest_and_then_the_end(lab, address, tmp_path):
    """The arm holds, goes where the episode began, and the rollout ends by itself."""
    began = lab.client.status().joints_rad
    with StandIn(address) as server, Link("127.0.0.1", int(address.rpartition(":")[2])) as link:
        with Rig(
            lab, link.address, tmp_path, when_lost="rest", max_hold_s=0.5, rest_speed=30.0, give_up_s=5.0
        ) as rig:
            rig.wait_moving()
            link.cut()
            wait_for(
                lambda: any("rest position" in line for line in rig.warnings()), "it does not go to rest"
            )
            assert np.allclose(rig.wait_still(), began, atol=0.03)
            wait_for(lambda: not rig.running, "the rollout does not give up")
            assert rig.engine.failed and server.alive
        assert [fault["kind"] for fault in rig.events("fault")] == ["timeout", "gave_up"]
        assert rig.events("end")[-1]["faults"] >= 1


def test_a_robot_without_the_right_key_does_not_move(lab, address, keys, tmp_path):
    before = lab.client.status().joints_rad
    with StandIn(address, f"--keys={keys / 'ours' / 'server'}") as server:
        for folder, words in ((None, "lerobot-ext keys"), (keys / "theirs" / "stranger", "server.key")):
            with pytest.raises(KeyRefused, match=words):
                Rig(lab, address, tmp_path / "telemetry", policy={"keys": folder and str(folder)})
        assert server.alive
    assert np.allclose(lab.client.status().joints_rad, before, atol=0.005)


def test_a_server_that_comes_back_with_keys_that_the_robot_does_not_have(lab, address, keys, tmp_path):
    with StandIn(address) as server, Rig(lab, address, tmp_path / "telemetry", give_up_s=120.0) as rig:
        rig.wait_moving()
        server.kill()
        wait_for(lambda: rig.events("fault"), "the loss was not noticed")
        with StandIn(address, f"--keys={keys / 'ours' / 'server'}"):
            wait_for(lambda: not rig.running, "the rollout goes on although it never will be admitted")
        rig.wait_still()
        *_, last = rig.warnings()
        assert "lerobot-ext keys" in last
        assert rig.events("fault")[-1]["kind"] == "gave_up"
