"""A server with a stand-in policy, in this process."""

import pytest
import standin


@pytest.fixture
def serve():
    running = []

    def start(runner=None, address="tcp://127.0.0.1:0", **options):
        server, endpoint = standin.start(runner or standin.StandIn(), address, **options)
        running.append(server)
        return server, endpoint

    yield start
    for server in running:
        server.stop()
