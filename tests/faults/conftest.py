"""One lab for the tests of faults, and one rollout for those that bring it to no end."""

import pytest
from rig import Rig
from stand_in import StandIn

from lerobot_ext.virtual.network import Link
from lerobot_ext.virtual.testing import free_port, running_lab


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("l")
    with running_lab(folder, log=folder / "log", no_operator=True) as lab:
        lab.client.timeout_s = 20.0  # attackers and a loaded machine may keep it waiting
        yield lab


class Servers:
    """The one policy server of the moment, always on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._now = StandIn(self.address)

    @property
    def now(self) -> StandIn:
        return self._now

    def start(self, *options: str) -> StandIn:
        """Start another one in place of one that is dead."""
        assert not self._now.alive
        self._now.close()
        self._now = StandIn(self.address, *options)
        return self._now

    def close(self) -> None:
        self._now.close()


@pytest.fixture(scope="module")
def servers():
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def link(servers):
    with Link("127.0.0.1", servers.port) as link:
        yield link


@pytest.fixture(scope="module")
def rollout(lab, link, tmp_path_factory):
    """A rollout that is the same for the whole module, so each test must leave it moving."""
    with Rig(lab, link.address, tmp_path_factory.mktemp("telemetry"), give_up_s=300.0) as rig:
        yield rig


@pytest.fixture
def moving(rollout):
    """The rollout, moving the arm."""
    rollout.wait_moving()
    return rollout
