"""One lab for the commands' tests, and copies of the configs that point to it."""

import pytest

from lerobot_ext.commands.demo import CONFIGS, write_config
from lerobot_ext.virtual.testing import running_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("l")) as lab:
        yield lab


@pytest.fixture
def config(lab, tmp_path):
    """`config("collect.yaml", **{"dataset.root": …})`: the words that name a copy with these changes."""

    def make(name: str, **changes):
        path = tmp_path / name
        defaults = {"dataset.root": str(tmp_path / "dataset"), "dataset.num_episodes": 1}
        write_config(CONFIGS / name, path, lab.directory, lab.wrist_port, defaults | changes)
        return f"--config_path={path}"

    return make
