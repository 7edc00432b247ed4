import pytest

import lerobot_ext


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    lerobot_ext.register()
