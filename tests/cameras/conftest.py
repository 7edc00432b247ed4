"""A lab that answers and publishes, for the tests of the camera."""

import pytest
from fake_lab import FakeLab


@pytest.fixture
def lab(tmp_path):
    with FakeLab(tmp_path) as fake:
        yield fake
