"""Recordings in these tests are made by LeRobot's own classes, extended as a user's are."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def registered():
    import lerobot_ext

    lerobot_ext.register()
