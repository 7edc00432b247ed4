"""ACT's client for whoever asks."""

import pytest
from act_client import ActClient


@pytest.fixture
def connect():
    clients = []

    def connect(endpoint, **options):
        clients.append(ActClient(endpoint, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
